"""Every intermediate value of a Core ML program, by the interpreter: of the package, or of its exact twin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flashbulb.export.anatomy.listing import Array, Node
from flashbulb.runtimes.engines.mil.program import Program


def values(
    program: Program, nodes: tuple[Node, ...], inputs: Mapping[str, Array]
) -> Iterator[tuple[str, Array]]:
    """Run a program and yield the value of every operation.

    Raises:
        ProgramError: when an operation cannot run.
    """
    outputs = {n.outputs[0]: list(n.outputs) for n in nodes if n.outputs}
    found: list[tuple[str, Array]] = []

    def watch(op: str, name: str, value: Any) -> None:
        left = outputs.get(name)
        if left:  # an operation of several outputs is told once for each
            found.append((left.pop(0), np.array(value.numpy())))

    program.predict({s.name: inputs[s.name] for s in program.inputs}, watch=watch)
    yield from found
