"""Protobuf as a tree, without its schema: a message is a list of [field number, wire type, value].

What lies in a field may be a message as well; then it is taken apart too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Tree = list[list[Any]]


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a number; raise IndexError behind the end."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def tree(data: bytes) -> Tree | None:
    """Split a message, and what could be one inside it; None when the bytes are none."""
    found: Tree = []
    at = 0
    try:
        while at < len(data):
            key, at = varint(data, at)
            kind = key & 7
            if not key >> 3 or kind not in (0, 1, 2, 5):
                return None
            if kind == 0:
                value, at = varint(data, at)
                found.append([key >> 3, kind, value])
                continue
            size, at = varint(data, at) if kind == 2 else (8 if kind == 1 else 4, at)
            part = data[at : at + size]
            if len(part) != size:
                return None
            inside = tree(part) if kind == 2 and size > 1 and not words(part) else None
            inside = inside if inside is not None and flat(inside) == part else None
            found.append([key >> 3, kind, part if inside is None else inside])
            at += size
    except IndexError:
        return None
    return found


def words(part: bytes) -> bool:
    """Tell text that names something from a message."""
    return part.isascii() and part.decode().isprintable() and len(part) > 2


def number(value: int) -> bytes:
    """Write a number as protobuf does."""
    value, out = value & (2**64 - 1), bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def flat(message: Tree, known: dict[int, bytes] | None = None) -> bytes:
    """Write a tree, with the right sizes; of a message that is known its bytes are taken."""
    if known and (told := known.get(id(message))) is not None:
        return told
    out = bytearray()
    for field, kind, value in message:
        out += number(field << 3 | kind)
        if kind == 0:
            out += number(value)
        else:
            data = flat(value, known) if isinstance(value, list) else value
            out += (number(len(data)) if kind == 2 else b"") + data
    return bytes(out)


def fields(message: Tree) -> Iterator[list[Any]]:
    """Yield every field of a tree, each before those inside it."""
    for field in message:
        yield field
        if isinstance(field[2], list):
            yield from fields(field[2])


class Sound:
    """A sound message.  It is broken in copies of what lies above a place; all else is shared, and known."""

    def __init__(self, data: bytes) -> None:
        self.tree = tree(data) or []
        assert flat(self.tree) == data, "a sound file does not survive being taken apart"
        self._inside = [f[2] for f in fields(self.tree) if isinstance(f[2], list)]
        self._bytes = {id(message): flat(message) for message in self._inside}
        self._counts = {id(message): sum(1 for _ in fields(message)) for message in self._inside}

    def flat(self, message: Tree) -> bytes:
        """Write a broken copy."""
        return flat(message, self._bytes)

    def count(self, message: Tree) -> int:
        """Count the fields of a broken copy."""
        told = self._counts.get(id(message))
        inside = (self.count(f[2]) for f in message if isinstance(f[2], list))
        return len(message) + sum(inside) if told is None else told

    def place(self, message: Tree, which: int) -> list[int]:
        """Return the way to a field: its index on each level."""
        way: list[int] = []
        while True:
            for index, field in enumerate(message):
                if which == 0:
                    return [*way, index]
                which -= 1
                inside = self.count(field[2]) if isinstance(field[2], list) else 0
                if which < inside:
                    way.append(index)
                    message = field[2]
                    break
                which -= inside


def field_at(message: Tree, way: list[int]) -> list[Any]:
    """Return a field."""
    for index in way[:-1]:
        message = message[index][2]
    return message[way[-1]]


def put(message: Tree, way: list[int], new: list[list[Any]]) -> Tree:
    """Copy a tree with others in the place of one field."""
    index, *rest = way
    if rest:
        number_, kind, inside = message[index]
        new = [[number_, kind, put(inside, rest, new)]]
    return [*message[:index], *new, *message[index + 1 :]]


def texts(message: Tree) -> set[bytes]:
    """Return the words inside a message."""
    values = [field[2] for field in fields(message)]
    return {v for v in values if isinstance(v, bytes) and words(v)}
