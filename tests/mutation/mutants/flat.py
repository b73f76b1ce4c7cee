"""Flatbuffers, read by the numbers of their fields and changed in place: nothing moves."""

from __future__ import annotations

import struct
from typing import Any


class Table:
    """One table at a position of some bytes."""

    def __init__(self, data: bytearray, position: int) -> None:
        self.data, self.position = data, position

    @classmethod
    def root(cls, data: bytearray, start: int = 0) -> Table:
        """Open the root table of a buffer that begins at a position."""
        return cls(data, start + struct.unpack_from("<I", data, start)[0])

    def at(self, field: int) -> int | None:
        """Return where a field's bytes are; None for one that is not stored."""
        table = self.position - struct.unpack_from("<i", self.data, self.position)[0]
        if 4 + 2 * field >= struct.unpack_from("<H", self.data, table)[0]:
            return None
        offset = struct.unpack_from("<H", self.data, table + 4 + 2 * field)[0]
        return self.position + offset if offset else None

    def number(self, field: int, kind: str = "I", default: float = 0) -> Any:
        """Read a number of `struct`'s kind."""
        place = self.at(field)
        return default if place is None else struct.unpack_from("<" + kind, self.data, place)[0]

    def put(self, field: int, kind: str, value: float) -> bool:
        """Write a number over the old one; False where none is stored."""
        place = self.at(field)
        if place is not None:
            struct.pack_into("<" + kind, self.data, place, value)
        return place is not None

    def follow(self, field: int) -> int | None:
        """Return where a field leads."""
        place = self.at(field)
        return None if place is None else place + struct.unpack_from("<I", self.data, place)[0]

    def table(self, field: int) -> Table | None:
        """Open a table that a field leads to."""
        place = self.follow(field)
        return None if place is None else Table(self.data, place)

    def span(self, field: int) -> tuple[int, int]:
        """Return start and number of elements of a vector; (0, 0) where there is none."""
        place = self.follow(field)
        return (0, 0) if place is None else (place + 4, struct.unpack_from("<I", self.data, place)[0])

    def numbers(self, field: int, kind: str = "I") -> list[Any]:
        """Read a vector of numbers."""
        start, count = self.span(field)
        return list(struct.unpack_from(f"<{count}{kind}", self.data, start)) if count else []

    def put_numbers(self, field: int, kind: str, values: list[Any]) -> None:
        """Write a vector of as many numbers over the old one."""
        start, count = self.span(field)
        struct.pack_into(f"<{count}{kind}", self.data, start, *values)

    def tables(self, field: int) -> list[Table]:
        """Open a vector of tables."""
        return [Table(self.data, p) for p in self._elements(field)]

    def texts(self, field: int) -> list[str]:
        """Read a vector of texts."""
        return [_text(self.data, p) for p in self._elements(field)]

    def text(self, field: int) -> str:
        """Read a text; an absent one is empty."""
        place = self.follow(field)
        return "" if place is None else _text(self.data, place)

    def _elements(self, field: int) -> list[int]:
        start, count = self.span(field)
        places = range(start, start + 4 * count, 4)
        return [p + struct.unpack_from("<I", self.data, p)[0] for p in places]


def _text(data: bytearray, place: int) -> str:
    count = struct.unpack_from("<I", data, place)[0]
    return data[place + 4 : place + 4 + count].decode(errors="replace")
