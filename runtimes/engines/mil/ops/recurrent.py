"""Recurrent layers over a sequence (s b i), written as their equations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.table import op

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "linear": lambda x: x,
    "hard_sigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0.0, 1.0),
    "sigmoid_hard": lambda x: torch.clamp(0.2 * x + 0.5, 0.0, 1.0),
    "scaled_tanh": torch.tanh,  # both scales are 1 by default, and nothing can set them
}


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name.lower() not in ACTIVATIONS:
        raise ProgramError(f"wanted an activation of {list(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name.lower()]


def _order(x: Tensor, direction: str) -> Tensor:
    if direction not in ("forward", "reverse"):
        raise ProgramError(f"wanted forward or reverse, got {direction!r}")
    return x if direction == "forward" else torch.flip(x, [0])


def _result(steps: list[Tensor], whole: bool) -> Tensor:
    """Stack what came out of each step, in the order of the steps, or only the last."""
    return torch.stack(steps) if whole else steps[-1][None]


@op("rnn")
def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """Run a plain recurrent layer."""
    act, h, steps = _activation(activation), initial_h, []
    for part in F.linear(_order(x, direction), weight_ih, bias):
        h = act(part + F.linear(h, weight_hh))
        steps.append(h)
    return _result(steps, output_sequence), h


@op("gru")
def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run gated recurrent units; weights stand in the order reset, output, update."""
    gate, act, h, steps = _activation(recurrent_activation), _activation(activation), initial_h, []
    zeros = x.new_zeros(weight_hh.shape[0])
    hidden = (zeros if bias is None else bias).chunk(3)
    reset_h, out_h, update_h = weight_hh.chunk(3)
    for part in F.linear(_order(x, direction), weight_ih, input_bias):
        reset_x, out_x, update_x = part.chunk(3, -1)
        r = gate(reset_x + F.linear(h, reset_h, hidden[0]))
        z = gate(update_x + F.linear(h, update_h, hidden[2]))
        if reset_after:
            o = act(out_x + r * F.linear(h, out_h, hidden[1]))
        else:
            o = act(out_x + F.linear(r * h, out_h, hidden[1]))
        h = (1 - z) * o + z * h
        steps.append(h)
    return _result(steps, output_sequence), h


@op("lstm")
def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run long short-term memory, one way or both; weights stand in the order input, forget, output, cell."""
    functions = (_activation(recurrent_activation), _activation(cell_activation), _activation(activation))
    ways = [("forward" if direction == "bidirectional" else direction, weight_ih, weight_hh, bias, peephole)]
    if direction == "bidirectional":
        if weight_ih_back is None or weight_hh_back is None:
            raise ProgramError("wanted weights of the way back, got none")
        ways.append(("reverse", weight_ih_back, weight_hh_back, bias_back, peephole_back))
    starts = zip(initial_h.chunk(len(ways), -1), initial_c.chunk(len(ways), -1), strict=True)
    found = [
        _one_way(_order(x, way), h, c, wi, wh, b, p, functions, clip, output_sequence)
        for (way, wi, wh, b, p), (h, c) in zip(ways, starts, strict=True)
    ]
    if len(found) == 2:  # only here the way back is put into the order of the sequence
        found[1] = (torch.flip(found[1][0], [0]), *found[1][1:])
    outputs, h_last, c_last = (torch.cat([f[i] for f in found], -1) for i in range(3))
    return outputs, h_last, c_last


def _one_way(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    functions: tuple[Callable[[Tensor], Tensor], ...],
    clip: float | None,
    whole: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    gate, cell, act = functions
    eyes = (0.0, 0.0, 0.0) if peephole is None else peephole.chunk(3)
    steps = []
    for part in F.linear(x, weight_ih, bias):
        i, f, o, z = (part + F.linear(h, weight_hh)).chunk(4, -1)
        i, f, z = gate(i + eyes[0] * c), gate(f + eyes[1] * c), cell(z)
        c = f * c + i * z
        c = c if clip is None else c.clamp(-clip, clip)
        h = gate(o + eyes[2] * c) * act(c)
        steps.append(h)
    return _result(steps, whole), h, c
