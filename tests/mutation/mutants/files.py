"""Faults in files as bytes: cut, reordered, wiped, exchanged, or from another bundle."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from flashbulb.export.artifact import Artifact, FileRecord, file_sha256
from flashbulb.export.bundle import BundleError, read_bundle
from mutants.fault import Plant, Planter, Refused, edited, replace
from mutants.flat import Table
from mutants.pte_view import PteFile

BLOCK = 4096


def file_faults(planter: Planter, root: Path, artifact: Artifact) -> None:
    """Add what may happen to the files of one artifact on their way."""
    for record in artifact.files:
        path, size = record.path, record.size_bytes
        planter.add("truncated", f"second half of {path} lost", edited(path, lambda d: d[: len(d) // 2]))
        planter.add("truncated", f"last 64 bytes of {path} lost", edited(path, lambda d: d[:-64]))
        if size < 4 * BLOCK:
            continue
        one, other = _blocks(planter, path, root)
        about = f"blocks of {BLOCK} bytes at {one} and {other} of {path} swapped"
        planter.add("reordered", about, edited(path, _swap(one, other)))
        planter.add("wiped", f"{BLOCK} bytes at {one} of {path} zero", edited(path, _wipe(one)))
    if artifact.format == "pte":
        _segments(planter, root, artifact.path)
    if artifact.format == "mlpackage":
        _padding(planter, root, artifact)


def _blocks(planter: Planter, path: str, root: Path) -> tuple[int, int]:
    """Choose two stretches with different bytes, none of them zero throughout."""
    data, rng = (root / path).read_bytes(), planter.rng(f"blocks/{path}")
    blocks = list(range(BLOCK, len(data) - BLOCK, BLOCK))
    rng.shuffle(blocks)
    live = (b for b in blocks if any(data[b : b + BLOCK]))
    one = next(live)
    return one, next(b for b in live if data[b : b + BLOCK] != data[one : one + BLOCK])


def _swap(one: int, other: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        kept = bytes(data[one : one + BLOCK])
        data[one : one + BLOCK] = data[other : other + BLOCK]
        data[other : other + BLOCK] = kept

    return change


def _wipe(start: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[start : start + BLOCK] = bytes(BLOCK)

    return change


def _segments(planter: Planter, root: Path, path: str) -> None:
    """Let two named weights of one size point at each other's data; flip a byte between two segments."""
    file = PteFile(bytearray((root / path).read_bytes()))
    sizes: dict[int, list[str]] = {}
    for key in file.named:
        start, count = file.where(key)
        held = bytes(file.data[start : start + count])
        if not any(held == file.data[slice(*_ends(file, k))] for k in sizes.get(count, ())):
            sizes.setdefault(count, []).append(key)
    for one, other in planter.pick("offsets-swapped", [k[:2] for k in sizes.values() if len(k) > 1], 2):

        def exchange(data: bytearray, one: str = one, other: str = other) -> None:
            named = {n.text(0): n for n in Table.root(data).tables(7)}
            first, second = named[one].number(1), named[other].number(1)
            assert named[one].put(1, "I", second)
            assert named[other].put(1, "I", first)

        planter.add(
            "offsets-swapped", f"segments of {one[:40]} and {other[:40]} swapped", edited(path, exchange)
        )
    gaps = [s + n for s, n in file.segments if s + n < len(file.data) and not file.data[s + n]]
    starts = {s for s, _ in file.segments}
    for place in planter.pick("same-program", [g for g in gaps if g not in starts], 1):
        planter.add("same-program", f"byte {place}, between two segments, changed", edited(path, _set(place)))


def _ends(file: PteFile, key: str) -> tuple[int, int]:
    start, count = file.where(key)
    return start, start + count


def _set(place: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[place] = 1

    return change


def _padding(planter: Planter, root: Path, artifact: Artifact) -> None:
    """Change a byte of a weight file that aligns the next record."""
    from mutants.equivalence import blob_spans
    from mutants.mlpackage_view import MlpackageView

    view = MlpackageView(root / artifact.path)
    live = sorted(blob_spans(view))
    gaps = [a[1] for a, b in itertools.pairwise(live) if a[1] < b[0]]
    path = next(f.path for f in artifact.files if f.path.endswith(".bin"))
    for place in planter.pick("same-program", gaps, 1):
        planter.add("same-program", f"padding byte {place} of {path} changed", edited(path, _set(place)))


def exchanged(planter: Planter, artifacts: Iterable[Artifact]) -> None:
    """Put one component's files where another's belong."""
    known = {a.component: a for a in artifacts}
    for one, other in (("unet", "vae_decoder"), ("vae_decoder", "text_encoder"), ("generator", "unet")):
        if one in known and other in known:
            about = f"the files of {other} in the place of those of {one}"
            planter.add("exchanged", about, _copy(known[other], known[one]))


def _copy(source: Artifact, target: Artifact) -> Plant:
    def plant(root: Path) -> None:
        for have, want in zip(source.files, target.files, strict=True):
            replace(root / want.path, (root / have.path).read_bytes())

    return plant


def check_donors(base: Path, donors: Mapping[str, Path]) -> None:
    """Refuse a donor that is no bundle, or has nothing to give.

    Raises:
        Refused: naming it.
    """
    for kind, donor in donors.items():
        try:
            read_bundle(donor)
        except BundleError as error:
            raise Refused(f"--donor {kind}={donor} is no bundle: {error}") from error
        if not any(_given(donor, artifact) for artifact in read_bundle(base).manifest.artifacts):
            raise Refused(
                f"wanted other programs under the names of {base} in --donor {kind}={donor}, got none; "
                "give a bundle of another student with the same shapes and backends"
            )


def _given(donor: Path, artifact: Artifact) -> list[FileRecord]:
    """Return the files of an artifact that a donor has; none where all of them are the same."""
    held = [f for f in artifact.files if (donor / f.path).is_file()]
    return held if any(file_sha256(donor / f.path) != f.sha256 for f in held) else []


def donated(planter: Planter, kind: str, donor: Path, artifact: Artifact) -> None:
    """Put the same files of another bundle in place, where the donor has them with other contents."""
    held = _given(donor, artifact)
    if not held:
        return

    def plant(root: Path) -> None:
        for record in held:
            temporary = (root / record.path).with_name("donated")
            shutil.copyfile(donor / record.path, temporary)
            temporary.replace(root / record.path)

    planter.add(kind, f"{artifact.path} from the bundle {donor.name}", plant)
