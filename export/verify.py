"""Judge a bundle that may be hostile: its manifest first, then every file.  No torch here."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from flashbulb.distill.untrusted import UntrustedError, parse_json, read_small
from flashbulb.export.artifact import Artifact, FileRecord, digest, file_sha256
from flashbulb.export.bounds import (
    MOST_CONTAINERS,
    MOST_HOLE_BYTES,
    MOST_MANIFEST_BYTES,
    clash,
    faults,
    portable,
    runs,
    twice,
)
from flashbulb.export.bundle import MANIFEST, SCHEMA_VERSION, Bundle, BundleError, Manifest
from flashbulb.export.pickles import hole_bytes, is_pickle

_AGAIN = "export the bundle again, or fetch it from where it was published"


class _Version(msgspec.Struct):
    """The one field that every version of the manifest has."""

    schema_version: int


def parse_manifest(root: Path) -> Manifest:
    """Read `manifest.json` and judge it without opening any other file."""
    data = _manifest_bytes(root)
    try:
        parse_json(data, most_containers=MOST_CONTAINERS)
        version = msgspec.json.decode(data, type=_Version).schema_version
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"wanted manifest schema {SCHEMA_VERSION}, got {version} in {root}; "
                "use the flashbulb that wrote it"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UntrustedError, RecursionError) as error:
        raise BundleError(
            f"wanted a manifest of schema {SCHEMA_VERSION} in {root}, got: {error}; {_AGAIN}"
        ) from error
    check_manifest(manifest)
    return manifest


def _manifest_bytes(root: Path) -> bytes:
    path = root / MANIFEST
    try:
        regular = not path.is_symlink() and path.is_file()
    except OSError as error:  # a path longer than the system takes
        raise BundleError(f"wanted a path of a folder, got {error.strerror}: {str(path)[:80]!r}") from error
    if not regular:
        raise BundleError(f"wanted a regular file {path}, got none; give the folder that `export` wrote")
    try:
        return read_small(path, MOST_MANIFEST_BYTES)
    except UntrustedError as error:
        raise BundleError(f"{error}; {_AGAIN}") from error


def check_manifest(manifest: Manifest) -> None:
    """Check what a manifest says of itself: numbers, paths, artifacts, gates."""
    _check_finite(msgspec.to_builtins(manifest), ("manifest",))
    paths = [*(r.path for r in all_files(manifest)), *(a.path for a in manifest.artifacts)]
    for path in paths:
        check_path(path)
    for fault in faults(manifest):
        raise BundleError(f"wanted {fault}; {_AGAIN}")
    _check_unique(manifest)
    for artifact in manifest.artifacts:
        _check_artifact(artifact)
    _check_components(manifest)
    _check_references(manifest)
    _check_sampling(manifest)


def _check_finite(value: Any, where: tuple[Any, ...]) -> None:
    """Refuse a number that is none, wherever a decoded manifest holds it."""
    if isinstance(value, float) and not math.isfinite(value):
        place = ".".join(str(part) for part in where)
        raise BundleError(f"wanted a finite number at {place}, got {value}; {_AGAIN}")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_finite(item, (*where, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_finite(item, (*where, index))


def check_path(path: str) -> None:
    """Refuse a path that could leave the bundle, mean two things on two systems, or have code run."""
    parts = path.split("/")
    bad = (
        not path
        or path.startswith("/")
        or re.match("^[A-Za-z]:", path) is not None
        or "\\" in path
        or any(ord(c) < 32 for c in path)
        or any(part in ("", ".", "..") for part in parts)
        or path == MANIFEST
        or not portable(path)
    )
    if bad:
        raise BundleError(f"wanted a relative path inside the bundle, got {path!r}; do not use this bundle")
    if runs(path):
        raise BundleError(f"wanted data, got {path!r}, by which code could run; do not use this bundle")


def all_files(manifest: Manifest) -> list[FileRecord]:
    """List every file that the manifest vouches for; methods of one program share theirs."""
    unique = {(r.path, r.sha256, r.size_bytes): r for a in manifest.artifacts for r in a.files}
    return [*unique.values(), *manifest.files]


def _check_unique(manifest: Manifest) -> None:
    """Refuse two records of one file, also where only the letter case differs, or a file that is a folder."""
    if path := clash([MANIFEST, *(found.path for found in all_files(manifest))]):
        raise BundleError(f"wanted one record per file, got several for {path!r}; {_AGAIN}")
    if key := twice((a.component, a.backend, a.format) for a in manifest.artifacts):
        raise BundleError(f"wanted one artifact per component, backend and format, got {key} twice; {_AGAIN}")


def _check_artifact(artifact: Artifact) -> None:
    name = f"{artifact.component}/{artifact.backend}/{artifact.format}"
    inside = [
        r.path for r in artifact.files if r.path == artifact.path or r.path.startswith(artifact.path + "/")
    ]
    if not inside:
        raise BundleError(f"wanted files of {name} at {artifact.path!r}, the manifest lists none; {_AGAIN}")
    total = sum(r.size_bytes for r in artifact.files)
    if total != artifact.size_bytes:
        raise BundleError(
            f"wanted {name} to hold {artifact.size_bytes} bytes, its files sum to {total}; {_AGAIN}"
        )
    if digest(artifact.files) != artifact.sha256:
        raise BundleError(
            f"wanted {name} to have sha256 {artifact.sha256}, its file list has another; {_AGAIN}"
        )


def _check_components(manifest: Manifest) -> None:
    """Each backend needs all components of a pipeline, or the fused generator."""
    wanted = {"unet", "vae_decoder", "text_encoder"}
    if len(manifest.tokenizers) > 1:
        wanted.add("text_encoder_2")
    for backend in sorted({a.backend for a in manifest.artifacts}):
        have = {a.component for a in manifest.artifacts if a.backend == backend}
        if "generator" not in have and wanted - have:
            raise BundleError(
                f"wanted {sorted(wanted)} for {backend}, missing {sorted(wanted - have)}; {_AGAIN}"
            )
    if not manifest.artifacts:
        raise BundleError(f"wanted at least one artifact, got none; {_AGAIN}")


def _check_references(manifest: Manifest) -> None:
    """Every file that the manifest points to must be one that it vouches for."""
    known = {r.path for r in all_files(manifest)}
    wanted = [manifest.golden.tensors, *(c.png for c in manifest.golden.cases)]
    wanted += [f"{t.folder}/tokenizer.json" for t in manifest.tokenizers]
    wanted += [licence.file for licence in manifest.licences if licence.file]
    for path in wanted:
        if path not in known:
            raise BundleError(f"wanted a record of {path!r}, the manifest has none; {_AGAIN}")
    if not manifest.golden.cases or not manifest.tokenizers:
        raise BundleError(f"wanted golden cases and a tokenizer, got none; {_AGAIN}")


def _check_sampling(manifest: Manifest) -> None:
    """The two factors of the one step must be those of its constants."""
    sampling = manifest.sampling
    wanted = sampling.one_step.coefficients()
    got = (sampling.noise_coefficient, sampling.output_coefficient)
    if not all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) for a, b in zip(wanted, got, strict=True)):
        raise BundleError(f"wanted one-step coefficients {wanted}, got {got}; {_AGAIN}")


def check_files(bundle: Bundle) -> None:
    """Hold every file to its record, and refuse files without one."""
    known = {r.path: r for r in all_files(bundle.manifest)}
    for record in known.values():
        _check_file(bundle.root, record)
    for path in _walk(bundle.root):
        name = path.relative_to(bundle.root).as_posix()
        if name not in known and name != MANIFEST:
            raise BundleError(f"wanted only files of the manifest in {bundle.root}, got {name!r}; remove it")


def _walk(root: Path) -> Iterator[Path]:
    """Yield every file under a folder; a link anywhere is refused."""
    for folder, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(folder) / name
            if path.is_symlink():
                raise BundleError(f"wanted regular files, got the link {path}; copy the file it points to")
        yield from (Path(folder) / name for name in files)


def _check_file(root: Path, record: FileRecord) -> None:
    check_path(record.path)
    path = root
    for part in record.path.split("/"):
        path = path / part
        if path.is_symlink():
            raise BundleError(f"wanted regular files, got the link {path}; copy the file it points to")
    if not path.is_file():
        raise BundleError(f"wanted the file {record.path!r} in {root}, got none; {_AGAIN}")
    size = path.stat().st_size
    if size != record.size_bytes:
        raise BundleError(f"wanted {record.size_bytes} bytes in {record.path!r}, got {size}; {_AGAIN}")
    if size > MOST_HOLE_BYTES and hole_bytes(path, MOST_HOLE_BYTES) > MOST_HOLE_BYTES:
        raise BundleError(
            f"wanted {size} written bytes in {record.path!r}, got a hole of more than {MOST_HOLE_BYTES}, "
            "which costs nothing to store and long to read; do not use this bundle"
        )
    if is_pickle(path):
        raise BundleError(
            f"wanted data in {record.path!r}, got a pickle, which can run code, or an archive that may "
            "hold one; do not use this bundle"
        )
    got = file_sha256(path)
    if got != record.sha256:
        raise BundleError(f"wanted sha256 {record.sha256} for {record.path!r}, got {got}; {_AGAIN}")
