"""Protobuf's wire format, read with bounds: a damaged or hostile file ends in an error, never in a hang."""

from __future__ import annotations

from typing import Any

import numpy as np

from flashbulb.runtimes.engines.mil.errors import ProgramError

Field = int | memoryview
Message = dict[int, list[Field]]
"""Field number -> its values, in the order of the file."""

MAX_FIELDS = 5_000_000
"""Fields in one file, a gigabyte once split; the program of a billion-weight UNet has half a million."""
MAX_DEPTH = 64
"""Nesting of blocks, types and values."""


class Reader:
    """Splits messages into fields and counts them."""

    def __init__(self, limit: int = MAX_FIELDS) -> None:
        self.left = limit

    def message(self, data: Field) -> Message:
        """Split one message into its fields; numbers are unsigned, the rest stays bytes.

        Raises:
            ProgramError: when the bytes are no message, or the file has too many fields.
        """
        if isinstance(data, int):
            raise ProgramError("wanted a message in the model file, got a number; the file is damaged")
        found: Message = {}
        position, end = 0, len(data)
        while position < end:
            key, position = varint(data, position)
            value, position = _value(data, position, key & 7)
            number = key >> 3
            if number in found:
                found[number].append(value)
            else:
                found[number] = [value]
            self.left -= 1
            if self.left < 0:
                raise ProgramError(
                    "wanted a model file of a bounded number of fields, got more; do not use it"
                )
        return found


def _value(data: memoryview, position: int, kind: int) -> tuple[Field, int]:
    if kind == 0:
        return varint(data, position)
    if kind == 2:
        size, position = varint(data, position)
    elif kind in (1, 5):
        size = 8 if kind == 1 else 4
    else:
        raise ProgramError(f"wanted a field of a known wire type, got {kind}; the model file is damaged")
    if position + size > len(data):
        raise ProgramError(f"wanted {size} bytes of a field, the message ends before; the model file is cut")
    return data[position : position + size], position + size


def varint(data: memoryview, position: int) -> tuple[int, int]:
    """Read one number of at most 64 bits; return it and the position behind it."""
    if position < len(data) and (byte := data[position]) < 0x80:  # nearly all are of one byte
        return byte, position + 1
    result = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ProgramError("wanted a whole number in the model file, got none; the file is damaged")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFFFFFFFFFFFFFF, position
        shift += 7


def first(message: Message, number: int, default: Any = None) -> Any:
    """Return the last value of a field, as protobuf does for a field that is there twice."""
    values = message.get(number)
    return values[-1] if values else default


def whole(message: Message, number: int) -> int:
    """Return a field that is an unsigned number, or 0 where it is absent.

    Raises:
        ProgramError: when something else stands there.
    """
    value = first(message, number, 0)
    if not isinstance(value, int):
        raise ProgramError(f"wanted a number in field {number} of the model file, got bytes; it is damaged")
    return value


def text(value: Field | None) -> str:
    """Decode a string; an absent one is empty."""
    if value is None:
        return ""
    try:
        return bytes(_bytes(value)).decode()
    except UnicodeDecodeError as error:
        raise ProgramError(f"wanted text in the model file, got other bytes ({error})") from error


def _bytes(value: Field) -> memoryview:
    if isinstance(value, int):
        raise ProgramError("wanted bytes in the model file, got a number; the file is damaged")
    return value


def signed(value: int) -> int:
    """Read a number as two's complement of 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


def numbers(values: list[Field]) -> list[int]:
    """Read repeated integers, packed or not."""
    found: list[int] = []
    for value in values:
        if isinstance(value, int):
            found.append(signed(value))
            continue
        position = 0
        while position < len(value):
            number, position = varint(value, position)
            found.append(signed(number))
    return found


def floats(values: list[Field], dtype: str) -> np.ndarray[Any, Any]:
    """Read repeated floats, packed or not, of numpy's ``dtype`` such as ``<f4``."""
    data = b"".join(bytes(_bytes(v)) for v in values)
    if len(data) % np.dtype(dtype).itemsize:
        raise ProgramError(f"wanted whole {dtype} numbers in the model file, got {len(data)} bytes")
    return np.frombuffer(data, dtype)
