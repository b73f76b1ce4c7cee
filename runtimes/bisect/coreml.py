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
    """Run a program and yield the first value of every output of every operation.

    Raises:
        ProgramError: when an operation cannot run.
    """
    outputs = {name for n in nodes for name in n.outputs}
    found: dict[str, Array] = {}

    def watch(op: str, name: str, value: Any) -> None:
        if name in outputs and name not in found:  # a loop's comes again in every turn
            found[name] = np.array(value.numpy())

    program.predict({s.name: inputs[s.name] for s in program.inputs}, watch=watch)
    yield from found.items()
