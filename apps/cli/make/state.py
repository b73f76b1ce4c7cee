"""What ``make`` remembers of each stage, so that it redoes only what a change touches."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from flashbulb.distill.typed_json import decode
from flashbulb.distill.untrusted import UntrustedError

if TYPE_CHECKING:
    from collections.abc import Iterable

SCHEMA_VERSION = 1


class StageRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The last run of one stage, written before it starts and again when it is done."""

    schema_version: int = SCHEMA_VERSION
    """Version of this layout."""
    stage: str
    """Name of the stage."""
    key: str
    """Digest over its configuration and what its parents made."""
    status: Literal["started", "done"]
    """A stage that was started under the same key may go on where it was killed."""
    product: str = ""
    """What it made, relative to the folder of the run."""
    product_sha256: str = ""
    """Digest over what it made, so that a damaged product is made again."""
    seconds: float = 0.0
    """How long it took."""


def stage_key(stage: str, config: object, parents: Iterable[str], version: str) -> str:
    """Return the digest of everything that decides what a stage makes."""
    content = [stage, version, msgspec.to_builtins(config), list(parents)]
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()


def digest(product: Path) -> str:
    """Return one hash over the names and bytes of a file or folder; empty when it is not there."""
    if not product.exists():
        return ""
    total = hashlib.sha256()
    files = [product] if product.is_file() else sorted(p for p in product.rglob("*") if p.is_file())
    for file in files:
        total.update(file.relative_to(product.parent).as_posix().encode() + b"\0")
        with file.open("rb") as handle:
            total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.hexdigest()


def read_record(file: Path) -> StageRecord | None:
    """Read a record; one that cannot be read counts as none, and its stage runs again."""
    if not file.is_file():
        return None
    try:
        record = decode(file.read_bytes(), StageRecord)
    except UntrustedError:
        return None
    return record if record.schema_version == SCHEMA_VERSION else None


def write_record(record: StageRecord, file: Path) -> None:
    """Write a record through a temporary name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.partial")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    temporary.replace(file)
