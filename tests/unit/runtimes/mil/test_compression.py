"""Compressed weights are opened exactly as coremltools opens them, in the forms of iOS 16 and of iOS 18."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flashbulb.runtimes.engines.mil import Program

pytest.importorskip("coremltools")
RNG = np.random.default_rng(0)
Parts = dict[str, Any]


def half(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float16)


def codes(bits: int, *shape: int, signed: bool = False) -> np.ndarray:
    """Random codes in the element type that coremltools has for so few bits."""
    from coremltools.converters.mil.mil.types import string_to_nptype

    low = -(1 << (bits - 1)) if signed else 0
    name = f"{'' if signed else 'u'}int{bits}"
    return RNG.integers(low, low + (1 << bits), shape).astype(string_to_nptype(name))


def packed(values: np.ndarray, bits: int) -> np.ndarray:
    flat = values.astype(np.uint8).reshape(-1, 1)
    return np.packbits(np.unpackbits(flat, axis=1, count=bits, bitorder="little"), bitorder="little")


def affine(axis: int | None, kind: str) -> Parts:
    scale = half() if axis is None else half([6, 20][axis])
    low, high = (0, 256) if kind == "uint8" else (-128, 128)
    return {
        "quantized_data": RNG.integers(low, high, (6, 20)).astype(kind),
        "zero_point": RNG.integers(0, 5, scale.shape).astype(kind)[()],
        "scale": np.abs(scale)[()],
        "axis": np.int32(axis or 0),
    }


def palette16(bits: int) -> Parts:
    shape = (3, 7, 5)
    indices = packed(RNG.integers(0, 1 << bits, shape), bits)
    return {"indices": indices, "lut": half(1 << bits), "shape": np.array(shape, np.uint32)}


def sparse16() -> Parts:
    mask = RNG.random(51) > 0.6
    return {
        "nonzero_data": half(int(mask.sum())),
        "mask": np.packbits(mask, bitorder="little"),
        "shape": np.array((3, 17), np.uint32),
    }


def palette18(bits: int, groups: tuple[int, int], vector: int) -> Parts:
    found: Parts = {"indices": codes(bits, 6, 8), "lut": half(*groups, 1 << bits, vector)}
    return {**found, "vector_axis": np.int32(1)} if vector > 1 else found


def blocks(bits: int, signed: bool, shape: tuple[int, int], offset: bool) -> Parts:
    found: Parts = {"data": codes(bits, 6, 8, signed=signed), "scale": np.abs(half(*shape))}
    return {**found, "offset": codes(bits, *shape, signed=signed)} if offset else found


def sparse18() -> Parts:
    mask = codes(1, 6, 8)
    return {"nonzero_data": half(int(np.count_nonzero(mask))), "mask": mask}


CASES: list[tuple[str, str, Callable[[], Parts]]] = [
    *[("iOS16", "constexpr_lut_to_dense", lambda b=b: palette16(b)) for b in (1, 2, 4, 6, 8)],
    ("iOS16", "constexpr_affine_dequantize", lambda: affine(0, "int8")),
    ("iOS16", "constexpr_affine_dequantize", lambda: affine(1, "uint8")),
    ("iOS16", "constexpr_affine_dequantize", lambda: affine(None, "int8")),
    ("iOS16", "constexpr_sparse_to_dense", sparse16),
    *[("iOS18", "constexpr_lut_to_dense", lambda b=b: palette18(b, (1, 1), 1)) for b in (1, 2, 3, 4, 6, 8)],
    ("iOS18", "constexpr_lut_to_dense", lambda: palette18(4, (3, 2), 1)),
    ("iOS18", "constexpr_lut_to_dense", lambda: palette18(2, (2, 1), 3)),
    ("iOS18", "constexpr_blockwise_shift_scale", lambda: blocks(4, True, (6, 2), True)),
    ("iOS18", "constexpr_blockwise_shift_scale", lambda: blocks(8, True, (1, 8), False)),
    ("iOS18", "constexpr_blockwise_shift_scale", lambda: blocks(4, False, (3, 1), True)),
    ("iOS18", "constexpr_sparse_to_dense", sparse18),
]


def opened(target: str, name: str, parts: Parts) -> np.ndarray:
    """Let coremltools decompress."""
    import coremltools as ct
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    versions = SSAOpRegistry.core_ops[name]
    kind = versions[getattr(ct.target, target)]
    given = {"vector_axis": None, "offset": None, **parts}
    wanted = kind.decompress.__code__.co_varnames[: kind.decompress.__code__.co_argcount]
    return np.asarray(kind.decompress(**{k: given[k] for k in wanted}))


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
@pytest.mark.parametrize("keep", [True, False])
def test_every_form_opens_exactly(target: str, keep: bool, tools: SimpleNamespace, tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools spells it

    table = [(name, parts()) for where, name, parts in CASES if where == target]
    wanted = [opened(target, name, parts) for name, parts in table]
    names: list[str] = []

    def build(x: Any) -> list[Any]:
        found = [mb.add(x=x, y=getattr(mb, name)(**parts)) for name, parts in table]
        names.extend(v.name for v in found)
        return found

    path = tools.save_program(build, {"x": np.zeros(1, np.float16)}, tmp_path / "c.mlpackage", target=target)
    found = Program.load(path, "fp16", low_memory=not keep).predict({"x": np.zeros(1)})
    for (case, _), name, want in zip(table, names, wanted, strict=True):
        np.testing.assert_array_equal(found[name], want.astype(np.float16), err_msg=case)


def test_a_joint_form_opens_in_two_steps(tools: SimpleNamespace, tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools spells it
    from coremltools.converters.mil.mil.ops.defs.iOS18 import compression

    mask, lut = codes(1, 6, 8), half(1, 1, 4, 1)
    values = codes(2, int(np.count_nonzero(mask)))

    def build(x: Any) -> Any:
        kept, plain = mb.constexpr_lut_to_sparse(indices_mask=mask, indices_nonzero_data=values, lut=lut)
        return mb.add(x=x, y=mb.constexpr_sparse_to_dense(nonzero_data=plain, mask=kept))

    path = tools.save_program(build, {"x": np.zeros(1, np.float16)}, tmp_path / "j.mlpackage", target="iOS18")
    program = Program.load(path, "fp16")
    parts = compression.constexpr_lut_to_sparse.decompress(mask, values, lut, None)
    wanted = compression.constexpr_sparse_to_dense.decompress(parts[1], parts[0])
    np.testing.assert_array_equal(program.predict({"x": np.zeros(1)})[program.outputs[0]], wanted)
