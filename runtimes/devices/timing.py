"""Time the programs of a bundle on a phone: opening, first run, steady runs, memory, and how warm it was.

A phone slows down when it is warm, so that it is let cool before each program, and a run that warmed it past
its first threshold is no figure.  What the cable costs is outside: the runner measures itself.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.devices import adb
from flashbulb.runtimes.devices.adb import THERMAL, Phone
from flashbulb.runtimes.devices.check import Found, Say, chosen
from flashbulb.runtimes.devices.remote import Remote
from flashbulb.runtimes.devices.wire import Link, Timing
from flashbulb.runtimes.engines.base import EngineError, fitted
from flashbulb.runtimes.latency import TURN, Effort, Samples
from flashbulb.runtimes.pipeline import Pipeline
from flashbulb.runtimes.records import LatencyRecord, SanityRecord

log = logging.getLogger(__name__)

Cores = Literal["all", "big", "little"]
STEP_S = 5.0
"""Time between two looks at a device that cools."""


class Wanted(NamedTuple):
    """What is asked of a phone."""

    engine: str | None
    """One engine, or all that there are files for."""
    runners: str | None
    """Folder with the runners for it."""
    cores: Cores
    """Which cores to use."""
    threads: int
    """Threads of one run."""
    effort: Effort
    """How long to measure."""
    cool_down_s: float
    """Longest time to wait until the phone is cool."""
    budget_ms: float | None = None
    """Largest median of the fused generator that passes."""


def bench_device(bundle: Bundle, word: str, wanted: Wanted, say: Say) -> Found:
    """Time the engines of a bundle on a phone, ``adb:SERIAL``.

    Raises:
        ValueError: for another word: an imitated processor says nothing of time.
        EngineError: when the phone cannot be opened, or has nothing to run.
    """
    kind, _, serial = word.partition(":")
    if kind != "adb" or not serial:
        raise ValueError(f"wanted a device to time as 'adb:SERIAL', got {word!r}")
    engines = chosen(bundle, wanted.engine)
    with adb.phone(serial, wanted.runners) as launcher:
        launcher.cores = mask(launcher, wanted.cores)
        found = Found([*adb.prepare(launcher, bundle, ("ort", "pte"))], None)
        for index, engine in enumerate(engines):
            say(index, len(engines), f"{engine.label} on {serial}")
            remote = Remote(inner=engine, launcher=launcher)
            effort, patience_s = wanted.effort, wanted.cool_down_s
            timed = bench_phone(bundle, remote, threads=wanted.threads, effort=effort, cool_down_s=patience_s)
            found.records.extend(within(record, wanted.budget_ms) for record in timed)
        found.records.extend(adb.finish(launcher))
        return Found(found.records, adb.describe(launcher))


def within(record: LatencyRecord | SanityRecord, budget_ms: float | None) -> LatencyRecord | SanityRecord:
    """Hold the time of the fused generator, from prompt to picture, to a budget."""
    if budget_ms is None or not isinstance(record, LatencyRecord) or record.target != "generator":
        return record
    if record.p50_ms <= budget_ms:
        return msgspec.structs.replace(record, budget_ms=budget_ms)
    words = f"{record.sentence}; the budget is {budget_ms:.2f} ms"
    return msgspec.structs.replace(record, budget_ms=budget_ms, verdict="fail", sentence=words)


def bench_phone(
    bundle: Bundle, remote: Remote, *, threads: int, effort: Effort, cool_down_s: float
) -> Iterator[LatencyRecord | SanityRecord]:
    """Time every component of an engine on a phone; what cannot run is one failed condition."""
    launcher: Phone = remote.launcher
    for name, artifact in remote.artifacts(bundle, None).items():

        def timed(artifact: Artifact = artifact) -> LatencyRecord:
            cool(launcher, cool_down_s)
            link = launcher.link(bundle, artifact, threads)
            return _timed(bundle, remote, artifact, link, threads, effort)

        try:
            yield launcher.attempt(timed)
        except EngineError as error:
            words = f"{remote.label} {name} could not be timed: {error}"
            yield SanityRecord(gate="bench", engine=remote.label, verdict="fail", sentence=words)
        finally:
            launcher.close()


def thermal_status(launcher: Phone) -> int | None:
    """Return Android's thermal status, 0 for none to 6 for shutdown; None where it is not told."""
    found = THERMAL.search(launcher.shell.run(["dumpsys", "thermalservice"], check=False))
    return int(found[1]) if found else None


def cool(launcher: Phone, patience_s: float) -> None:
    """Wait until a device is cool.

    Raises:
        EngineError: when it is still warm after all the time it was given.
    """
    begun = time.monotonic()
    while status := thermal_status(launcher):
        if time.monotonic() - begun >= patience_s:
            raise EngineError(
                f"wanted {launcher.where} cool, got thermal status {status} for {patience_s:.0f} s"
            )
        log.info("%s is warm (thermal status %d); waiting", launcher.where, status)
        time.sleep(min(STEP_S, patience_s))


def mask(launcher: Phone, cores: Cores) -> str | None:
    """Return the cores of one kind as ``taskset`` takes them: hexadecimal; None for all.

    Raises:
        EngineError: when the device has one kind only, or does not tell.
    """
    if cores == "all":
        return None
    line = "for c in /sys/devices/system/cpu/cpu[0-9]*; do echo $c $(cat $c/cpufreq/cpuinfo_max_freq); done"
    text = launcher.shell.run(["sh", "-c", line], check=False)
    fastest = {int(n): int(khz) for n, khz in re.findall(r"cpu(\d+) (\d+)$", text, re.MULTILINE)}
    kinds = sorted(set(fastest.values()))
    if len(kinds) < 2:
        raise EngineError(
            f"wanted {cores} cores of {launcher.where}, got cores of {len(kinds)} kind(s); say all"
        )
    wanted = kinds[-1] if cores == "big" else kinds[0]
    return f"{sum(1 << n for n, khz in fastest.items() if khz == wanted):x}"


def _timed(
    bundle: Bundle, remote: Remote, artifact: Artifact, link: Link, threads: int, effort: Effort
) -> LatencyRecord:
    case = bundle.golden()[0]
    given = {"sample": Pipeline(bundle, None).sample(case["noise"]), **case}
    where = f"{remote.label} {artifact.component}"
    before = thermal_status(remote.launcher)
    feeds = {spec.name: fitted(spec, given, where) for spec in artifact.inputs}
    link.run(feeds, [spec.name for spec in artifact.outputs])
    first, found = link.last(), steady(link, effort)
    after = thermal_status(remote.launcher)
    return _record(remote, artifact, link, threads, first, found, (before, after))


def steady(link: Link, effort: Effort) -> list[Timing]:
    """Run until there are enough runs, or the time is over and there are ten."""
    link.time(effort.warmup)
    found: list[Timing] = []
    begun = time.monotonic()
    while len(found) < effort.runs:
        found += link.time(min(TURN, effort.runs - len(found)))
        if time.monotonic() - begun > effort.seconds and len(found) >= 10:
            break
    return found


def _record(
    remote: Remote,
    artifact: Artifact,
    link: Link,
    threads: int,
    first: Timing,
    found: list[Timing],
    thermal: tuple[int | None, int | None],
) -> LatencyRecord:
    wall, cpu = (np.asarray(column) for column in zip(*found, strict=True))
    samples = Samples(wall_ms=wall.tolist(), cpu_ms=cpu.tolist())
    p50, p90, p99 = (float(v) for v in np.percentile(wall, (50, 90, 99)))
    warm = thermal[1] is not None and thermal[1] > (thermal[0] or 0)
    words = f"{remote.label} {artifact.component}: median {p50:.2f} ms on {threads} thread(s)"
    words += "" if thermal[1] is None else f", thermal status {thermal[0]} before and {thermal[1]} after"
    words += "; it got warm, so this is no figure" if warm else ""
    return LatencyRecord(
        engine=remote.label,
        precision=artifact.precision,
        target=artifact.component,
        threads=threads,
        load_ms=link.hello.load_ms,
        first_ms=first.wall_ms,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        min_ms=float(wall.min()),
        runs=len(found),
        cpu_p50_ms=float(np.median(cpu)),
        cpu_over_wall=float(np.median(cpu / wall)),
        disturbed_runs=samples.disturbed(threads),
        ratio_to_eager=None,
        cpu_ratio_to_eager=None,
        baseline_rss_bytes=link.hello.rss_bytes,
        peak_rss_bytes=link.peak_rss_bytes(),
        artifact_bytes=artifact.size_bytes,
        verdict="fail" if warm else "pass",
        sentence=words,
    )
