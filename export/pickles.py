"""Tell files that could run code when something opens them, and files that are mostly hole.  No torch here.

No archive is opened: its directory alone can be made to fill the memory.
"""

from __future__ import annotations

import errno
import io
import os
import pickletools
import re
from pathlib import Path
from typing import BinaryIO

SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".npy", ".npz", ".dill")
ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
"""How zip, gzip, bzip2, xz and zstd begin; nothing in a bundle is packed."""
CALLS = frozenset(("GLOBAL", "INST", "OBJ", "REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "STACK_GLOBAL"))
"""Opcodes that name code or call it."""
HEAD_BYTES = 1 << 16
MANY = 100
"""So many opcodes in a row are no chance."""
END_OF_ZIP = 22
MOST_COMMENT = 1 << 16


def is_pickle(path: Path) -> bool:
    """Tell a pickle by its name or its opcodes; an archive counts as one: nothing in a bundle is packed."""
    if path.suffix.lower() in SUFFIXES:
        return True
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        if head.startswith(ARCHIVES) or ends_as_zip(stream):
            return True
    if len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return len(opcodes(head, 3)[0]) >= 3
    found, complete = opcodes(head, MANY)
    return bool(CALLS & set(found)) and (complete or len(found) >= MANY)


def opcodes(head: bytes, most: int) -> tuple[list[str], bool]:
    """Name the pickle opcodes that parse at the start of some bytes, and say whether they come to an end."""
    found: list[str] = []
    try:
        for opcode, _, _ in pickletools.genops(io.BytesIO(head)):
            found.append(opcode.name)
            if len(found) == most:
                return found, False
    except ValueError:
        return found, False
    return found, True


def ends_as_zip(stream: BinaryIO) -> bool:
    """Tell whether a zip's directory lies at the end: a reader of zips passes over what comes before."""
    size = stream.seek(0, os.SEEK_END)
    begin = stream.seek(max(0, size - END_OF_ZIP - MOST_COMMENT))
    tail = stream.read()
    for match in re.finditer(rb"PK\x05\x06", tail):
        at = match.start()
        directory = begin + at - int.from_bytes(tail[at + 12 : at + 16], "little")
        if tail[at - 20 : at - 16] == b"PK\x06\x07":  # the larger numbers stand before it
            return True
        if 0 <= directory < begin + at:
            stream.seek(directory)
            if stream.read(4) == b"PK\x01\x02":
                return True
    return False


def hole_bytes(path: Path, most: int) -> int:
    """Return how many bytes of a file nobody wrote, as far as the system tells; above ``most`` at least."""
    if not hasattr(os, "SEEK_HOLE"):
        return 0
    with path.open("rb") as stream:
        at, holes, size = 0, 0, os.fstat(stream.fileno()).st_size
        while at < size and holes <= most:
            try:
                data = os.lseek(stream.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                return holes + size - at if error.errno == errno.ENXIO else holes
            holes += data - at
            at = os.lseek(stream.fileno(), data, os.SEEK_HOLE)
    return holes
