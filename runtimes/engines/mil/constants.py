"""Constants of a program: decoded from the model file or a weight file, and kept as torch holds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from flashbulb.runtimes.engines.mil.blob import read_blob
from flashbulb.runtimes.engines.mil.budget import current
from flashbulb.runtimes.engines.mil.dtypes import BY_NAME, DType, held_dtype, unpack_bits
from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.spec import Type, Value
from flashbulb.runtimes.engines.mil.wire import Field, Reader, floats, numbers, text

if TYPE_CHECKING:
    import torch

Weights = Mapping[str, np.ndarray[Any, Any]]
MODEL_PATH = "@model_path/"
STRING = BY_NAME["string"]


class Constant:
    """A value that is known at load: made when first asked for, then kept, or made anew each time."""

    def __init__(self, kind: Type, make: Callable[[], Any], keep: bool = True) -> None:
        self.type, self._make, self._keep = kind, make, keep
        self._value: Any = None

    @property
    def kept(self) -> bool:
        """Tell whether it stays in memory."""
        return self._keep

    def get(self) -> Any:
        """Return a tensor, or text and lists for what is none."""
        if self._value is None:
            value = self._make()
            if not self._keep:
                return value
            current().keep(value)
            self._value = value
        return self._value


def decode(value: Value, weights: Weights) -> Any:
    """Decode a constant into a numpy array, or text and lists for what is none.

    Raises:
        ProgramError: when what is stored does not fit its declared type.
    """
    if value.array is not None:
        return value.array
    if value.items is not None:
        return [np.asarray(decode(item, weights)).item() for item in value.items]
    dtype, shape = _declared(value.type)
    if value.blob is not None:
        file, offset = value.blob
        name = file.removeprefix(MODEL_PATH)
        if name not in weights:
            raise ProgramError(
                f"wanted the weights {file!r}, the package has {sorted(weights)}; export it again"
            )
        return read_blob(weights[name], offset, dtype, shape)
    found = _immediate(value.tensor or memoryview(b""), dtype, math.prod(shape))
    if dtype is STRING:
        return found[0] if shape == () else found
    return found.reshape(shape)


def _declared(kind: Type) -> tuple[DType, tuple[int, ...]]:
    shape = kind.shape
    if kind.dtype is None or shape is None or any(size is None for size in shape):
        raise ProgramError(f"wanted a constant of a fixed shape, got {kind.kind} {shape}; export it again")
    return kind.dtype, tuple(int(size or 0) for size in shape)


def _immediate(data: Field, dtype: DType, count: int) -> Any:
    """Decode a `TensorValue`; small types and fp16 are raw bytes, the rest are numbers."""
    reader = Reader()
    kinds = reader.message(data)
    number = next(iter(kinds), 0)
    fields = reader.message(kinds[number][-1]).get(1, []) if kinds else []
    if kinds and (number == 4) != (dtype is STRING):
        words = ("text", f"values of {dtype.name}") if number == 4 else ("numbers", "text")
        raise ProgramError(f"wanted {words[1]} in place, got {words[0]}; the file is damaged")
    if dtype is STRING:
        values: Any = [text(f) for f in fields]
    elif number == 7:
        raw = np.frombuffer(b"".join(bytes(f) for f in fields if not isinstance(f, int)), np.uint8)
        values = unpack_bits(raw, dtype, count) if dtype.bits < 8 else _viewed(raw, dtype)
    elif number in (1, 6):
        values = floats(fields, "<f4" if number == 1 else "<f8")
    else:
        values = np.array(numbers(fields), dtype=np.int64)
    if len(values) != count:
        raise ProgramError(
            f"wanted {count} values of {dtype.name} in place, got {len(values)}; the file is damaged"
        )
    return values if dtype is STRING else values.astype(dtype.array)


def _viewed(raw: np.ndarray[Any, Any], dtype: DType) -> np.ndarray[Any, Any]:
    if raw.size * 8 % dtype.bits:
        raise ProgramError(
            f"wanted whole elements of {dtype.name}, got {raw.size} bytes; the file is damaged"
        )
    return raw.view(dtype.array)


def hold(array: Any, dtype: DType) -> Any:
    """Turn a numpy array into the tensor that operations take; text stays as it is."""
    import torch

    if dtype is STRING or isinstance(array, str | list):
        return array
    kind = np.dtype(str(held_dtype(dtype)).removeprefix("torch."))
    copied = np.array(array, dtype=kind, order="C")  # a copy: torch wants memory that may be written
    tensor: torch.Tensor = torch.from_numpy(copied)
    return tensor


def constant(value: Value, weights: Weights, keep: bool) -> Constant:
    """Wrap a stored constant; one that lies in a weight file may be read anew each time."""
    dtype = value.type.dtype or STRING
    return Constant(value.type, lambda: hold(decode(value, weights), dtype), keep or value.blob is None)
