"""Describe one exported program: its files, its tensors, and what runs it.  No torch here."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from flashbulb.distill.components import TensorSpec

ArtifactComponent = Literal["text_encoder", "text_encoder_2", "unet", "vae_decoder", "generator"]
"""A component by its diffusers folder name, or `generator`: all of them fused into one call."""

BackendName = Literal["coreml", "ort", "executorch"]
Format = Literal["mlpackage", "onnx", "ort", "pte"]
Precision = Literal["float32", "float16"]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, msgspec.Meta(ge=0)]


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One file of the bundle, with what is needed to notice any change to it."""

    path: str
    """Path relative to the bundle, with forward slashes."""
    sha256: Sha256
    """SHA-256 of the file's bytes."""
    size_bytes: Size
    """Length of the file."""


class RuntimeFloor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The oldest runtime that is known to open an artifact."""

    runtime: str
    """Name of the runtime: `coreml`, `onnxruntime` or `executorch`."""
    version: str
    """Oldest version of it."""
    platforms: dict[str, str] = {}
    """Oldest operating system per platform, such as `{"ios": "16.0"}`."""


class Delegation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much of a program runs in the accelerated delegate and how much in portable kernels."""

    delegate: str
    """Name of the delegate, such as `XnnpackBackend`."""
    delegates: Size
    """Number of delegated regions; one is best, each further one costs a hand-over."""
    delegated_ops: Size
    """Operators that the delegate took."""
    portable_ops: Size
    """Operators left to portable kernels, which are many times slower."""
    portable: dict[str, int] = {}
    """Count of each operator left outside."""

    def coverage(self) -> float:
        """Return the delegated share of all operators, in [0, 1]."""
        total = self.delegated_ops + self.portable_ops
        return self.delegated_ops / total if total else 0.0


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One component, lowered by one backend into one format."""

    component: ArtifactComponent
    """What it computes."""
    backend: BackendName
    """Which backend wrote it."""
    format: Format
    """File format; an `.mlpackage` is a directory."""
    path: str
    """The file or directory to hand to the runtime, relative to the bundle."""
    method: str | None = None
    """Method to call, where one program holds several."""
    precision: Precision
    """Precision of its arithmetic; inputs and outputs are declared by their specs."""
    inputs: tuple[TensorSpec, ...]
    """Tensors to give, in call order."""
    outputs: tuple[TensorSpec, ...]
    """Tensors that come back, in order."""
    files: tuple[FileRecord, ...]
    """Every file that belongs to it."""
    sha256: Sha256
    """Digest of the whole artifact, see `digest`."""
    size_bytes: Size
    """Sum of its files."""
    floor: RuntimeFloor
    """The oldest runtime that opens it."""
    encodings: dict[str, int] = {}
    """Number of weights per storage, such as `{"palettize6": 40}`; empty when none is compressed."""
    delegation: Delegation | None = None
    """Delegation coverage, for backends that delegate."""
    seconds: float | None = None
    """Time that lowering took, on the machine that did it."""


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of one file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def record(path: Path, root: Path) -> FileRecord:
    """Record one file relative to the bundle's root."""
    return FileRecord(
        path=path.relative_to(root).as_posix(), sha256=file_sha256(path), size_bytes=path.stat().st_size
    )


def records(path: Path, root: Path) -> tuple[FileRecord, ...]:
    """Record a file, or every file of a directory, sorted by path."""
    found = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if not found or any(p.stat().st_size == 0 for p in found):
        raise ValueError(f"wanted non-empty files at {path}, got {[str(p) for p in found]}; export it again")
    return tuple(sorted((record(p, root) for p in found), key=lambda r: r.path))


def digest(files: tuple[FileRecord, ...]) -> str:
    """Return one digest for an artifact: its file's own, or that of a sorted `sha256  path` listing."""
    if len(files) == 1:
        return files[0].sha256
    listing = "".join(f"{r.sha256}  {r.path}\n" for r in sorted(files, key=lambda r: r.path))
    return hashlib.sha256(listing.encode()).hexdigest()
