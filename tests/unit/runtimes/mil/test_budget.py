"""A package of a few kilobytes can take neither the memory nor for ever, unless it is allowed to."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from flashbulb.runtimes.engines.mil import Program, ProgramError
from flashbulb.runtimes.engines.mil.budget import LEAST_BYTES, Budget, current, explained, spending
from flashbulb.runtimes.engines.mil.ops import OPS
from flashbulb.runtimes.engines.mil.table import At

pytest.importorskip("coremltools")


def loops(x: Any) -> Any:
    """Count to a hundred, a hundred times."""
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools spells it

    def inner(i: Any) -> Any:
        def inside(j: Any) -> Any:
            return mb.add(x=j, y=np.float32(1))

        return mb.while_loop(
            _cond=lambda j: mb.less(x=j, y=np.float32(100)),
            _body=inside,
            loop_vars=(mb.mul(x=i, y=np.float32(0)),),
        )

    def body(i: Any, n: Any) -> Any:
        return mb.add(x=i, y=np.float32(1)), mb.add(x=n, y=inner(i))

    def more(i: Any, n: Any) -> Any:
        return mb.less(x=i, y=np.float32(100))

    return mb.while_loop(_cond=more, _body=body, loop_vars=(x, mb.mul(x=x, y=np.float32(0))))


@pytest.fixture
def nested(tools: SimpleNamespace, tmp_path: Path) -> Path:
    return tools.save_program(loops, {"x": np.zeros(1, np.float32)}, tmp_path / "loops.mlpackage")


def test_turns_are_summed_over_nested_loops(nested: Path) -> None:
    turns = 100 + 100 * 100
    program = Program.load(nested, max_turns=turns)
    for _ in range(2):  # each prediction has its own
        found = program.predict({"x": np.zeros(1, np.float32)})
        assert sorted(float(v[0]) for v in found.values()) == [100.0, 10_000.0]
    with pytest.raises(ProgramError, match=f"at most {turns - 1} turns of all loops"):
        Program.load(nested, max_turns=turns - 1).predict({"x": np.zeros(1, np.float32)})


def test_a_loop_that_does_not_end_ends_here(nested: Path) -> None:
    program, begin = Program.load(nested), time.process_time()
    with pytest.raises(ProgramError, match="turns of all loops"):
        program.predict({"x": np.full(1, -1e9, np.float32)})
    assert time.process_time() - begin < 30.0


@pytest.fixture
def filler(tools: SimpleNamespace, tmp_path: Path) -> Path:
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools spells it

    def build(sizes: Any) -> Any:
        return mb.reduce_sum(x=mb.fill(shape=sizes, value=np.float32(1)), axes=[0, 1, 2], keep_dims=True)

    return tools.save_program(build, {"sizes": np.ones(3, np.int32)}, tmp_path / "fill.mlpackage")


def test_a_value_that_no_weight_explains_is_refused_before_it_is_made(filler: Path) -> None:
    sizes, begin = np.full(3, 1000, np.int32), time.process_time()
    with pytest.raises(
        ProgramError, match=f"at most {LEAST_BYTES} bytes at once, this program makes 4000000"
    ):
        Program.load(filler).predict({"sizes": sizes})
    assert time.process_time() - begin < 1.0
    with pytest.raises(ProgramError, match="raise max_bytes="):
        Program.load(filler, max_bytes=3 << 10).predict({"sizes": np.full(3, 10, np.int32)})
    found = Program.load(filler, max_bytes=5 << 10).predict({"sizes": np.full(3, 10, np.int32)})
    assert [float(v.ravel()[0]) for v in found.values()] == [1000.0]


def test_live_values_are_summed_and_freed_ones_are_not(tools: SimpleNamespace, tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools spells it

    def chain(x: Any) -> Any:
        for _ in range(20):
            x = mb.add(x=x, y=np.float32(1))
        return x

    def kept(x: Any) -> Any:
        return mb.concat(values=[mb.reduce_sum(x=v, axes=[0]) for v in values(x)], axis=0)

    def values(x: Any) -> list[Any]:
        return [mb.add(x=x, y=np.float32(i)) for i in range(20)]

    given, size = {"x": np.zeros(1000, np.float32)}, 4000
    freed = tools.save_program(chain, given, tmp_path / "chain.mlpackage")
    Program.load(freed, max_bytes=4 * size).predict(given)
    held = tools.save_program(kept, given, tmp_path / "kept.mlpackage")
    Program.load(held, max_bytes=25 * size).predict(given)
    with pytest.raises(ProgramError, match="bytes at once"):
        Program.load(held, max_bytes=15 * size).predict(given)


def test_constants_count_and_weights_explain_values(tools: SimpleNamespace, tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools spells it

    given, table = {"x": np.zeros((1, 100), np.float32)}, np.ones((100, 100), np.float32)
    path = tools.save_program(lambda x: mb.matmul(x=x, y=table), given, tmp_path / "m.mlpackage")
    program = Program.load(path)
    stored = sum(w.nbytes for w in program.package.weights.values())
    assert stored >= table.nbytes
    assert program.budget.max_bytes == explained(program.package.weights) == LEAST_BYTES + 64 * stored
    with pytest.raises(ProgramError, match="bytes at once"):
        Program.load(path, max_bytes=table.nbytes - 1)


T, AT = torch.ones, At("y", 18, ())
GROWING: list[tuple[str, dict[str, Any]]] = [
    ("add", {"x": T(100, 1), "y": T(1, 100)}),
    ("real_div", {"x": T(100, 1), "y": T(1, 100)}),
    ("select", {"cond": T(100, 1), "a": T(1, 100), "b": T(1, 1)}),
    ("matmul", {"x": T(100, 1), "y": T(1, 100)}),
    ("linear", {"x": T(100, 1), "weight": T(100, 1)}),
    ("einsum", {"values": (T(100), T(100)), "equation": "i, j -> ij"}),
    ("conv", {"x": T(1, 1, 1, 1), "weight": T(1, 1, 1, 1), "pad_type": "custom", "pad": (50,) * 4}),
    ("conv", {"x": T(1, 1, 50, 50), "weight": T(10, 1, 1, 1)}),
    ("conv_transpose", {"x": T(1, 1, 2, 2), "weight": T(1, 1, 1, 1), "strides": (100, 100)}),
    ("conv_transpose", {"x": T(1, 1, 9, 9), "weight": T(1, 1, 1, 1), "output_shape": (1, 1, 99, 99)}),
    ("max_pool", {"x": T(1, 1, 1, 1), "kernel_sizes": (101, 101), "pad_type": "custom", "pad": (50,) * 4}),
    ("concat", {"values": (T(100),) * 100, "axis": 0}),
    ("stack", {"values": (T(100),) * 100, "axis": 0}),
    ("gather", {"x": T(1, 100), "indices": torch.zeros(100, dtype=torch.int32), "at": AT}),
    ("gather_nd", {"x": T(1, 100), "indices": torch.zeros(100, 1, dtype=torch.int32), "at": AT}),
    ("fill", {"shape": (100, 100)}),
    ("list_write", {"ls": [], "index": 100, "value": T(100)}),
]


@pytest.mark.parametrize(("name", "given"), GROWING, ids=[name for name, _ in GROWING])
def test_operations_that_make_much_of_little_ask_first(name: str, given: dict[str, Any]) -> None:
    with spending(Budget(max_bytes=20_000)):
        assert current().max_bytes == 20_000
        with pytest.raises(ProgramError, match="at most 20000 bytes at once"):
            OPS[name].function(**given)
    OPS[name].function(**given)
