"""Names of files as strangers' data gives them: only those that stay inside their folder are opened."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from flashbulb.distill.data.base import BadSample


def plain(name: object, *, where: str) -> str:
    """Return a relative name that stays where it is, as data may give it.

    Raises:
        ValueError: for no text, an absolute name, one with ``..``, a drive or a zero byte.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}: wanted a file's name, got {name!r}")
    parts = PurePosixPath(name.replace("\\", "/")).parts
    outside = ".." in parts or PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).anchor)
    if outside or "\0" in name or bool(PureWindowsPath(name).drive):
        raise ValueError(
            f"{where}: refused the file name {name!r}: wanted a relative one that stays inside the data; "
            "it can name any file of this machine, so look at where the data comes from"
        )
    return name


def inside(folder: Path, name: str, root: Path) -> Path:
    """Return the file of that name, links followed, if it lies within ``root``.

    Raises:
        ValueError: when it lies elsewhere.
    """
    file = Path(os.path.realpath(folder / name))
    if not file.is_relative_to(os.path.realpath(root)):
        raise ValueError(
            f"{folder}: refused {name!r}: it is a link that leads out of {root}; put the file itself there"
        )
    return file


def read_within(folder: Path, name: str, root: Path, limit: int) -> bytes:
    """Return a file's bytes.

    Raises:
        BadSample: when it cannot be read or is larger than ``limit``.
        ValueError: when it lies outside ``root``.
    """
    file = inside(folder, name, root)
    try:
        with file.open("rb") as handle:
            data = handle.read(limit + 1)
    except OSError as error:
        raise BadSample(f"cannot be read ({error.strerror or error})") from error
    if len(data) > limit:
        raise BadSample(f"wanted at most {limit} bytes in {name}, got more")
    return data


def of_split(files: list[Path], split: str, root: Path) -> list[Path]:
    """Return the files named after a split; all of them when none is named after any.

    Raises:
        ValueError: when files are named after other splits only.
    """
    splits = {"train", "training", "validation", "valid", "val", "dev", "test", "eval", split}
    words = {file: splits & _words(file.relative_to(root)) for file in files}
    mine = [file for file in files if split in words[file]]
    if mine or not any(words.values()):
        return mine or files
    known = sorted(set().union(*words.values()))
    raise ValueError(f"{root}: wanted the split {split!r}, got {', '.join(known)}; set data_options.split")


def _words(path: Path) -> set[str]:
    parts = [*path.parts[:-1], path.name.partition(".")[0]]
    return {word for part in parts for word in part.lower().replace("_", "-").split("-")}
