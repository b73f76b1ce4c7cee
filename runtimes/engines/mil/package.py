"""An `.mlpackage` folder on disk: manifest, model file and weight files.  Nothing outside it is opened."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np

from flashbulb.distill.typed_json import decode
from flashbulb.distill.untrusted import UntrustedError
from flashbulb.runtimes.engines.mil.description import Description, read_description
from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.spec import Function, SpecReader
from flashbulb.runtimes.engines.mil.wire import first, whole

MOST_NAME_BYTES, MOST_PATH_BYTES = 255, 1024
"""What file systems take; a longer path is nothing that was saved."""
MAX_MANIFEST_BYTES = 1 << 20
MAX_MODEL_BYTES = 256 << 20
ML_PROGRAM = 502
"""Number of the field `mlProgram` in Core ML's `Model`."""


class _Item(msgspec.Struct, forbid_unknown_fields=True):
    """One file, as Apple's library writes it."""

    path: str
    name: str = ""
    author: str = ""
    description: str = ""


class _Manifest(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """`Manifest.json` with all its fields: of a field that is there twice, readers take different ones."""

    item_info_entries: dict[str, _Item]
    root_model_identifier: str
    file_format_version: str = ""


@dataclass(frozen=True, slots=True)
class Package:
    """A package that was read: what it declares and what it computes."""

    path: Path
    version: int
    """Core ML's specification version; 7 is iOS 16, 8 is iOS 17, 9 is iOS 18."""
    description: Description
    functions: dict[str, Function]
    weights: dict[str, np.ndarray[Any, Any]]
    """Weight files that the program may name, mapped into memory, by their path after `@model_path/`."""


def read_package(path: Path) -> Package:
    """Read a package.

    Raises:
        ProgramError: when it is none, is damaged, or holds something else than an ML program.
    """
    root = Path(path)
    model = inside(root / "Data", _root_model(root))
    reader = SpecReader()
    found = reader.reader.message(memoryview(_bounded(model, MAX_MODEL_BYTES)))
    if ML_PROGRAM not in found:
        kinds = sorted(set(found) - {1, 2, 10})
        raise ProgramError(
            f"wanted an ML program in {root.name}, got a model of kind {kinds}; convert it as one"
        )
    return Package(
        path=root,
        version=whole(found, 1),
        description=read_description(reader.reader, first(found, 2, memoryview(b""))),
        functions=reader.functions(found[ML_PROGRAM][-1]),
        weights=weight_files(model.parent),
    )


def _root_model(root: Path) -> str:
    """Return the model file's path inside `Data`, as the manifest names it."""
    path = root / "Manifest.json"
    if root.is_symlink() or path.is_symlink() or not path.is_file():
        raise ProgramError(
            f"wanted an .mlpackage folder with a Manifest.json, got {root}; give such a folder"
        )
    try:
        manifest = decode(_bounded(path, MAX_MANIFEST_BYTES), _Manifest)
        return manifest.item_info_entries[manifest.root_model_identifier].path
    except (UntrustedError, KeyError) as error:
        raise ProgramError(f"wanted a manifest that names the model of {root.name}, got: {error}") from error


def inside(folder: Path, name: str) -> Path:
    """Return a regular file under a folder; a name that could lead elsewhere is refused."""
    parts = PurePosixPath(name).parts
    bad = not parts or name.startswith("/") or "\\" in name or ":" in name or "\0" in name or ".." in parts
    sizes = [len(part.encode("utf-8", "replace")) for part in parts]
    bad |= sum(sizes) > MOST_PATH_BYTES or max(sizes, default=0) > MOST_NAME_BYTES
    if bad:
        raise ProgramError(f"wanted a path inside the package, got {name[:200]!r}; do not use this package")
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise ProgramError(f"wanted plain files in the package, {name!r} is a link; do not use it")
    if not path.is_file():
        raise ProgramError(f"wanted the file {name!r} in the package, there is none; export it again")
    return path


def _bounded(path: Path, limit: int) -> bytes:
    if (size := path.stat().st_size) > limit:
        raise ProgramError(f"wanted {path.name} under {limit} bytes, got {size}; do not use this package")
    return path.read_bytes()


def weight_files(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Map every weight file beside a model; pages are read when a constant is.

    Raises:
        ProgramError: when one is a link, or cannot be mapped.
    """
    found = {}
    for path in sorted((folder / "weights").glob("*")) if (folder / "weights").is_dir() else []:
        name = f"weights/{path.name}"
        with inside(folder, name).open("rb") as stream:
            if size := path.stat().st_size:
                found[name] = _mapped(stream.fileno(), name, size)
    return found


def _mapped(file: int, name: str, size: int) -> np.ndarray[Any, Any]:
    try:
        return np.frombuffer(mmap.mmap(file, 0, access=mmap.ACCESS_READ), np.uint8)
    except (OSError, ValueError, OverflowError) as error:
        raise ProgramError(
            f"wanted weights that can be addressed, got {size} bytes in {name!r} ({error}); do not use it"
        ) from error
