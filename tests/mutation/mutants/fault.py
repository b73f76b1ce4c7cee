"""What a fault is, and how its places are chosen: the same ones for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")
Plant = Callable[[Path], None]
"""Edits the files of a bundle's folder; a file is replaced, never written into."""


class Refused(RuntimeError):
    """What is asked cannot be done; the words say why."""


class Fault(NamedTuple):
    """One thing wrong with a bundle."""

    name: str
    """Address: `format/component/kind/number`."""
    kind: str
    """Class of the fault, a row of the short table."""
    format: str
    """File format that is edited, or `tokenizer`, `golden`, `manifest`, `optimum`."""
    component: str
    """Component whose file is edited; empty for what belongs to the whole bundle."""
    about: str
    """What was changed, for people."""
    plant: Plant
    """How."""


class Planter:
    """Collects faults under one format and component, numbering those of one kind."""

    def __init__(self, fmt: str, component: str, seed: int) -> None:
        self.format, self.component, self.seed = fmt, component, seed
        self.faults: list[Fault] = []

    def add(self, kind: str, about: str, plant: Plant) -> None:
        """Add one fault."""
        number = sum(f.kind == kind for f in self.faults)
        address = "/".join(part for part in (self.format, self.component, kind, str(number)) if part)
        self.faults.append(Fault(address, kind, self.format, self.component, about, plant))

    def rng(self, kind: str) -> random.Random:
        """Return the chance of one kind: adding another kind does not move its places."""
        return random.Random(f"{self.seed}/{self.format}/{self.component}/{kind}")

    def pick(self, kind: str, places: Iterable[T], count: int) -> Sequence[T]:
        """Choose some places, fewer where there are fewer."""
        known = list(places)
        return self.rng(kind).sample(known, min(count, len(known)))


def replace(path: Path, data: bytes) -> None:
    """Put new bytes in the place of a file; other links to the old one keep theirs."""
    temporary = path.with_name(path.name + ".planted")
    temporary.write_bytes(data)
    temporary.replace(path)


def edited(relative: str, change: Callable[[bytearray], bytes | bytearray | None]) -> Plant:
    """Make a planter that changes the bytes of one file, in place or by what it returns."""

    def plant(root: Path) -> None:
        data = bytearray((root / relative).read_bytes())
        found = change(data)
        replace(root / relative, bytes(data if found is None else found))

    return plant
