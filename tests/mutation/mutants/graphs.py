"""Faults in the operations of ONNX files and of the runtime's own format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mutants.constants import Open, planted
from mutants.fault import Planter
from mutants.onnx_view import OnnxView
from mutants.view import View

Value = Callable[[Any], Any]


def _shifted(pads: list[int]) -> list[int]:
    """Move a padding up and to the left without a change of shape."""
    half = len(pads) // 2
    return [*(p - 1 for p in pads[:half]), *(p + 1 for p in pads[half:])]


def _turned(perm: list[int]) -> list[int]:
    """Exchange two axes, none of which is the batch: one picture does not notice where its axis of 1 lies."""
    if len(perm) == 3 and perm[0] == 0:
        return [0, perm[2], perm[1]]
    return [*perm[:-3], perm[-2], perm[-3], perm[-1]] if len(perm) > 3 else [perm[1], perm[0], *perm[2:]]


EDITS: tuple[tuple[str, str, str, Value, Callable[[Any], bool]], ...] = (
    ("eps", "*", "epsilon", lambda v: v * 10, lambda v: v > 0),
    ("eps", "*", "epsilon", lambda v: v * 1000, lambda v: v > 0),
    ("gelu-mode", "Gelu", "approximate", lambda v: b"tanh", lambda v: v == b"none"),
    ("pads", "Conv", "pads", _shifted, lambda v: all(v)),
    ("axis", "Softmax", "axis", lambda v: -2, lambda v: v == -1),
    ("perm", "Transpose", "perm", _turned, lambda v: len(v) >= 3),
    ("axis", "Concat", "axis", lambda v: 2, lambda v: v == 1),
    ("resize-mode", "Resize", "nearest_mode", lambda v: b"ceil ".strip(), lambda v: v == b"floor"),
    (
        "resize-mode",
        "Resize",
        "coordinate_transformation_mode",
        lambda v: b"half_pixel",
        lambda v: v == b"asymmetric",
    ),
    ("factor", "FusedMatMul", "alpha", lambda v: v * 1.1, lambda v: True),
    ("transpose-flag", "FusedMatMul", "transB", lambda v: 1 - v, lambda v: True),
    ("transpose-flag", "Gemm", "transB", lambda v: 1 - v, lambda v: True),
    ("bias-dropped", "Gemm", "beta", lambda v: 0.0, lambda v: v == 1),
    ("activation", "QuickGelu", "alpha", lambda v: 1.702, lambda v: abs(v - 1.702) > 1e-3),
    ("same-program", "Reshape", "allowzero", lambda v: 1 - v, lambda v: True),
    ("same-program", "Resize", "cubic_coeff_a", lambda v: -0.5, lambda v: True),
    ("same-program", "Resize", "nearest_mode", lambda v: b"round_prefer_floor", lambda v: v == b"floor"),
)
"""Kind, operation, attribute, its new value, and which old ones are edited."""


def attribute_faults(planter: Planter, open_: Open, view: Any) -> None:
    """Add one fault for each attribute that the program has."""
    for number, (kind, op, name, change, fits) in enumerate(EDITS):
        places = [
            i
            for i, node in enumerate(view.nodes)
            if op in ("*", node.op)
            and name in (held := view.attributes(i))
            and fits(held[name])
            and view.writable(i, name)
        ]
        for index in planter.pick(f"{kind}/{number}", places, 1):
            old = view.attributes(index)[name]
            new = change(old)
            if planter.format == "ort" and isinstance(old, bytes) and len(old) != len(new):
                continue  # texts are written in place

            def edit(view: Any, index: int = index, name: str = name, new: Any = new) -> None:
                view.set_attribute(index, name, new)

            about = f"{name} of {view.nodes[index].op} {view.nodes[index].outputs[0]} from {old} to {new}"
            planter.add(kind, about, planted(open_, edit))


def wiring_faults(planter: Planter, open_: Open, view: OnnxView) -> None:
    """Add what takes another operation or another input; only ONNX files are wired by name."""
    for kind, old, new in (("op-replaced", "Sigmoid", "Tanh"), ("op-replaced", "Add", "Sub")):
        places = [i for i, n in view.of(old) if not any(x in view.consts for x in n.inputs[1:])]
        for index in planter.pick(f"{kind}/{old}", places, 1):

            def replace(view: Any, index: int = index, new: str = new) -> None:
                view.nodes[index].ref.op_type = new

            about = f"{old} {view.nodes[index].outputs[0]} became {new}"
            planter.add(kind, about, planted(open_, replace))
    for kind, op in (("operands", "Concat"), ("operands", "MatMul"), ("same-program", "Add")):
        places = [i for i, n in view.of(op) if not any(x in view.consts for x in n.inputs)]
        for index in planter.pick(f"{kind}/{op}", places, 1):
            about = f"inputs of {op} {view.nodes[index].outputs[0]} in reverse"
            planter.add(kind, about, planted(open_, _reverse(index)))
    _cuts(planter, open_)
    planter.add("same-program", "stored weights in reverse, names of nodes dropped", planted(open_, _shuffle))


def _reverse(index: int) -> Callable[[View], None]:
    def change(view: View) -> None:
        node = view.nodes[index].ref
        names = list(node.input)[::-1]
        del node.input[:]
        node.input.extend(names)

    return change


def _cuts(planter: Planter, open_: Open) -> None:
    """Cut an input off: the program no longer sees it, and still keeps its contract."""
    cut = {"unet": ("hidden", "sample"), "text_encoder": ("input_ids",), "generator": ("input_ids", "noise")}

    for name in cut.get(planter.component, ()):

        def remove(view: Any, name: str = name) -> None:
            kind = next(i.type.tensor_type for i in view.model.graph.input if i.name == name)
            shape = [d.dim_value for d in kind.shape.dim]
            view.redirect(name, f"{name}.cut")
            view.add_const(
                f"{name}.cut", np.zeros(shape, {1: np.float32, 6: np.int32, 7: np.int64}[kind.elem_type])
            )

        kind = "condition-cut" if name in ("hidden", "input_ids") else "noise-cut"
        planter.add(kind, f"the input {name} replaced by zeros", planted(open_, remove))


def _shuffle(view: Any) -> None:
    graph = view.model.graph
    held = [t.SerializeToString() for t in graph.initializer][::-1]
    for tensor, data in zip(graph.initializer, held, strict=True):
        tensor.ParseFromString(data)
    for node in graph.node:
        node.name = ""
