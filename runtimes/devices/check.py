"""Check a bundle on another machine: its files here, its engines there, and agreement with this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.devices import adb, ios, qemu
from flashbulb.runtimes.devices.agreement import agreement
from flashbulb.runtimes.devices.remote import Launcher, Remote
from flashbulb.runtimes.engines import Executorch, Ort
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.gates import bundle_gates, engine_gates, sanity
from flashbulb.runtimes.program_gates import program_gates
from flashbulb.runtimes.records import Device, LatencyRecord, ParityRecord, SanityRecord
from flashbulb.runtimes.source_gates import floor_gate

ENGINES = (Ort(artifact_format="ort"), Executorch())
"""What runs elsewhere: the files that apps load."""
Records = Iterator[SanityRecord | ParityRecord]
Say = Callable[[int, int, str], None]


class Place(NamedTuple):
    """A device that was opened."""

    launchers: tuple[Launcher, ...]
    """One per processor that it can show."""
    describe: Callable[[], Device]
    """Describe it; call it when runners have run."""
    prepare: Callable[[Bundle], Records]
    """Bring a bundle there."""
    proof: Callable[[Launcher, str], SanityRecord | None]
    """Say whether a launcher showed the processor that it should; called with the engine's label."""
    finish: Callable[[], Records] = lambda: iter(())
    """Look at the device once more when all is done."""
    cases: int | None = None
    """How many golden cases it runs where nothing else is said; None for all."""


class Wanted(NamedTuple):
    """What is asked of a device."""

    engine: str | None
    """One engine, or all that there are files for."""
    runners: str | None
    """Folder with the runners for it, where they cannot be made here."""
    cases: int | None
    """Golden cases to run; None for the device's own number."""
    manifest_sha256: str
    """Digest of the bundle's manifest."""
    threads: int = 1
    """Threads of each program there."""
    checkpoint: str | None = None
    """For the gates of the files: where the checkpoint is, if not where it was at export."""


class Found(NamedTuple):
    """What came of a device."""

    records: list[SanityRecord | ParityRecord | LatencyRecord]
    device: Device | None
    """None when none was asked, because the files are not those that were exported."""


def check_device(bundle: Bundle, word: str, wanted: Wanted, say: Say) -> Found:
    """Judge the files of a bundle, and then its engines on a device.

    Args:
        bundle: what to judge.
        word: ``qemu``, ``adb:SERIAL`` or ``ios:UDID``.
        wanted: what is asked.
        say: called with the parts done, their number, and the next one.

    Raises:
        ValueError: for an unknown device, listing the known.
        EngineError: when it cannot be opened, or has nothing to run.
    """
    found = Found([*bundle_gates(bundle)], None)
    if any(record.verdict == "fail" for record in found.records):
        return found
    if word.startswith("ios:"):
        return _check_app(bundle, word.removeprefix("ios:"), wanted, say, found)
    engines = chosen(bundle, wanted.engine)
    with open_device(word, wanted.runners) as place:
        pairs = [(launcher, engine) for launcher in place.launchers for engine in engines]
        say(0, len(pairs) + 1, "structure and weights")
        found.records.extend(program_gates(bundle, wanted.checkpoint, {e.backend for e in engines}))
        found.records.extend(place.prepare(bundle))
        for index, (launcher, engine) in enumerate(pairs):
            say(index + 1, len(pairs) + 1, f"{engine.label} on {launcher.where}")
            found.records.extend(device_gates(bundle, place, launcher, engine, wanted))
        found.records.extend(place.finish())
        return Found(_with_floors(found.records), place.describe())


def _check_app(bundle: Bundle, udid: str, wanted: Wanted, say: Say, found: Found) -> Found:
    """Judge the files, and what an app on a device of Apple says of them."""
    ios.serves(bundle, wanted.engine)
    say(0, 2, f"ios:{udid}")
    answer = ios.check(bundle, udid, wanted.manifest_sha256, cases=wanted.cases)
    say(1, 2, "structure and weights")
    files = program_gates(bundle, wanted.checkpoint, {"coreml"})
    return Found(_with_floors([*found.records, *files, *answer.records]), answer.device)


def _with_floors(
    records: list[SanityRecord | ParityRecord | LatencyRecord],
) -> list[SanityRecord | ParityRecord | LatencyRecord]:
    floors = floor_gate(records)
    return records if floors is None else [*records, floors]


def open_device(word: str, runners: str | None = None) -> AbstractContextManager[Place]:
    """Open a device by its word.

    Args:
        word: ``qemu`` or ``adb:SERIAL``.
        runners: folder with the runners for it, where they cannot be made here.

    Raises:
        ValueError: for an unknown word, listing the known.
        EngineError: when it cannot be opened.
    """
    kind, _, which = word.partition(":")
    if word == "qemu":
        return _qemu()
    if kind == "adb" and which:
        return _adb(which, runners)
    raise ValueError(f"wanted a device as 'qemu', 'adb:SERIAL' or 'ios:UDID', got {word!r}")


def chosen(bundle: Bundle, engine: str | None) -> list[Ort | Executorch]:
    """Return the engines that a device can run of a bundle.

    Raises:
        EngineError: when there is none.
    """
    found = [e for e in ENGINES if engine in (None, e.name) and _has(bundle, e)]
    if not found:
        held = sorted({a.format for a in bundle.manifest.artifacts})
        raise EngineError(
            f"wanted .ort or .pte files for {engine or 'a device'}, the bundle holds {held}; export them"
        )
    return found


def device_gates(
    bundle: Bundle, place: Place, launcher: Launcher, inner: Ort | Executorch, wanted: Wanted
) -> Records:
    """Judge one engine on one processor of a device, on some of the golden cases or all."""
    cases = wanted.cases or place.cases
    remote = Remote(inner=inner, launcher=launcher)
    try:
        yield from engine_gates(bundle, remote, threads=wanted.threads, cases=cases)
        if proof := place.proof(launcher, remote.label):
            yield proof
        yield from _agreement(bundle, remote, cases, wanted.threads)
    finally:
        launcher.close()


def _agreement(bundle: Bundle, remote: Remote, cases: int | None, threads: int) -> Records:
    inner = remote.inner
    if reason := inner.missing():
        yield SanityRecord(
            gate="agreement",
            engine=remote.label,
            verdict="skip",
            sentence=f"nothing to compare with: {reason}",
        )
        return
    try:
        here, there = inner.load(bundle, threads=1), remote.load(bundle, threads=threads)
        yield from agreement(bundle, here, there, cases)
    except EngineError as error:
        yield sanity("agreement", remote.label, False, f"{remote.label}: {error}")


def _has(bundle: Bundle, engine: Ort | Executorch) -> bool:
    wanted = "ort" if isinstance(engine, Ort) else "pte"
    return any(a.format == wanted for a in bundle.manifest.artifacts)


@contextmanager
def _qemu() -> Iterator[Place]:
    with qemu.processors() as launchers:
        yield Place(
            launchers,
            lambda: qemu.describe({launcher.where: launcher.features for launcher in launchers}),
            lambda bundle: iter(()),
            qemu.proof,
            cases=qemu.CASES,
        )


@contextmanager
def _adb(serial: str, runners: str | None) -> Iterator[Place]:
    with adb.phone(serial, runners) as launcher:
        yield Place(
            (launcher,),
            lambda: adb.describe(launcher),
            lambda bundle: adb.prepare(launcher, bundle, ("ort", "pte")),
            lambda launcher, engine: None,
            finish=lambda: adb.finish(launcher),
        )
