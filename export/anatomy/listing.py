"""A program as a list of operations and constants, whatever file it came from.  Numpy only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
SHOWN = 8
"""Values up to this count are written out; of larger ones the digest is."""


class AnatomyError(ValueError):
    """A program that cannot be taken apart: it is damaged, or of a kind that was not read yet."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that is stored in a program, as its operations see it: decoded."""

    load: Callable[[], Array]
    """Reads it, and decodes it where it is stored as codes."""
    scale: Callable[[], Array] | None = None
    """Steps of integer codes, of a shape that broadcasts; None where it is not stored so."""
    table: Callable[[], Array] | None = None
    """Entries of a palette; None where there is none."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation."""

    op: str
    inputs: tuple[str, ...]
    """Names of the values that it takes, constants included."""
    outputs: tuple[str, ...]
    line: str
    """Everything that decides what it computes, for people and for comparison."""
    attributes: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Its attributes, in formats that name them."""


@dataclass(frozen=True, slots=True)
class Listing:
    """One program."""

    nodes: tuple[Node, ...]
    """Operations, in an order in which they can run; those that decode constants are left out."""
    constants: Mapping[str, Constant]
    """Every stored value by name, codes counted as the value that they decode to."""
    lines: Mapping[str, str] = field(default_factory=dict)
    """The whole program as text: name -> line, the contents of all constants as digests."""


def spell(values: Any) -> str:
    """Write values for people where they are few, or their digest."""
    array = np.asarray(values)
    kind = f"{array.dtype}{list(array.shape)}"
    if array.size <= SHOWN:
        return f"{kind} {array.ravel().tolist()}"
    return f"{kind} #{digest(np.ascontiguousarray(array).tobytes())}"


def digest(data: bytes | memoryview) -> str:
    """Return a short digest of some bytes."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def arrange(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """Order nodes so that each comes after those that it needs; a value that nobody makes counts as known.

    Raises:
        AnatomyError: when they form a circle.
    """
    left = list(nodes)
    makers = {name: node for node in left for name in node.outputs}
    waiting = {id(n): {i for i in n.inputs if i in makers and makers[i] is not n} for n in left}
    users: dict[str, list[Node]] = {}
    for node in left:
        for name in waiting[id(node)]:
            users.setdefault(name, []).append(node)
    ready = [n for n in reversed(left) if not waiting[id(n)]]
    found = []
    while ready:
        node = ready.pop()
        found.append(node)
        for name in node.outputs:
            for user in reversed(users.pop(name, [])):  # once: a damaged program may make a value twice
                waiting[id(user)].discard(name)
                if not waiting[id(user)]:
                    ready.append(user)
    if len(found) != len(left):
        raise AnatomyError("wanted operations that follow one another, got a circle; export it again")
    return tuple(found)
