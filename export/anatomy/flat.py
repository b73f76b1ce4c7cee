"""Read flatbuffers by the numbers of their fields, with bounds: damaged bytes end in an error, no crash."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from flashbulb.export.anatomy.listing import AnatomyError, Array

MOST = 50_000_000
"""Most elements of one vector of tables or texts."""
MOST_READS = 4
"""How often over a file may be read: sound ones are read about once."""
OBJECT_BYTES = 32
"""What a table or a text counts at least, beside its own bytes."""


class Reading:
    """What may still be read of a file: many offsets can lead to one place, and each costs memory."""

    __slots__ = ("left", "most")

    def __init__(self, size: int) -> None:
        self.left = self.most = MOST_READS * size + (1 << 16)

    def spend(self, size: int) -> None:
        """Count what is read.

        Raises:
            AnatomyError: when it is far more than the file holds.
        """
        self.left -= size
        if self.left < 0:
            raise AnatomyError(
                f"wanted parts of a program of at most {self.most} bytes together, got more: many share "
                "one place; do not use it"
            )

    def end(self) -> None:
        """Count no more: what is known by now may be read again and again."""
        self.left = 1 << 62


class Table:
    """One table at a position of a buffer; a field is the number of its place in the schema, from 0."""

    __slots__ = ("data", "fields", "position", "reading")

    def __init__(self, data: memoryview, position: int, reading: Reading) -> None:
        self.data, self.position, self.reading = data, position, reading
        vtable = position - _at(data, "<i", position)
        size = _at(data, "<H", vtable)
        count = max(0, (size - 4) // 2)
        _bounds(data, vtable + 4, 2 * count)
        reading.spend(OBJECT_BYTES + 2 * count)
        self.fields = struct.unpack_from(f"<{count}H", data, vtable + 4)

    @classmethod
    def root(cls, data: memoryview, start: int = 0, reading: Reading | None = None) -> Table:
        """Open the root table of a buffer that begins at a position; one in another has its reading."""
        return cls(data, start + _at(data, "<I", start), reading or Reading(len(data)))

    def has(self, field: int) -> bool:
        """Tell whether a field is stored."""
        return field < len(self.fields) and self.fields[field] != 0

    def number(self, field: int, kind: str = "i", default: float = 0) -> int | float:
        """Read a number of `struct`'s kind."""
        if not self.has(field):
            return default
        found: int | float = _at(self.data, f"<{kind}", self.position + self.fields[field])
        return found

    def integer(self, field: int, kind: str = "i", default: int = 0) -> int:
        """Read a whole number."""
        return int(self.number(field, kind, default))

    def table(self, field: int) -> Table | None:
        """Read a table, None where there is none."""
        return Table(self.data, self._follow(field), self.reading) if self.has(field) else None

    def text(self, field: int) -> str:
        """Read text; an absent one is empty."""
        return self._text(self._follow(field)) if self.has(field) else ""

    def array(self, field: int, dtype: str) -> Array:
        """Read a vector of numbers of numpy's type, without a copy."""
        if not self.has(field):
            return np.zeros(0, dtype)
        start = self._follow(field)
        count, kind = _at(self.data, "<I", start), np.dtype(dtype)
        _bounds(self.data, start + 4, count * kind.itemsize)
        self.reading.spend(count * kind.itemsize)
        return np.frombuffer(self.data, kind, count, start + 4)

    def texts(self, field: int) -> list[str]:
        """Read a vector of texts."""
        return [self._text(p) for p in self._elements(field)]

    def tables(self, field: int) -> list[Table]:
        """Read a vector of tables."""
        return [Table(self.data, p, self.reading) for p in self._elements(field)]

    def _follow(self, field: int) -> int:
        place = self.position + self.fields[field]
        return place + int(_at(self.data, "<I", place))

    def _text(self, start: int) -> str:
        count = _at(self.data, "<I", start)
        _bounds(self.data, start + 4, count)
        self.reading.spend(OBJECT_BYTES + count)
        return bytes(self.data[start + 4 : start + 4 + count]).decode(errors="replace")

    def _elements(self, field: int) -> Iterator[int]:
        if not self.has(field):
            return
        start = self._follow(field)
        count = _at(self.data, "<I", start)
        _bounds(self.data, start + 4, 4 * min(count, MOST + 1))
        for place in range(start + 4, start + 4 + 4 * count, 4):
            yield place + int(_at(self.data, "<I", place))


def _at(data: memoryview, kind: str, position: int) -> int:
    _bounds(data, position, struct.calcsize(kind))
    found: int = struct.unpack_from(kind, data, position)[0]
    return found


def _bounds(data: memoryview, position: int, size: int) -> None:
    if position < 0 or position + size > len(data):
        raise AnatomyError(
            f"wanted {size} bytes at {position} of a program, it has {len(data)}; the file is damaged"
        )
