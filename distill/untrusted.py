"""Read JSON and safetensors headers that a stranger wrote, within stated bounds.  Standard library only.

The parsers that read them later are lenient in ways that matter: of two fields with one name one parser takes
the first and another the last, a small text can become a large object, and a header can claim sizes that the
file does not have.  What passes here leaves them nothing to choose.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

MOST_JSON_BYTES = 64 << 20
"""Longest JSON file: the tokenizers of large models come near 20 MB."""
MOST_CONTAINERS = 1_000_000
"""Most objects and lists in one JSON text: each costs some hundred bytes of memory for two of text."""
MOST_HEADER_BYTES = 16 << 20
"""Longest safetensors header, enough for a hundred thousand tensors."""
MOST_TENSORS = 100_000
MOST_ELEMENTS = 1 << 40
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}


class UntrustedError(ValueError):
    """Data that is not what its format promises; the message says what was wanted and what was got."""


class StoredTensor(NamedTuple):
    """One tensor as a safetensors header describes it."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def parse_json(data: bytes, *, most_containers: int = MOST_CONTAINERS) -> Any:
    """Parse JSON strictly: UTF-8, no field twice, no NaN or infinity, a bounded number of containers.

    Raises:
        UntrustedError: saying what is wrong.
    """
    count = data.count(b"{") + data.count(b"[")
    if len(data) > MOST_JSON_BYTES or count > most_containers:
        raise UntrustedError(
            f"wanted JSON of at most {MOST_JSON_BYTES} bytes and {most_containers} objects and lists, "
            f"got {len(data)} and up to {count}"
        )
    try:
        return json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError among them
        raise UntrustedError(f"wanted JSON, got: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise UntrustedError(f"the field {twice[:80]!r} comes twice")
    return found


def _constant(word: str) -> Any:
    raise UntrustedError(f"{word} is no JSON number")


def read_small(path: Path, most: int = MOST_JSON_BYTES) -> bytes:
    """Read a file that must be small; one that grows meanwhile is not read further.

    The buffer is as large as the file, not as the most that it could be.

    Raises:
        UntrustedError: when it is longer, or no regular file.
        OSError: when it cannot be read.
    """
    check_regular(path)
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise UntrustedError(f"wanted at most {most} bytes in {path.name}, got {size}")
        return stream.read(size)


def check_regular(path: Path) -> None:
    """Refuse a pipe, a device or a folder, without opening it: to open a pipe can last for ever.

    Raises:
        UntrustedError: when it is one.
        OSError: when there is nothing.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise UntrustedError(f"wanted a regular file {path.name}, got another kind; remove it")


def safetensors_header(path: Path, *, most_bytes: int = MOST_HEADER_BYTES) -> dict[str, StoredTensor]:
    """Read and judge the header of a safetensors file; no weight is read.

    Raises:
        UntrustedError: when names, types, shapes and offsets do not describe exactly the bytes of the file.
    """
    check_regular(path)
    with path.open("rb") as stream:
        total = path.stat().st_size
        size = int.from_bytes(stream.read(8), "little")
        if not 2 <= size <= min(total - 8, most_bytes):
            raise UntrustedError(f"{path.name} is not a safetensors file: its header claims {size} bytes")
        data = stream.read(size)
    if not data.startswith(b"{"):
        raise UntrustedError(f"{path.name} is not a safetensors file: its header is no JSON object")
    try:
        found = parse_json(data)
        metadata = found.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise UntrustedError("its __metadata__ is not made of texts")
        tensors = {name: _tensor(name, value) for name, value in found.items()}
        _check_layout(tensors, total - 8 - size)
    except UntrustedError as error:
        raise UntrustedError(f"{path.name} is not a sound safetensors file: {error}") from error
    return tensors


def _tensor(name: str, value: Any) -> StoredTensor:
    """Judge one entry: its type is known and its shape fills its bytes."""
    shown = repr(name[:80])
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise UntrustedError(f"wanted dtype, shape and data_offsets for {shown}, got something else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise UntrustedError(f"wanted a dtype in {sorted(ITEM_BYTES)} for {shown}, got {str(dtype)[:40]!r}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or len(shape) > 8:
        raise UntrustedError(f"wanted a shape and two offsets of whole numbers for {shown}")
    count = math.prod(shape)
    if count > MOST_ELEMENTS or count * ITEM_BYTES[dtype] != offsets[1] - offsets[0]:
        raise UntrustedError(
            f"the shape of {shown} wants {count} {dtype} values, its offsets give other bytes"
        )
    return StoredTensor(dtype, tuple(shape), *offsets)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v <= MOST_ELEMENTS for v in value)


def _check_layout(tensors: dict[str, StoredTensor], size: int) -> None:
    """The tensors fill the file without gap or overlap, in some order."""
    if len(tensors) > MOST_TENSORS:
        raise UntrustedError(f"wanted at most {MOST_TENSORS} tensors, got {len(tensors)}")
    end = 0
    for tensor in sorted(tensors.values(), key=lambda t: (t.begin, t.end)):
        if tensor.begin != end:
            raise UntrustedError(f"wanted a tensor at byte {end}, the next one is at {tensor.begin}")
        end = tensor.end
    if end != size:
        raise UntrustedError(f"its tensors want {end} bytes, the file holds {size}")
