"""Check a bundle on another machine: every gate of its engines there, and agreement with this machine."""

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
from flashbulb.runtimes.records import Device, LatencyRecord, ParityRecord, SanityRecord

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
        say(0, 1, word)
        answer = ios.check(bundle, word.removeprefix("ios:"), wanted.manifest_sha256, cases=wanted.cases)
        return Found([*found.records, *answer.records], answer.device)
    engines = chosen(bundle, wanted.engine)
    with open_device(word, wanted.runners) as place:
        found.records.extend(place.prepare(bundle))
        pairs = [(launcher, engine) for launcher in place.launchers for engine in engines]
        for index, (launcher, engine) in enumerate(pairs):
            say(index, len(pairs), f"{engine.label} on {launcher.where}")
            found.records.extend(device_gates(bundle, place, launcher, engine, wanted.cases))
        found.records.extend(place.finish())
        return Found(found.records, place.describe())


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
    bundle: Bundle, place: Place, launcher: Launcher, inner: Ort | Executorch, cases: int | None
) -> Records:
    """Judge one engine on one processor of a device, on some of the golden cases or all."""
    cases = cases or place.cases
    remote = Remote(inner=inner, launcher=launcher)
    try:
        yield from engine_gates(bundle, remote, threads=1, cases=cases)
        if proof := place.proof(launcher, remote.label):
            yield proof
        yield from _agreement(bundle, remote, cases)
    finally:
        launcher.close()


def _agreement(bundle: Bundle, remote: Remote, cases: int | None) -> Records:
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
        here, there = inner.load(bundle, threads=1), remote.load(bundle, threads=1)
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
