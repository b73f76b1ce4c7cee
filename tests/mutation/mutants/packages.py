"""Faults in the operations and files of Core ML packages."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from mutants.constants import Open, planted
from mutants.fault import Planter
from mutants.mlpackage_view import MlpackageView

Edit = Callable[[Any], None]


def package_faults(planter: Planter, open_: Open, view: MlpackageView) -> None:
    """Add the faults of one package's operations."""
    _inputs(planter, open_, view, "eps", ("rsqrt", "batch_norm", "layer_norm"), "epsilon", _times(10))
    _inputs(planter, open_, view, "eps", ("fill_like",), "value", _times(10))
    _inputs(planter, open_, view, "eps", ("fill_like",), "value", _times(1000))
    _inputs(planter, open_, view, "gelu-mode", ("gelu",), "mode", _text("TANH_APPROXIMATION"))
    _inputs(planter, open_, view, "gelu-mode", ("gelu",), "mode", _text("SIGMOID_APPROXIMATION"))
    _inputs(planter, open_, view, "pads", ("conv",), "pad", _pads, fits=_padded)
    _inputs(planter, open_, view, "axis", ("softmax",), "axis", lambda v: _put(v, np.array(-2)))
    _inputs(planter, open_, view, "axis", ("reduce_mean",), "axes", _last)
    _inputs(planter, open_, view, "perm", ("transpose",), "perm", _turn)
    _inputs(planter, open_, view, "transpose-flag", ("matmul",), "transpose_y", _flag)
    _inputs(
        planter, open_, view, "stride", ("upsample_nearest_neighbor",), "scale_factor_height", _times(0.5)
    )
    for old, new in (
        ("silu", "sigmoid"),
        ("silu", "tanh"),
        ("rsqrt", "sqrt"),
        ("add", "sub"),
        ("real_div", "mul"),
    ):
        _retype(planter, open_, view, old, new)
    _reverse(planter, open_, view, "operands", "concat", "values", "values")
    _reverse(planter, open_, view, "operands", "sub", "x", "y")
    _reverse(planter, open_, view, "same-program", "add", "x", "y")
    _offsets(planter, open_, view)
    planter.add("same-program", "names of operations changed", planted(open_, _rename))
    description_faults(planter, open_)


def description_faults(planter: Planter, open_: Open) -> None:
    """Add the faults of what a package says of itself, which Core ML and apps read; the program is left."""
    for about, change in DESCRIPTIONS.items():

        def edit(view: Any, change: Edit = change) -> None:
            change(view.model.description)

        planter.add("description", about, planted(open_, edit))


def _output_renamed(description: Any) -> None:
    description.output[0].name += "_other"


def _input_doubled(description: Any) -> None:
    sizes = description.input[0].type.multiArrayType.shape
    sizes[-1] *= 2


def _input_retyped(description: Any) -> None:
    array = description.input[0].type.multiArrayType
    array.dataType = FLOAT32 if array.dataType == INT32 else INT32


def _output_halved(description: Any) -> None:
    description.output[0].type.multiArrayType.dataType = FLOAT16


def _emptied(description: Any) -> None:
    del description.input[:]
    del description.output[:]


def _optional(description: Any) -> None:
    description.input[0].type.isOptional = True


FLOAT16, FLOAT32, INT32 = 65552, 65568, 131104
DESCRIPTIONS: dict[str, Edit] = {
    "an output described by another name": _output_renamed,
    "an input described as twice as wide": _input_doubled,
    "an input described with another element type": _input_retyped,
    "an output described as float16": _output_halved,
    "no input or output described": _emptied,
    "an input described as optional": _optional,
}


def _times(factor: float) -> Edit:
    def edit(view_value: Any) -> None:
        view, value = view_value
        store = view.store(value)
        held = store.read()
        store.write(np.where(held == 0, np.array(6e-8), held * factor).astype(held.dtype))

    return edit


def _put(view_value: Any, array: Any) -> None:
    view, value = view_value
    view.store(value).write(array)


def _text(word: str) -> Edit:
    def edit(view_value: Any) -> None:
        strings = view_value[1].immediateValue.tensor.strings.values
        strings[:] = [word]

    return edit


def _flag(view_value: Any) -> None:
    flags = view_value[1].immediateValue.tensor.bools.values
    flags[:] = [not flags[0]] if flags else [True]


def _padded(view: MlpackageView, value: Any) -> bool:
    store = view.store(value)
    return store is not None and bool((store.read() == 1).all())


def _pads(view_value: Any) -> None:
    _put(view_value, np.array([0, 2, 0, 2]))


def _last(view_value: Any) -> None:
    view, value = view_value
    held = view.store(value).read()
    view.store(value).write(np.where(held == held.max(), 1, held) if held.size == 1 else held - 1)


def _turn(view_value: Any) -> None:
    view, value = view_value
    perm = view.store(value).read().copy()
    perm[[-3, -2]] = perm[[-2, -3]]
    view.store(value).write(perm)


def _inputs(
    planter: Planter,
    open_: Open,
    view: MlpackageView,
    kind: str,
    ops: tuple[str, ...],
    name: str,
    edit: Edit,
    fits: Callable[[MlpackageView, Any], bool] = lambda view, value: True,
) -> None:
    """Change a constant that one input of some operations takes, for that operation alone."""
    places = []
    for index, node in view.of(*ops):
        names = [a.name for a in node.ref.inputs[name].arguments] if name in node.ref.inputs else []
        if names and names[0] in view.immediates and fits(view, view.immediates[names[0]]):
            places.append(index)
    label = f"{kind}/{name}/{getattr(edit, '__qualname__', '')}/{len(planter.faults)}"
    for index in planter.pick(label, places, 1):

        def change(view: Any, index: int = index) -> None:
            edit((view, own_const(view, view.nodes[index].ref, name)))

        about = f"{name} of {view.nodes[index].op} {view.nodes[index].outputs[0]} changed"
        planter.add(kind, about, planted(open_, change))


def own_const(view: MlpackageView, op: Any, name: str) -> Any:
    """Give an operation a constant of its own for one input, and return its value."""
    shared = op.inputs[name].arguments[0].name
    place, source = next(
        (i, o)
        for i, o in enumerate(view.block.operations)
        if o.type == "const" and o.outputs[0].name == shared
    )
    fresh = type(source)()
    fresh.CopyFrom(source)
    fresh.outputs[0].name = f"{shared}_own"
    kept = [o.SerializeToString() for o in view.block.operations]
    before = [o.outputs[0].name for o in view.block.operations]
    op.inputs[name].arguments[0].name = f"{shared}_own"
    changed = next(i for i, o in enumerate(view.block.operations) if o.outputs[0].name == op.outputs[0].name)
    kept[changed] = view.block.operations[changed].SerializeToString()
    assert before[place] == shared
    del view.block.operations[:]
    for i, data in enumerate(kept):
        view.block.operations.add().ParseFromString(data)
        if i == place:
            view.block.operations.add().CopyFrom(fresh)
    return view.block.operations[place + 1].attributes["val"]


def _retype(planter: Planter, open_: Open, view: MlpackageView, old: str, new: str) -> None:
    places = [i for i, n in view.of(old) if old != "add" or not any(x in view.consts for x in n.inputs)]
    for index in planter.pick(f"op-replaced/{old}/{new}", places, 1):

        def edit(view: Any, index: int = index) -> None:
            view.nodes[index].ref.type = new
            if (old, new) == ("rsqrt", "sqrt"):
                del view.nodes[index].ref.inputs["epsilon"]

        about = f"{old} {view.nodes[index].outputs[0]} became {new}"
        planter.add("op-replaced", about, planted(open_, edit))


def _reverse(
    planter: Planter, open_: Open, view: MlpackageView, kind: str, op: str, one: str, other: str
) -> None:
    def edit(view: Any, index: int) -> None:
        inputs = view.nodes[index].ref.inputs
        names = [a.name for a in inputs[one].arguments]
        if one == other:
            for argument, name in zip(inputs[one].arguments, names[::-1], strict=True):
                argument.name = name
        else:
            inputs[one].arguments[0].name = inputs[other].arguments[0].name
            inputs[other].arguments[0].name = names[0]

    places = [i for i, n in view.of(op) if len(n.inputs) >= 2]
    for index in planter.pick(f"{kind}/{op}", places, 1):
        about = f"inputs of {op} {view.nodes[index].outputs[0]} swapped"
        planter.add(kind, about, planted(open_, lambda v, i=index: edit(v, i)))


def _offsets(planter: Planter, open_: Open, view: MlpackageView) -> None:
    """Let two constants of one type point at each other's data."""
    places: dict[Any, list[str]] = {}
    for name, value in view.immediates.items():
        if value.WhichOneof("value") == "blobFileValue" and view.consts[name].size >= 8:
            places.setdefault(value.type.SerializeToString(deterministic=True), []).append(name)
    every = (pair for names in places.values() for pair in itertools.pairwise(names))
    pairs = [pair for pair in every if _differ(view, pair)]
    for one, other in planter.pick("offsets-swapped", pairs, 1):

        def edit(view: Any, one: str = one, other: str = other) -> None:
            first, second = (view.immediates[n].blobFileValue for n in (one, other))
            first.offset, second.offset = second.offset, first.offset

        planter.add("offsets-swapped", f"offsets of {one} and {other} swapped", planted(open_, edit))


def _differ(view: MlpackageView, names: tuple[str, str]) -> bool:
    one, other = (view.consts[n].values.read() for n in names)
    return not np.array_equal(one, other)


def _rename(view: Any) -> None:
    for op in view.block.operations:
        if "name" in op.attributes:
            op.attributes["name"].immediateValue.tensor.strings.values[:] = ["x"]
