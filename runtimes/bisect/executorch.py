"""Every intermediate value of a `.pte` method, computed from the file itself, node by node.

The wheel's runtime tells nothing of what happens inside an XNNPACK delegate: its events carry times, no
tensors, and a whole component is one delegate.  So the graph in the file is run here with torch, one
operator per node.  Where its result is not the runtime's, the kernels are at fault, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from flashbulb.export.anatomy.listing import AnatomyError, Array
from flashbulb.export.anatomy.pte import Method
from flashbulb.export.anatomy.xnnpack import NOTHING, Graph, Step

if TYPE_CHECKING:
    from torch import Tensor

    Values = dict[str, Tensor]

TRANSPOSED_WEIGHTS = 1
"""XNNPACK's flag of a fully connected layer whose filter is (in, out)."""


def values(method: Method, inputs: Mapping[str, Array], names: list[str]) -> Iterator[tuple[str, Array]]:
    """Run a method and yield the value of every node.

    Args:
        method: what was read from the file.
        inputs: arrays by name.
        names: the names of the method's inputs, in order.

    Raises:
        AnatomyError: for an operation that is not known here.
    """
    import torch

    held: Values = {n: torch.from_numpy(np.array(c.load())) for n, c in method.listing.constants.items()}
    for slot, name in zip(method.inputs, names, strict=True):
        held[slot] = torch.from_numpy(np.ascontiguousarray(inputs[name]))
    for call in method.calls:
        try:
            if call.graph is None:
                yield _kernel(call.op, call.args, held)
            else:
                yield from _graph(call.graph, call.args, held)
        except (RuntimeError, LookupError) as error:  # as torch says that shapes do not fit
            raise AnatomyError(f"wanted a sound call of {call.op}, got: {error}; export it again") from error


def _kernel(op: str, args: list[str], held: Values) -> tuple[str, Array]:
    if not op.startswith("aten::embedding"):
        raise AnatomyError(f"wanted an operation that is known here, got {op}; extend {__name__}")
    held[args[-1]] = held[args[0]][held[args[1]].long()]
    return args[-1], held[args[-1]].numpy()


def _graph(graph: Graph, args: list[str], held: Values) -> Iterator[tuple[str, Array]]:
    names = dict(zip([*graph.inputs, *graph.outputs], args, strict=True))
    own: Values = {n: held[names[n]].reshape(graph.shapes[n]) for n in graph.inputs}
    own |= {n: held[n] for n in graph.constants if n in held}
    for node in graph.nodes:
        (output,) = node.outputs
        step = graph.steps[output]
        if step.op not in OPERATORS:
            raise AnatomyError(
                f"wanted an operation of {sorted(OPERATORS)}, got {step.op}; extend {__name__}"
            )
        found = OPERATORS[step.op](step, *(own[i] for i in node.inputs))
        if step.bounds is not None:
            found = found.clamp(*step.bounds)
        own[output] = found.reshape(graph.shapes[output])
        if output in names:
            held[names[output]] = own[output]
        yield names.get(output, output), own[output].numpy()


def _torch() -> Any:
    import torch

    return torch


def _convolution(step: Step, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve (n, h, w, c) with (out, h, w, in)."""
    f = step.fields
    functional = _torch().nn.functional
    pads = [f["padding_left"], f["padding_right"], f["padding_top"], f["padding_bottom"]]
    return functional.conv2d(
        functional.pad(x.permute(0, 3, 1, 2), pads),
        weight.permute(0, 3, 1, 2),
        bias,
        stride=(f["subsampling_height"], f["subsampling_width"]),
        dilation=(f["dilation_height"], f["dilation_width"]),
        groups=f["groups"],
    ).permute(0, 2, 3, 1)


def _connected(step: Step, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    matrix = weight.T if int(_number(step, "flags")) & TRANSPOSED_WEIGHTS else weight
    return _torch().nn.functional.linear(x, matrix, bias)


def _slice(step: Step, x: Tensor) -> Tensor:
    for axis, (start, size) in enumerate(zip(_list(step, "offsets"), _list(step, "sizes"), strict=True)):
        x = x.narrow(axis, start, size)
    return x


def _pad(step: Step, x: Tensor) -> Tensor:
    pairs = zip(_list(step, "pre_paddings"), _list(step, "post_paddings"), strict=True)
    flat = [n for pair in reversed(list(pairs)) for n in pair]
    return _torch().nn.functional.pad(x, flat, value=_number(step, "padding_value"))


def _list(step: Step, name: str) -> list[int]:
    found = step.fields[name]
    if not isinstance(found, list):
        raise AnatomyError(f"wanted a list as {name} of {step.op}, got {found}")
    return found


def _number(step: Step, name: str) -> float:
    found = step.fields[name]
    if isinstance(found, list) or found == NOTHING:
        raise AnatomyError(f"wanted a number as {name} of {step.op}, got {found}")
    return found


def _join(step: Step, *parts: Tensor) -> Tensor:
    return _torch().cat(parts, dim=int(_number(step, "axis")))


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Abs": lambda s, x: x.abs(),
    "Add": lambda s, x, y: x + y,
    "BatchMatrixMultiply": lambda s, x, y: x @ y,
    "Ceiling": lambda s, x: x.ceil(),
    "Clamp": lambda s, x: x,
    "Concatenate2": _join,
    "Concatenate3": _join,
    "Concatenate4": _join,
    "Concatenate5": _join,
    "Conv2d": _convolution,
    "Copy": lambda s, x: x,
    "Cos": lambda s, x: x.cos(),
    "Div": lambda s, x, y: x / y,
    "Exp": lambda s, x: x.exp(),
    "Floor": lambda s, x: x.floor(),
    "FullyConnected": _connected,
    "Gelu": lambda s, x: _torch().nn.functional.gelu(x),
    "GlobalAvgPooling2d": lambda s, x: x.mean((1, 2), keepdim=True),
    "Hardswish": lambda s, x: _torch().nn.functional.hardswish(x),
    "LeakyReLU": lambda s, x: _torch().nn.functional.leaky_relu(x, _number(s, "negative_slope")),
    "Log": lambda s, x: x.log(),
    "Maximum": lambda s, x, y: x.maximum(y),
    "Minimum": lambda s, x, y: x.minimum(y),
    "Multiply": lambda s, x, y: x * y,
    "Negate": lambda s, x: -x,
    "ReciprocalSquareRoot": lambda s, x: x.rsqrt(),
    "Sigmoid": lambda s, x: x.sigmoid(),
    "Sin": lambda s, x: x.sin(),
    "Softmax": lambda s, x: x.softmax(-1),
    "Square": lambda s, x: x * x,
    "SquareRoot": lambda s, x: x.sqrt(),
    "StaticConstantPad": _pad,
    "StaticReshape": lambda s, x: x,
    "StaticSlice": _slice,
    "StaticTranspose": lambda s, x: x.permute(_list(s, "perm")),
    "Subtract": lambda s, x, y: x - y,
    "Tanh": lambda s, x: x.tanh(),
}
"""XNNPACK's nodes as torch computes them; results take the shape that the graph declares."""
