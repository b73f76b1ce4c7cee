"""Operations agree with coremltools' own `value_inference` (numpy) and decompression on random inputs.

Each case is built twice by one line: from constants, so that coremltools computes the result, and from
inputs, so that the saved program has to.  All cases share one package.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flashbulb.runtimes.engines.mil import Program
from flashbulb.runtimes.engines.mil.ops import OPS
from flashbulb.runtimes.engines.mil.ops.binary import PLAIN as BINARY
from flashbulb.runtimes.engines.mil.ops.reduction import PLAIN as REDUCTIONS
from flashbulb.runtimes.engines.mil.ops.unary import PLAIN as UNARY

pytest.importorskip("coremltools")
Case = tuple[str, Callable[..., Any], dict[str, np.ndarray]]
RNG = np.random.default_rng(0)


def floats(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    return RNG.uniform(low, high, shape).astype(np.float32)


def ints(*shape: int, low: int = 0, high: int = 6) -> np.ndarray:
    return RNG.integers(low, high, shape).astype(np.int32)


def bools(*shape: int) -> np.ndarray:
    return RNG.random(shape) > 0.5


DOMAINS = {
    "acos": (-0.9, 0.9),
    "asin": (-0.9, 0.9),
    "atanh": (-0.9, 0.9),
    "sqrt": (0.1, 4.0),
    "tan": (-1.2, 1.2),
}


def plain(name: str, **attributes: Any) -> Callable[..., Any]:
    """Build ``name`` on the inputs that it is given."""
    return lambda mb, **v: getattr(mb, name)(**v, **attributes)


def unary_cases() -> list[Case]:
    found = []
    for name in UNARY:
        low, high = DOMAINS.get(name, (-2.0, 2.0))
        x = bools(3, 4) if name == "logical_not" else floats(3, 4, low=low, high=high)
        found.append((name, plain(name), {"x": x}))
    small = {"epsilon": np.float32(0.25)}
    found += [(n, plain(n, **small), {"x": floats(3, 4, low=0.1)}) for n in ("inverse", "log", "rsqrt")]
    found.append(("clip", plain("clip", alpha=-0.5, beta=0.75), {"x": floats(3, 4)}))
    found.append(("threshold", plain("threshold", alpha=0.3), {"x": floats(3, 4)}))
    kinds = ("int32", "fp32", "bool")
    found += [("cast", plain("cast", dtype=d), {"x": floats(5, low=-3.0, high=3.0)}) for d in kinds]
    return found


def binary_cases() -> list[Case]:
    found = []
    for name in [*BINARY, "real_div"]:
        x, y = floats(3, 4, low=0.2), floats(4, low=0.2)
        if name.startswith("logical"):
            x, y = bools(3, 4), bools(3, 4)
        elif "equal" in name:
            x, y = ints(3, 4).astype(np.float32), ints(3, 4).astype(np.float32)
        found.append((name, plain(name), {"x": x, "y": y}))
    whole = {"x": ints(3, 4, low=-9, high=9), "y": ints(4, low=1, high=5)}
    found += [(n, plain(n), whole) for n in ("floor_div", "mod", "add", "mul", "sub", "maximum", "minimum")]
    found.append(("select", plain("select"), {"cond": bools(3, 4), "a": floats(3, 4), "b": floats(3, 4)}))
    return found


def activation_cases() -> list[Case]:
    x, channels = {"x": floats(2, 3, 4, 2)}, np.array([0.1, 0.5, 1.5], np.float32)
    two = {"alpha": np.float32(0.4), "beta": np.float32(0.7)}
    found = [(name, plain(name), x) for name in ("relu", "relu6", "sigmoid", "softplus", "softsign")]
    found += [(name, plain(name, **two), x) for name in ("clamped_relu", "scaled_tanh", "sigmoid_hard")]
    found += [
        (name, plain(name, alpha=np.float32(0.3)), x) for name in ("elu", "leaky_relu", "thresholded_relu")
    ]
    found += [
        ("gelu", plain("gelu", mode=m), x) for m in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")
    ]
    found += [("softmax", plain("softmax", axis=a), x) for a in (-1, 1)]
    found.append(("linear_activation", plain("linear_activation", **two), x))
    found.append(("prelu", plain("prelu", alpha=channels), x))
    found.append(("softplus_parametric", plain("softplus_parametric", alpha=channels, beta=channels), x))
    return found


def reduction_cases() -> list[Case]:
    found = []
    for name in REDUCTIONS:
        for axes, keep in (([1], True), ([-1, 0], False)):
            found.append((name, plain(name, axes=axes, keep_dims=keep), {"x": floats(2, 3, 4, low=0.2)}))
    where = ("reduce_argmax", "reduce_argmin")
    found += [(n, plain(n, axis=1, keep_dims=False), {"x": floats(2, 3, 4)}) for n in where]
    return found


def norm_cases() -> list[Case]:
    x, gamma, beta = {"x": floats(2, 3, 4, 5)}, floats(4, 5), floats(4, 5)
    norm = {"gamma": gamma, "beta": beta, "epsilon": np.float32(0.01)}
    return [
        ("layer_norm", plain("layer_norm", axes=[2, 3], **norm), x),
        ("layer_norm", plain("layer_norm", axes=[1], epsilon=np.float32(0.01)), x),
        ("l2_norm", plain("l2_norm", epsilon=np.float32(0.01)), x),
    ]


def linear_cases() -> list[Case]:
    return [
        ("matmul", plain("matmul"), {"x": floats(2, 3, 4), "y": floats(4, 5)}),
        ("matmul", plain("matmul", transpose_y=True), {"x": floats(2, 3, 4), "y": floats(2, 5, 4)}),
        ("matmul", plain("matmul", transpose_x=True), {"x": floats(4, 3), "y": floats(4, 5)}),
        ("linear", plain("linear", weight=floats(5, 4), bias=floats(5)), {"x": floats(2, 4)}),
        (
            "einsum",
            lambda mb, x, y: mb.einsum(values=(x, y), equation="abcd,adce->abce"),
            {"x": floats(2, 3, 4, 5), "y": floats(2, 5, 4, 3)},
        ),
    ]


def moving_cases() -> list[Case]:
    x = {"x": floats(2, 3, 4)}
    join = {"x": floats(2, 3), "y": floats(2, 3)}
    return [
        ("reshape", plain("reshape", shape=[4, -1]), x),
        ("reshape", plain("reshape", shape=[0, 12, 1]), x),
        ("expand_dims", plain("expand_dims", axes=[0, -1]), x),
        ("squeeze", plain("squeeze", axes=[1]), {"x": floats(2, 1, 3)}),
        ("transpose", plain("transpose", perm=[2, 0, 1]), x),
        ("concat", lambda mb, x, y: mb.concat(values=(x, y), axis=1), join),
        ("stack", lambda mb, x, y: mb.stack(values=(x, y), axis=1), join),
        ("split", lambda mb, x: mb.split(x=x, split_sizes=[1, 2], axis=1), x),
        ("tile", plain("tile", reps=[1, 2, 3]), x),
        ("flatten2d", plain("flatten2d", axis=2), x),
        ("identity", plain("identity"), x),
        ("reverse", plain("reverse", axes=[0, 2]), x),
        ("pad", plain("pad", pad=[1, 2, 0, 1], mode="constant", constant_val=np.float32(0.5)), x),
        ("pad", plain("pad", pad=[1, 2, 3, 1], mode="reflect"), x),
        ("pad", plain("pad", pad=[2, 2, 0, 3], mode="replicate"), x),
        ("band_part", plain("band_part", lower=1, upper=0), x),
        ("cumsum", plain("cumsum", axis=1, reverse=True), x),
        ("argsort", plain("argsort", axis=-1, ascending=True), x),
        ("topk", plain("topk", k=2, axis=-1, ascending=False), x),
        ("fill_like", lambda mb, x: mb.fill_like(ref_tensor=x, value=np.float32(1.5)), x),
    ]


def slicing_cases() -> list[Case]:
    x = {"x": floats(5, 6, 7)}
    cuts = {"begin": [4, 1, 0], "end": [0, -1, 5], "stride": [-2, 2, 1]}
    masks = {"begin_mask": [False, True, False], "end_mask": [True, False, False]}
    one = {"begin": [3, 0, 1], "end": [4, 6, 7], "squeeze_mask": [True, False, False]}
    return [
        ("slice_by_index", plain("slice_by_index", **cuts), x),
        ("slice_by_index", plain("slice_by_index", **cuts, **masks), x),
        ("slice_by_index", plain("slice_by_index", **one), x),
        ("slice_by_size", plain("slice_by_size", begin=[1, -3, 0], size=[2, 2, -1]), x),
        ("gather", plain("gather", indices=np.array([[2, 0], [1, 4]], np.int32), axis=1), x),
        (
            "gather",
            plain("gather", indices=np.array([[1], [0]], np.int32), axis=2, batch_dims=1),
            {"x": floats(2, 3, 4)},
        ),
        ("gather_along_axis", plain("gather_along_axis", indices=ints(5, 2, 7), axis=1), x),
        ("scatter_along_axis", scattered, {"x": floats(3, 4), "updates": floats(2, 4)}),
    ]


def scattered(mb: Any, x: Any, updates: Any) -> Any:
    where = np.array([[0, 1, 2, 0], [1, 2, 0, 2]], np.int32)
    return mb.scatter_along_axis(data=x, indices=where, updates=updates, axis=0, mode="update")


def cases() -> list[Case]:
    groups = (unary_cases, binary_cases, activation_cases, reduction_cases, norm_cases, linear_cases)
    return [c for group in (*groups, moving_cases, slicing_cases) for c in group()]


def oracle(case: Case) -> list[np.ndarray]:
    """Let coremltools compute a case from constants."""
    import coremltools as ct
    from coremltools.converters.mil import mil
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools spells it
    from coremltools.converters.mil.mil import Function

    _, build, inputs = case
    with Function({"unused": mb.placeholder(shape=(1,))}, opset_version=ct.target.iOS16) as function:
        found = build(mb, **{n: mb.const(val=a.copy()) for n, a in inputs.items()})
        many = list(found) if isinstance(found, list | tuple) else [found]
        function.set_outputs(many)
    mil.Program().add_function("main", function)
    return [np.asarray(v.val) for v in many if v.val is not None]


@pytest.fixture(scope="module")
def judged(
    tools: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Case, list[Any], list[Any]]]:
    """Every case with what coremltools and what the program computed."""
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools spells it

    table = [(case, wanted) for case in cases() if (wanted := oracle(case))]
    feeds = {f"i{n}_{k}": a for n, (c, _) in enumerate(table) for k, a in c[2].items()}
    names: list[list[str]] = []

    def build(**variables: Any) -> list[Any]:
        outputs = []
        for n, ((_, make, inputs), _) in enumerate(table):
            found = make(mb, **{k: variables[f"i{n}_{k}"] for k in inputs})
            many = [_shown(mb, v) for v in (found if isinstance(found, list | tuple) else [found])]
            names.append([v.name for v in many])
            outputs += many
        return outputs

    boolean = {k: a.astype(np.float32) if a.dtype == bool else a for k, a in feeds.items()}
    path = tools.save_program(
        lambda **v: build(**{k: _as(mb, v[k], feeds[k]) for k in v}),
        boolean,
        tmp_path_factory.mktemp("oracle") / "all.mlpackage",
    )
    found = Program.load(path).predict(boolean)
    return [(c, w, [found[n] for n in own]) for (c, w), own in zip(table, names, strict=True)]


def _as(mb: Any, variable: Any, array: np.ndarray) -> Any:
    return mb.cast(x=variable, dtype="bool") if array.dtype == bool else variable


def _shown(mb: Any, variable: Any) -> Any:
    """Models give no booleans."""
    from coremltools.converters.mil.mil import types

    return mb.cast(x=variable, dtype="fp32") if variable.dtype == types.bool else mb.identity(x=variable)


def test_every_case_agrees_with_coremltools(judged: list[tuple[Case, list[Any], list[Any]]]) -> None:
    assert len(judged) > 100
    for (name, _, _), wanted, found in judged:
        assert len(wanted) == len(found), name
        for w, f in zip(wanted, found, strict=True):
            assert tuple(w.shape or (1,)) == f.shape, name
            np.testing.assert_allclose(f, w.reshape(f.shape).astype(np.float64), 2e-5, 1e-6, err_msg=name)


def test_the_cases_reach_far_into_the_table(judged: list[tuple[Case, list[Any], list[Any]]]) -> None:
    assert len({name for (name, _, _), _, _ in judged} & set(OPS)) >= 85


def test_the_comparison_would_see_a_wrong_meaning(judged: list[tuple[Case, list[Any], list[Any]]]) -> None:
    import torch

    from flashbulb.runtimes.engines.mil.ops.activation import gelu

    (_, _, inputs), wanted, _ = next(j for j in judged if j[0][0] == "gelu")
    wrong = gelu(torch.from_numpy(inputs["x"]), "SIGMOID_APPROXIMATION").numpy()
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(wrong, wanted[0], 2e-5, 1e-6)
