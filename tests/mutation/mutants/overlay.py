"""A second folder with a bundle's files, to be broken and mended: links, and copies of what is edited."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from flashbulb.export import structure
from flashbulb.export.anatomy import Listing, read
from flashbulb.export.artifact import FileRecord, digest, record
from flashbulb.export.bundle import read_bundle
from flashbulb.runtimes.listing_gates import OPEN_ERRORS
from flashbulb.runtimes.opening import open_listing
from mutants.fault import replace

MANIFEST = "manifest.json"


class Overlay:
    """The files of a bundle under another folder of the same disk; the bundle itself is never written to."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base, self.root = base, folder
        shutil.rmtree(folder, ignore_errors=True)
        self.names = sorted(p.relative_to(base).as_posix() for p in base.rglob("*") if p.is_file())
        for name in self.names:
            self._link(name)

    def _link(self, name: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.link(self.base / name, path)

    def changed(self) -> list[str]:
        """Name the files that are no longer the bundle's own."""
        return [n for n in self.names if not self._same(n)]

    def _same(self, name: str) -> bool:
        path = self.root / name
        return path.is_file() and path.stat().st_ino == (self.base / name).stat().st_ino

    def restore(self) -> None:
        """Mend everything."""
        known = {self.root / name for name in self.names}
        for path in [p for p in self.root.rglob("*") if p.is_file() and p not in known]:
            path.unlink()
        for name in self.changed():
            self._link(name)

    def sign(self) -> None:
        """Make the manifest vouch for what the changed files now hold, as their maker would have done."""
        changed = set(self.changed()) - {MANIFEST}
        if not changed:
            return
        path = self.root / MANIFEST
        manifest = msgspec.json.decode(path.read_bytes())
        for artifact in manifest["artifacts"]:
            if any(f["path"] in changed for f in artifact["files"]):
                self._sign_artifact(artifact, changed)
        manifest["files"] = [self._record(f, changed) for f in manifest["files"]]
        temporary = path.with_name("signed")
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        temporary.replace(path)

    def record(self) -> None:
        """Make the structure records of changed programs anew, as an exporter with a bug writes them.

        A program that cannot be taken apart keeps the old one: nobody could have recorded it.
        """
        changed = set(self.changed())
        found = read_bundle(self.root)
        for artifact in found.manifest.artifacts:
            if changed.intersection(f.path for f in artifact.files):
                self._record_lines(structure.file_name(artifact), partial(open_listing, found, artifact))
        for path in changed.intersection(structure.OPTIMUM_PROGRAMS.values()):
            self._record_lines(structure.loose_name(path), partial(read, self.root / path, "onnx"))

    def _record_lines(self, name: str, listing: Callable[[], Listing]) -> None:
        path = self.root / name
        try:
            lines, old = dict(listing().lines), structure.read_record(path)
        except OPEN_ERRORS:
            return
        if old is not None:
            replace(path, msgspec.json.encode(msgspec.structs.replace(old, lines=lines)) + b"\n")

    def _sign_artifact(self, artifact: dict[str, Any], changed: set[str]) -> None:
        files = [self._record(f, changed) for f in artifact["files"]]
        artifact["files"] = files
        artifact["size_bytes"] = sum(f["size_bytes"] for f in files)
        artifact["sha256"] = digest(tuple(msgspec.convert(f, FileRecord) for f in files))

    def _record(self, old: dict[str, Any], changed: set[str]) -> dict[str, Any]:
        path = self.root / old["path"]
        if old["path"] not in changed or not path.is_file():
            return old
        found: dict[str, Any] = msgspec.to_builtins(record(path, self.root))
        return found
