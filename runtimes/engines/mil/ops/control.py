"""Branches, loops, state, and the end of a classifier."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flashbulb.runtimes.engines.mil.budget import current
from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.table import Blocks, State, Tensors, op


@op("cond", exact=True)
def cond(pred: bool, blocks: Blocks) -> tuple[Any, ...]:
    """Run the first block or the second."""
    return tuple(blocks[0 if pred else 1]())


@op("while_loop", exact=True)
def while_loop(loop_vars: Tensors, blocks: Blocks) -> tuple[Any, ...]:
    """Run the second block while the first one says so."""
    values, budget = list[Any](loop_vars), current()
    while bool(blocks[0](*values)[0]):
        budget.turn()
        values = blocks[1](*values)
    return tuple(values)


@op("read_state", exact=True)
def read_state(input: State) -> Tensor:  # noqa: A002 - MIL's name of it
    """Return a state's content."""
    return input.value


@op("write_state", exact=True)
def write_state(input: State, data: Tensor) -> tuple[()]:  # noqa: A002 - MIL's name of it
    """Replace a state's content."""
    if data.shape != input.value.shape:
        raise ProgramError(f"wanted a state of shape {list(input.value.shape)}, got {list(data.shape)}")
    input.value = data.clone()
    return ()


@op("classify", exact=True)
def classify(probabilities: Tensor, classes: list[Any]) -> tuple[Any, dict[Any, float]]:
    """Return the likeliest class, and the probability of each."""
    values = probabilities.reshape(-1).tolist()
    if len(values) != len(classes):
        raise ProgramError(f"wanted {len(classes)} probabilities, got {len(values)}")
    best = max(range(len(values)), key=values.__getitem__)
    return classes[best], dict(zip(classes, values, strict=True))
