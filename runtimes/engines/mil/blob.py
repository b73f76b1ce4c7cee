"""Weight files: 64-byte aligned records of {sentinel, type, size, offset}, each pointing at its data."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from flashbulb.runtimes.engines.mil.dtypes import BY_NAME, DType, unpack_bits
from flashbulb.runtimes.engines.mil.errors import ProgramError

SENTINEL = 0xDEADBEEF
ALIGNMENT = 64
METADATA = struct.Struct("<IIQQQ")
"""Sentinel, type, size in bytes, offset of the data, bits of padding at its end."""
STORED = {
    1: "fp16", 2: "fp32", 3: "uint8", 4: "int8", 6: "int16", 7: "uint16", 8: "int4", 9: "uint1",
    10: "uint2", 11: "uint4", 12: "uint3", 13: "uint6", 14: "int32", 15: "uint32",
}  # fmt: skip
"""Numbers of the element types in a weight file, which are not those of a program."""


def read_blob(
    data: np.ndarray[Any, Any], offset: int, dtype: DType, shape: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """Read one constant out of a weight file.

    Args:
        data: the whole file as bytes.
        offset: where its record is.
        dtype: element type that the program declares.
        shape: sizes that the program declares.

    Returns:
        the values; elements under a byte are unpacked.

    Raises:
        ProgramError: when the record is not one, or does not fit what is declared.
    """
    kind, size, start = _record(data, offset)
    count = math.prod(shape)
    wanted = -(-count * dtype.bits // 8)
    if kind is not dtype:
        raise ProgramError(f"wanted {dtype.name} at byte {offset} of the weights, the file says {kind.name}")
    if size != wanted:
        raise ProgramError(f"wanted {wanted} bytes for {dtype.name} {shape}, the weights hold {size}")
    raw = data[start : start + size]
    if dtype.bits < 8:
        return unpack_bits(raw, dtype, count).reshape(shape)
    return raw.view(dtype.array).reshape(shape)


def read_raw(weights: Mapping[str, np.ndarray[Any, Any]], file: str, offset: int) -> bytes:
    """Return the bytes of one constant as they are stored.

    Raises:
        ProgramError: when there is no such record.
    """
    name = file.removeprefix("@model_path/")
    if name not in weights:
        raise ProgramError(f"wanted the weights {file!r}, the package has {sorted(weights)}; export it again")
    _, size, start = _record(weights[name], offset)
    return weights[name][start : start + size].tobytes()


def _record(data: np.ndarray[Any, Any], offset: int) -> tuple[DType, int, int]:
    """Read and judge the record at an offset: type, bytes, offset of the data."""
    if offset < 0 or offset % ALIGNMENT or offset + ALIGNMENT > data.size:
        raise ProgramError(
            f"wanted an aligned record at byte {offset} of {data.size} of the weights; export again"
        )
    sentinel, number, size, start, _ = METADATA.unpack_from(data[offset : offset + METADATA.size].tobytes())
    if sentinel != SENTINEL:
        raise ProgramError(
            f"wanted the mark {SENTINEL:#x} at byte {offset} of the weights, got {sentinel:#x}"
        )
    if number not in STORED:
        raise ProgramError(f"wanted a stored type of {sorted(STORED)} at byte {offset}, got {number}")
    if start % ALIGNMENT or start + size > data.size:
        raise ProgramError(
            f"wanted {size} aligned bytes at {start} of the weights, the file has {data.size}; it is cut"
        )
    return BY_NAME[STORED[number]], size, start
