"""Folders of pictures of the same prompts, one folder a model, and the prompts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from flashbulb.distill.typed_json import decode
from flashbulb.distill.untrusted import UntrustedError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
STARTS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
HASH_DIGITS = 16


class Picture(NamedTuple):
    """A picture of one model, as it was when the folder was opened."""

    model: str
    name: str
    """File name without its suffix: pictures of one name are compared."""
    file: Path
    media_type: str
    sha256: str
    """Start of the hash of the file."""


class Folder(NamedTuple):
    """All pictures of one model."""

    model: str
    path: Path
    """Where the pictures lie."""
    pictures: dict[str, Picture]
    """By name, in natural order: 2 before 10."""


def open_folders(paths: Sequence[Path]) -> list[Folder]:
    """Open folders that hold pictures of the same names.

    Raises:
        FileNotFoundError: for a path that is no folder.
        ValueError: for fewer than two folders, one twice, no pictures, or names that do not match.
    """
    if len(paths) < 2:
        raise ValueError(f"wanted at least two folders of pictures to compare, got {len(paths)}")
    places = [_place(path) for path in paths]
    if twice := [str(path) for i, path in enumerate(places) if path in places[:i]]:
        raise ValueError(f"wanted different folders, got {twice[0]} twice")
    models = distinct_names([place.parent if place.name == "pictures" else place for place in places])
    folders = [_open(model, place) for model, place in zip(models, places, strict=True)]
    _check_names(folders)
    return folders


def read_prompts(file: Path | None, folders: Sequence[Folder]) -> dict[str, str]:
    """Return the prompt of every name.

    Args:
        file: a text file with one prompt a line, in the order of the names; a JSON object from name to
            prompt; or JSON lines with ``file_name`` and ``text``. None: the folders' own ``metadata.jsonl``.
        folders: with equal names.

    Raises:
        FileNotFoundError: for no file.
        ValueError: for a file that cannot be read, or that lacks a prompt.
    """
    names = list(folders[0].pictures)
    if file is None:
        return _own_prompts(folders, names)
    if not file.is_file():
        raise FileNotFoundError(f"no prompts {str(file)!r}: wanted a .txt, .json or .jsonl file")
    if file.suffix in (".json", ".jsonl"):
        return _for_names(_named_prompts(file), names, file)
    lines = file.read_text(encoding="utf-8").splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) != len(names):
        raise ValueError(f"{file}: wanted a line for each of {len(names)} pictures, got {len(lines)} lines")
    return dict(zip(names, (line.strip() for line in lines), strict=True))


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the last part of every path, or as many of the last parts as it takes to tell them apart."""
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names) or depth > max(len(path.parts) for path in paths):
            return names
        depth += 1


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers within names as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _place(path: Path) -> Path:
    """Return where the pictures lie: in the folder, or in its ``pictures`` as `flashbulb eval` has them."""
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {str(path)!r}: wanted one with pictures")
    inner = path / "pictures"
    return (inner if inner.is_dir() else path).resolve()


def _open(model: str, place: Path) -> Folder:
    files = [file for file in place.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file()]
    if not files:
        raise ValueError(f"{place} holds no pictures: wanted files ending in {', '.join(SUFFIXES)}")
    pictures: dict[str, Picture] = {}
    for file in sorted(files, key=lambda file: natural(file.stem)):
        if file.stem in pictures:
            raise ValueError(f"{place} holds two pictures named {file.stem!r}: remove one")
        content = file.read_bytes()
        pictures[file.stem] = Picture(model, file.stem, file, media_type(content, file), digest(content))
    return Folder(model, place, pictures)


def digest(content: bytes) -> str:
    """Return the start of the SHA-256 of a file: enough to tell pictures apart."""
    return hashlib.sha256(content).hexdigest()[:HASH_DIGITS]


def media_type(content: bytes, file: Path) -> str:
    """Return the type of a picture by its first bytes.

    Raises:
        ValueError: for what is neither PNG, JPEG nor WebP.
    """
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    for start, kind in STARTS.items():
        if content.startswith(start):
            return kind
    raise ValueError(f"{file} is no picture: wanted PNG, JPEG or WebP, got {content[:8]!r}")


def _check_names(folders: Sequence[Folder]) -> None:
    first = folders[0]
    for other in folders[1:]:
        for has, lacks in ((first, other), (other, first)):
            if missing := [name for name in has.pictures if name not in lacks.pictures]:
                raise ValueError(
                    f"wanted pictures of the same names in every folder: {lacks.path} lacks "
                    f"{len(missing)} that {has.path} has ({_some(missing)})"
                )


def _own_prompts(folders: Sequence[Folder], names: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for folder in folders:
        file = folder.path / "metadata.jsonl"
        if not file.is_file():
            raise ValueError(f"{folder.path} has no metadata.jsonl with its prompts: say --prompts FILE")
        prompts = _for_names(_named_prompts(file), names, file)
        if other := [name for name in found if found[name] != prompts[name]]:
            raise ValueError(
                f"wanted the same prompts in every folder: for {other[0]!r}, {folders[0].path} says "
                f"{found[other[0]]!r} and {folder.path} says {prompts[other[0]]!r}"
            )
        found = prompts
    return found


class _Line(msgspec.Struct):
    """One line of ``metadata.jsonl``; other keys are left alone."""

    file_name: str
    text: str


def _named_prompts(file: Path) -> dict[str, str]:
    try:
        if file.suffix == ".json":
            named = decode(file.read_bytes(), dict[str, str])
        else:
            lines = [line for line in file.read_bytes().splitlines() if line.strip()]
            decoded = [decode(line, _Line) for line in lines]
            named = {line.file_name: line.text for line in decoded}
    except UntrustedError as error:
        wanted = (
            '{"NAME": "prompt", ...}' if file.suffix == ".json" else '{"file_name": ..., "text": ...} a line'
        )
        raise ValueError(f"{file}: {error}; wanted {wanted}") from error
    return {Path(name).stem if Path(name).suffix in SUFFIXES else name: text for name, text in named.items()}


def _for_names(prompts: Mapping[str, str], names: Sequence[str], file: Path) -> dict[str, str]:
    if missing := [name for name in names if name not in prompts]:
        raise ValueError(f"{file} lacks the prompt of {len(missing)} pictures ({_some(missing)})")
    return {name: prompts[name] for name in names}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
