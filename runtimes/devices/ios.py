"""iPhones and iPads: a benchmark app there runs the bundle's Core ML programs, and is judged here.

What passes between the two is described in ``exchange.py``.  What the app computed passes the gates that
every engine passes; its times are held to what was asked, to what is possible, and to how warm the device
was; what it left out fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.devices.app_engine import App
from flashbulb.runtimes.devices.condition import warmth
from flashbulb.runtimes.devices.exchange import (
    MOST_CORES,
    MOST_MEMORY_BYTES,
    UNITS,
    Answer,
    Exchanged,
    exchange,
)
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.gates import engine_gates, sanity
from flashbulb.runtimes.records import Device, LatencyRecord, ParityRecord, SanityRecord

MOST_MS = 86_400_000.0
"""A day: no run takes longer."""
LEAST_MS = 1e-6
MOST_RUNS = 1_000_000
TIMES = ("min_ms", "p50_ms", "p90_ms", "p99_ms")


class Found(NamedTuple):
    """What came of a device."""

    device: Device
    records: list[SanityRecord | ParityRecord | LatencyRecord]


def serves(bundle: Bundle, engine: str | None) -> None:
    """Hold what is asked to what the app runs: the Core ML programs.

    Raises:
        EngineError: when another engine is asked for, or the bundle holds no such program.
    """
    held = sorted({a.format for a in bundle.manifest.artifacts})
    if engine not in (None, "coreml") or not any(a.backend == "coreml" for a in bundle.manifest.artifacts):
        raise EngineError(
            f"wanted Core ML programs for a device of Apple, got engine {engine!r} and a bundle with {held}"
        )


def check(bundle: Bundle, udid: str, manifest_sha256: str, *, cases: int | None) -> Found:
    """Let the app on a device compute the golden cases, and judge what it found.

    Raises:
        EngineError: when the device cannot be reached, or leaves no answer to this request.
    """
    count = min(cases or len(bundle.golden()), len(bundle.golden()))
    found = exchange(bundle, udid, manifest_sha256, cases=count, runs=0)
    return Found(found.answer.device, [file_gate(bundle, found.answer, udid), *judged(bundle, found, udid)])


def bench(bundle: Bundle, udid: str, manifest_sha256: str, *, runs: int) -> Found:
    """Let the app on a device time the programs, and judge what it found.

    Raises:
        EngineError: when the device cannot be reached, or leaves no answer to this request.
    """
    found = exchange(bundle, udid, manifest_sha256, cases=0, runs=runs)
    return Found(found.answer.device, [file_gate(bundle, found.answer, udid), *timed(bundle, found, udid)])


def judged(bundle: Bundle, found: Exchanged, udid: str) -> Iterator[SanityRecord | ParityRecord]:
    """Ask the gates of every engine, once for each kind of compute units."""
    for units in found.asked.units:
        app = App(units=units, udid=udid, asked=found.asked, tensors=found.tensors)
        yield from engine_gates(bundle, app, threads=1, cases=found.asked.cases)


def file_gate(bundle: Bundle, answer: Answer, udid: str) -> SanityRecord:
    """Hold what the app says of its files to the manifest's hashes; where it says nothing, skip."""
    wanted = {f.path: f.sha256 for a in bundle.manifest.artifacts if a.backend == "coreml" for f in a.files}
    if not answer.files:
        words = f"not judged: the app on {udid} told no hashes of the files that it opened"
        return SanityRecord(gate="device_files", engine=udid, verdict="skip", sentence=words)
    wrong = [path for path, sha256 in wanted.items() if answer.files.get(path) != sha256]
    words = f"{len(wanted)} files on {udid} have the recorded SHA-256"
    if wrong:
        words = f"{len(wrong)} of {len(wanted)} files on {udid} are not those of the bundle: {wrong[0]}"
    return sanity("device_files", udid, not wrong, words, value=float(len(wanted)))


def labels(udid: str) -> tuple[str, ...]:
    """Name the engines of a device: one for each kind of compute units."""
    return tuple(f"coreml@{units}@{udid}" for units in UNITS)


def timed(bundle: Bundle, found: Exchanged, udid: str) -> Iterator[LatencyRecord | SanityRecord]:
    """Hold every figure to what was asked, whatever the app made of it; and ask for what it left out."""
    held: dict[str, int] = {
        a.component: a.size_bytes for a in bundle.manifest.artifacts if a.backend == "coreml"
    }
    programs = {(a.component, a.precision) for a in bundle.manifest.artifacts if a.backend == "coreml"}
    known = labels(udid)
    for record in found.answer.latency:
        fault = _fault(record, found.asked.runs)
        if (record.target, record.precision) not in programs:
            fault = f"the bundle has no such program of {record.precision}"
        if record.engine not in known:
            fault = f"wanted compute units of {', '.join(found.asked.units)}, got others"
        yield _retimed(record, fault, held.get(record.target))
    for label in known:
        told = [r.target for r in found.answer.latency if r.engine == label]
        absent, twice = sorted(set(held) - set(told)), sorted(t for t in set(told) if told.count(t) > 1)
        words = f"{label} left out {', '.join(absent)}" if absent else f"{label} timed every program"
        words = f"{label} timed {twice[0]} {told.count(twice[0])} times" if twice else words
        yield sanity("answer", label, not (absent or twice), words, value=float(len(set(told))))


def _fault(record: LatencyRecord, runs: int) -> str:
    """Say what cannot be true of a figure, or is not what was asked; empty for a sound one."""
    if record.runs < runs:
        return f"wanted {runs} runs, got {record.runs}"
    times = [getattr(record, name) for name in TIMES]
    if times[0] <= 0 or times != sorted(times):
        return "wanted positive times that rise from least to p99, got others"
    bounds: dict[str, tuple[float, float]] = {
        **dict.fromkeys(("load_ms", "first_ms", *TIMES), (LEAST_MS, MOST_MS)),
        "cpu_p50_ms": (0.0, MOST_MS * MOST_CORES),
        "cpu_over_wall": (0.0, MOST_CORES),
        "threads": (1, MOST_CORES),
        "runs": (1, MOST_RUNS),
        "disturbed_runs": (0, record.runs),
        "baseline_rss_bytes": (1, MOST_MEMORY_BYTES),
        "peak_rss_bytes": (max(1, record.baseline_rss_bytes), MOST_MEMORY_BYTES),
        "thermal_before": (0, 6),
        "thermal_after": (0, 6),
    }
    told = {name: getattr(record, name) for name in bounds}
    told |= {f"placement of {name}": share for name, share in record.placement.items()}
    for name, value in told.items():
        low, high = bounds.get(name, (0.0, 1.0))
        if value is not None and not low <= value <= high:
            return f"wanted {name} from {low:g} to {high:g}, got {value:g}"
    return ""


def _retimed(record: LatencyRecord, fault: str, size_bytes: int | None) -> LatencyRecord:
    """Return a record with our verdict; what follows from the bundle is ours as well."""
    verdict, words = warmth(record.thermal_before, record.thermal_after)
    if fault:
        verdict, words = "fail", fault
    words = words if fault else f"median {record.p50_ms:.2f} ms, {words}"
    return msgspec.structs.replace(
        record,
        verdict=verdict,
        sentence=f"{record.engine} {record.target}: {words}",
        artifact_bytes=size_bytes,
        budget_ms=None,
        ratio_to_eager=None,
        cpu_ratio_to_eager=None,
        ratio_interval=None,
    )
