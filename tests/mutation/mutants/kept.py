"""Verdicts kept beside the overlay: of one bundle, one seed and one state of the code, and of no other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import msgspec

from mutants.fault import Refused
from mutants.judge import Verdict

NAME = "verdicts.jsonl"
JUDGING = ("distill", "compress", "export", "runtimes")
"""Packages whose code decides on a verdict."""


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What verdicts were made of: the first line of their file."""

    manifest_sha256: str
    """SHA-256 of the bundle's manifest, which names every other file's."""
    seed: int
    """What chose the places."""
    donors: dict[str, str]
    """Kind -> SHA-256 of the manifest of the bundle that its files came from."""
    flashbulb: str
    """Version, and a digest of the code that planted and judged."""


def head(base: Path, donors: Mapping[str, Path], seed: int) -> Head:
    """Say what a run is about.

    Args:
        base: folder of the bundle.
        donors: kind of fault -> a bundle that its files come from.
        seed: what chooses the places.
    """
    return Head(
        manifest_sha256=_manifest(base),
        seed=seed,
        donors={kind: _manifest(donor) for kind, donor in sorted(donors.items())},
        flashbulb=f"{metadata.version('flashbulb')}, code {_code()[:12]}",
    )


def _manifest(root: Path) -> str:
    return hashlib.sha256((root / "manifest.json").read_bytes()).hexdigest()


def _code() -> str:
    """Return one digest of the code that plants and judges."""
    import flashbulb

    package = Path(flashbulb.__file__).parent
    folders = [*(package / name for name in JUDGING), Path(__file__).parent]
    found = hashlib.sha256()
    for folder in (f.resolve() for f in folders):
        for path in sorted(folder.rglob("*.py")):
            found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def read_kept(path: Path, wanted: Head) -> dict[str, Verdict]:
    """Return the verdicts of an earlier run by name; begin the file where there is none.

    Raises:
        Refused: when they are of another bundle, seed, donor or code.
    """
    if not path.is_file():
        path.write_bytes(msgspec.json.encode(wanted) + b"\n")
        return {}
    first, *lines = path.read_bytes().splitlines() or [b""]
    if differing := _differing(first, wanted):
        raise Refused(
            f"wanted verdicts of this run in {path}, got those of another: {differing}; "
            "give another --out, or remove that file"
        )
    return {v.name: v for v in (msgspec.json.decode(line, type=Verdict) for line in lines)}


def _differing(line: bytes, wanted: Head) -> str:
    """Say in which fields a head differs; nothing where it is the same."""
    try:
        got = msgspec.json.decode(line, type=Head)
    except msgspec.DecodeError:
        return "its first line does not say which"
    pairs = {n: (getattr(got, n), getattr(wanted, n)) for n in wanted.__struct_fields__}
    return ", ".join(f"{n} is {old}, here {new}" for n, (old, new) in pairs.items() if old != new)
