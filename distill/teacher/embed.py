"""Put a trained teacher and student into the package.

``python -m flashbulb.distill.teacher.embed TEACHER STUDENT``; the student keeps the teacher's tokenizer, text
encoder and autoencoder, so only what differs is stored, and the first ``embedded("student")`` assembles the
whole folder in the user's cache.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec

from flashbulb.distill.checkpoint import Checkpoint, CheckpointError, replace_folder
from flashbulb.distill.lineage import Lineage, write_lineage

ASSETS = Path(__file__).parents[1] / "assets"
SHARED = ("tokenizer", "text_encoder", "vae")


def main() -> None:
    """Parse the command line and embed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("student", type=Path)
    arguments = parser.parse_args()
    embed(arguments.teacher, arguments.student, ASSETS)


def embed(teacher: Path, student: Path, assets: Path) -> None:
    """Copy the teacher, and of the student what differs, into ``assets``.

    Raises:
        CheckpointError: when the student's shared folders are not the teacher's.
    """
    for checkpoint in (Checkpoint.open(teacher), Checkpoint.open(student)):
        if checkpoint.is_sdxl:
            raise CheckpointError(
                f"wanted checkpoints of the sticker world, got SDXL's shape at {checkpoint.path}"
            )
    different = [part for part in SHARED if _files(teacher / part) != _files(student / part)]
    if different:
        raise CheckpointError(f"the student's {different} differ from the teacher's; wanted them untouched")
    _copy(teacher, assets / "teacher", ())
    _copy(student, assets / "student", SHARED)
    (assets / "student" / "shared.json").write_text(
        json.dumps({"from": "teacher", "folders": list(SHARED)}, indent=2) + "\n"
    )


def _files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def _copy(source: Path, out: Path, without: tuple[str, ...]) -> None:
    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, ignore=shutil.ignore_patterns(*without))
    entries = Checkpoint.open(source).lineage.entries
    portable = (msgspec.structs.replace(e, config=_portable(e.config)) for e in entries)
    write_lineage(temporary, Lineage(entries=tuple(portable)))
    replace_folder(temporary, out)


def _portable(value: Any) -> Any:
    """Return a configuration with absolute paths cut to their last part."""
    if isinstance(value, dict):
        return {key: _portable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


if __name__ == "__main__":
    main()
