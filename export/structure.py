"""The structure record of an artifact: every operation, attribute, wire and constant as a line of text.

Written at export from what the exporter's own libraries read, and held at check against what is in the file
then: a digest of the whole says that something changed, these lines say what.  Constants of more than a few
values are digests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import msgspec

from flashbulb.distill.typed_json import decode
from flashbulb.distill.untrusted import UntrustedError, read_small
from flashbulb.export.anatomy import read
from flashbulb.export.anatomy.listing import AnatomyError
from flashbulb.export.artifact import Artifact

FOLDER = "structure"
OPTIMUM = "optimum"
"""Where the layout of optimum's pipelines lies in a bundle."""
OPTIMUM_PROGRAMS = {name: f"{OPTIMUM}/{name}/model.onnx" for name in ("text_encoder", "unet", "vae_decoder")}
"""Its programs, which no artifact of the manifest names."""
MOST_BYTES = 64 << 20
"""That of a billion-weight UNet has about five megabytes."""


class Structure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an artifact was when it was exported."""

    schema_version: int = 1
    """Version of this layout."""
    contract: dict[str, str]
    """What the manifest says of the artifact, its files aside."""
    lines: dict[str, str]
    """Name of an operation or constant -> what it is."""
    source: str | None = None
    """SHA-256 of the checkpoint that it was exported from; null in records of older exporters."""


def file_name(artifact: Artifact) -> str:
    """Return where an artifact's record lies in its bundle."""
    return f"{FOLDER}/{artifact.component}.{artifact.format}.json"


def contract(artifact: Artifact) -> dict[str, str]:
    """Return what the manifest promises of an artifact."""
    fields = ("component", "backend", "format", "path", "method", "precision", "inputs", "outputs", "floor")
    told = {name: getattr(artifact, name) for name in (*fields, "encodings")}
    return {name: msgspec.json.encode(value, order="sorted").decode() for name, value in told.items()}


def loose_name(program: str) -> str:
    """Return where the record of a program lies that is no artifact, as those of ``optimum/``."""
    path = PurePosixPath(program)
    return f"{FOLDER}/{'.'.join(path.parent.parts)}{path.suffix}.json"


def write_all(artifacts: Iterable[Artifact], root: Path, source: str, loose: Iterable[str] = ()) -> None:
    """Write the record of every program, made from the checkpoint of a digest, under a bundle's root.

    Args:
        artifacts: what the manifest names.
        root: the bundle's folder.
        source: SHA-256 of the checkpoint.
        loose: paths in the bundle of ONNX programs that are no artifacts.
    """
    import shutil

    shutil.rmtree(root / FOLDER, ignore_errors=True)
    (root / FOLDER).mkdir(parents=True)
    for artifact in artifacts:
        lines = _lines(artifact, root / artifact.path)
        record = Structure(contract=contract(artifact), lines=lines, source=source)
        (root / file_name(artifact)).write_bytes(msgspec.json.encode(record) + b"\n")
    for program in loose:
        record = Structure(contract={}, lines=dict(read(root / program, "onnx").lines), source=source)
        (root / loose_name(program)).write_bytes(msgspec.json.encode(record) + b"\n")


def _lines(artifact: Artifact, path: Path) -> dict[str, str]:
    if artifact.format == "mlpackage":
        from flashbulb.export.anatomy.coreml import package_lines

        return package_lines(path)
    return dict(read(path, artifact.format, artifact.method).lines)


def read_structure(root: Path, artifact: Artifact) -> Structure | None:
    """Read the record of an artifact; None where the bundle has none, as those of older exporters.

    Raises:
        AnatomyError: when it cannot be read.
    """
    return read_record(root / file_name(artifact))


def read_record(path: Path) -> Structure | None:
    """Read a record; None where there is none.

    Raises:
        AnatomyError: when it cannot be read.
    """
    if not path.is_file():
        return None
    try:
        found = decode(read_small(path, MOST_BYTES), Structure)
    except (OSError, UntrustedError) as error:
        raise AnatomyError(f"wanted a structure record in {path.name}, got: {error}") from error
    if found.schema_version != 1:
        raise AnatomyError(f"wanted a structure record of schema 1, got {found.schema_version}")
    return found


def differences(wanted: Mapping[str, str], got: Mapping[str, str]) -> Iterator[str]:
    """Yield what is not as it was, in the order of the record."""
    for name, line in wanted.items():
        if name not in got:
            yield f"{name!r} is gone, it was {_short(line)}"
        elif got[name] != line:
            yield f"{name!r} was {_short(line, got[name])}, is {_short(got[name], line)}"
    for name in got:
        if name not in wanted:
            yield f"{name!r} is new: {_short(got[name])}"


def _short(line: str, other: str = "") -> str:
    """Cut a long line to the part around where it departs from another."""
    same = next((i for i, (a, b) in enumerate(zip(line, other, strict=False)) if a != b), 0)
    start = max(0, same - 40)
    cut = line[start : start + 160]
    return f"`{'...' if start else ''}{cut}{'...' if start + 160 < len(line) else ''}`"
