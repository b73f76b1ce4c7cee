"""The element types of ML programs: their names, their storage, and how they are held at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from flashbulb.runtimes.engines.mil.errors import ProgramError

if TYPE_CHECKING:
    import torch


class DType(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One element type."""

    name: str
    """As MIL spells it in `cast`, such as `fp16`."""
    proto: int
    """Its number in MIL's `DataType`."""
    bits: int
    """Bits of one element in a file; 0 for strings."""
    array: str
    """numpy's type for it; elements under a byte are unpacked into one."""
    held: str
    """torch's type while a program runs: all floats are float32, rounded where the mode says so."""

    @property
    def is_float(self) -> bool:
        """Tell the floats."""
        return self.held == "float32"


def _dtype(name: str, proto: int, bits: int, array: str, held: str) -> DType:
    return DType(name=name, proto=proto, bits=bits, array=array, held=held)


DTYPES = (
    _dtype("bool", 1, 8, "|b1", "bool"),
    _dtype("string", 2, 0, "object", ""),
    _dtype("fp16", 10, 16, "<f2", "float32"),
    _dtype("fp32", 11, 32, "<f4", "float32"),
    _dtype("fp64", 12, 64, "<f8", "float32"),
    _dtype("int8", 21, 8, "|i1", "int8"),
    _dtype("int16", 22, 16, "<i2", "int16"),
    _dtype("int32", 23, 32, "<i4", "int32"),
    _dtype("int64", 24, 64, "<i8", "int64"),
    _dtype("int4", 25, 4, "|i1", "int8"),
    _dtype("uint8", 31, 8, "|u1", "uint8"),
    _dtype("uint16", 32, 16, "<u2", "int32"),  # torch has few operators for wider unsigned numbers
    _dtype("uint32", 33, 32, "<u4", "int64"),
    _dtype("uint64", 34, 64, "<u8", "int64"),
    _dtype("uint4", 35, 4, "|u1", "uint8"),
    _dtype("uint2", 36, 2, "|u1", "uint8"),
    _dtype("uint1", 37, 1, "|u1", "uint8"),
    _dtype("uint6", 38, 6, "|u1", "uint8"),
    _dtype("uint3", 39, 3, "|u1", "uint8"),
)
BY_PROTO = {d.proto: d for d in DTYPES}
BY_NAME = {d.name: d for d in DTYPES}


def dtype_numbered(number: int) -> DType:
    """Return a type by its number in the file.

    Raises:
        ProgramError: listing what is supported.
    """
    if number not in BY_PROTO:
        raise ProgramError(f"wanted an element type of {[d.name for d in DTYPES]}, got number {number}")
    return BY_PROTO[number]


def held_dtype(dtype: DType) -> torch.dtype:
    """Return torch's type for values of ``dtype`` while a program runs.

    Raises:
        ProgramError: for text, of which there are no tensors.
    """
    import torch

    if not dtype.held:
        raise ProgramError(f"wanted a tensor of numbers, got one of {dtype.name}; the file is damaged")
    found: torch.dtype = getattr(torch, dtype.held)
    return found


def unpack_bits(packed: np.ndarray[Any, Any], dtype: DType, count: int) -> np.ndarray[Any, Any]:
    """Unpack elements of less than a byte, least significant bit first; signed ones keep their sign."""
    if packed.size * 8 < count * dtype.bits:
        raise ProgramError(
            f"wanted {count} elements of {dtype.bits} bits, got {packed.size} bytes; the file is damaged"
        )
    bits = np.unpackbits(packed, bitorder="little", count=count * dtype.bits).reshape(count, dtype.bits)
    values = np.packbits(bits, axis=1, bitorder="little").reshape(count)
    if dtype.array == "|i1":
        sign = 1 << (dtype.bits - 1)
        return (values.astype(np.int16) ^ sign).astype(np.int8) - np.int8(sign)
    return values
