"""Time the programs of a bundle on a phone: opening, first run, steady runs, memory, and how warm it was.

A phone slows down when it is warm, so that it is let cool before each program, and a run that warmed it past
its first threshold is no figure.  What the cable costs is outside: the runner measures itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.devices import adb, ios
from flashbulb.runtimes.devices.adb import Phone
from flashbulb.runtimes.devices.check import Found, Say, chosen
from flashbulb.runtimes.devices.condition import (
    Condition,
    Cores,
    mask,
    settle,
    thermal_status,
    thread_count,
    warmth,
)
from flashbulb.runtimes.devices.remote import Remote
from flashbulb.runtimes.devices.wire import Link, Timing
from flashbulb.runtimes.engines.base import EngineError, fitted
from flashbulb.runtimes.gates import sanity
from flashbulb.runtimes.latency import TURN, Effort, Samples
from flashbulb.runtimes.pipeline import Pipeline
from flashbulb.runtimes.records import LatencyRecord, ParityRecord, SanityRecord

AnyRecord = SanityRecord | ParityRecord | LatencyRecord


class Wanted(NamedTuple):
    """What is asked of a phone."""

    engine: str | None
    """One engine, or all that there are files for."""
    runners: str | None
    """Folder with the runners for it."""
    cores: Cores
    """Which cores to use."""
    threads: int
    """Threads of one run; 0 for as many as there are cores to use."""
    effort: Effort
    """How long to measure."""
    cool_down_s: float
    """Longest time to wait until the phone is cool."""
    budget_ms: float | None = None
    """Largest median from prompt to picture that passes."""
    manifest_sha256: str = ""
    """Digest of the bundle's manifest."""


def bench_device(bundle: Bundle, word: str, wanted: Wanted, say: Say) -> Found:
    """Time the engines of a bundle on a phone, ``adb:SERIAL`` or ``ios:UDID``.

    Raises:
        ValueError: for another word: an imitated processor says nothing of time.
        EngineError: when the phone cannot be opened, or has nothing to run.
    """
    kind, _, serial = word.partition(":")
    if kind not in ("adb", "ios") or not serial:
        raise ValueError(f"wanted a device to time as 'adb:SERIAL' or 'ios:UDID', got {word!r}")
    if kind == "ios":
        say(0, 1, word)
        ios.serves(bundle, wanted.engine)
        answer = ios.bench(bundle, serial, wanted.manifest_sha256, runs=wanted.effort.runs)
        held = dict.fromkeys(ios.labels(serial), bundle.components("coreml"))
        return Found(within_all(answer.records, held, wanted.budget_ms), answer.device)
    engines = chosen(bundle, wanted.engine)
    with adb.phone(serial, wanted.runners) as launcher:
        launcher.kind, launcher.cores = wanted.cores, mask(launcher, wanted.cores, wanted.threads)
        threads = thread_count(launcher, wanted.threads)
        records: list[AnyRecord] = [*adb.prepare(launcher, bundle, ("ort", "pte"))]
        held = {}
        for index, engine in enumerate(engines):
            say(index, len(engines), f"{engine.label} on {serial}")
            remote = Remote(inner=engine, launcher=launcher)
            effort, patience_s = wanted.effort, wanted.cool_down_s
            timed = bench_phone(bundle, remote, threads=threads, effort=effort, cool_down_s=patience_s)
            records.extend(timed)
            held[remote.label] = tuple(remote.artifacts(bundle, None))
        records.extend(adb.finish(launcher))
        return Found(within_all(records, held, wanted.budget_ms), adb.describe(launcher))


def within_all(
    records: Sequence[AnyRecord], held: Mapping[str, Sequence[str]], budget_ms: float | None
) -> list[AnyRecord]:
    """Hold the time from prompt to picture to a budget: the fused generator's, or the components' together.

    Args:
        records: what was found.
        held: label of an engine -> the components that it has.
        budget_ms: longest time that passes; None for any.
    """
    found = [within(record, budget_ms) for record in records]
    if budget_ms is not None:
        found += [
            together(label, components, found, budget_ms)
            for label, components in held.items()
            if "generator" not in components
        ]
    return found


def together(
    label: str, components: Sequence[str], records: Sequence[AnyRecord], budget_ms: float
) -> SanityRecord:
    """Hold the sum of the components' medians to a budget, where no fused generator draws the picture."""
    timed = {
        r.target: r
        for r in records
        if isinstance(r, LatencyRecord) and r.engine == label and r.target in components
    }
    total = sum(record.p50_ms for record in timed.values())
    wanted = {*components, "text_encoder", "unet", "vae_decoder"}
    if absent := sorted(wanted - timed.keys()):
        words = (
            f"{label}: no time of {', '.join(absent)}, so that the budget of {budget_ms:.2f} ms is not met"
        )
        return sanity("budget", label, False, words, threshold=budget_ms, unit="ms")
    words = f"{label}: the components' medians add up to {total:.2f} ms, the budget is {budget_ms:.2f} ms"
    record = sanity("budget", label, total <= budget_ms, words, value=total, threshold=budget_ms, unit="ms")
    verdicts = [record.verdict, *(r.verdict for r in timed.values())]
    worst = min(verdicts, key=("fail", "skip", "pass").index)
    return msgspec.structs.replace(record, verdict=worst)


def within(record: AnyRecord, budget_ms: float | None) -> AnyRecord:
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
            condition = settle(launcher, cool_down_s)
            link = launcher.link(bundle, artifact, threads)
            return _timed(bundle, remote, artifact, link, threads, effort, condition)

        try:
            yield launcher.attempt(timed)
        except EngineError as error:
            words = f"{remote.label} {name} could not be timed: {error}"
            yield SanityRecord(gate="bench", engine=remote.label, verdict="fail", sentence=words)
        finally:
            launcher.close()


def _timed(
    bundle: Bundle,
    remote: Remote,
    artifact: Artifact,
    link: Link,
    threads: int,
    effort: Effort,
    before: Condition,
) -> LatencyRecord:
    case = bundle.golden()[0]
    given = {"sample": Pipeline(bundle, None).sample(case["noise"]), **case}
    where = f"{remote.label} {artifact.component}"
    feeds = {spec.name: fitted(spec, given, where) for spec in artifact.inputs}
    link.run(feeds, [spec.name for spec in artifact.outputs])
    first, found = link.last(), steady(link, effort)
    return _record(remote, artifact, link, threads, first, found, before, thermal_status(remote.launcher))


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
    before: Condition,
    thermal_after: int | None,
) -> LatencyRecord:
    wall, cpu = (np.asarray(column) for column in zip(*found, strict=True))
    samples = Samples(wall_ms=wall.tolist(), cpu_ms=cpu.tolist())
    p50, p90, p99 = (float(v) for v in np.percentile(wall, (50, 90, 99)))
    verdict, said = warmth(before.thermal, thermal_after)
    words = f"{remote.label} {artifact.component}: median {p50:.2f} ms on {threads} thread(s), "
    words += f"cores: {before.cores}, {said}; "
    words += "opened cold" if before.cold else "not opened cold: the page cache was not dropped"
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
        cores=before.cores,
        governors=before.governors,
        thermal_before=before.thermal,
        thermal_after=thermal_after,
        cold=before.cold,
        verdict=verdict,
        sentence=words,
    )
