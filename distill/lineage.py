"""The history of a checkpoint, which every stage adds to: ``lineage.json``."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import msgspec

from flashbulb.distill.typed_json import decode
from flashbulb.distill.untrusted import UntrustedError, read_small

TOOLS = ("torch", "diffusers", "transformers", "numpy", "safetensors")
FILE = "lineage.json"
EVALUATIONS = "teacher_evaluations"
"""Name among a student's metrics of how many pictures teachers looked at for it."""


class LineageEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one stage did to make this checkpoint."""

    stage: str
    config: dict[str, Any]
    parent_sha256: str | None = None
    versions: dict[str, str] = {}
    created: str = ""
    metrics: dict[str, float | int | str] = {}


class Lineage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The history of a checkpoint: one entry is appended by every stage."""

    schema_version: Literal[1] = 1
    entries: tuple[LineageEntry, ...] = ()

    def append(self, entry: LineageEntry) -> Lineage:
        """Return a new lineage that ends in ``entry``."""
        return Lineage(entries=(*self.entries, entry))


def tool_versions() -> dict[str, str]:
    """Return the installed versions of the packages that decide what a checkpoint holds."""
    return {name: metadata.version(name) for name in TOOLS}


def read_lineage(folder: Path) -> Lineage:
    """Read ``lineage.json``; a folder without one has no history.

    Raises:
        UntrustedError: when it is none, naming the file.
    """
    file = folder / FILE
    if not file.is_file():
        return Lineage()
    try:
        return decode(read_small(file), Lineage)
    except UntrustedError as error:
        raise UntrustedError(f"{file}: {error}") from error


def write_lineage(folder: Path, lineage: Lineage) -> None:
    """Write ``lineage.json`` into ``folder``."""
    (folder / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(lineage)) + b"\n")
