"""Commands of this stage: run a bundle, check it, time it, report on it.  Light to import."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, cast

import msgspec

from flashbulb.export.bundle import MANIFEST, Bundle, BundleError, read_bundle, verify
from flashbulb.runtimes.baseline import Optimum
from flashbulb.runtimes.choice import available, choose, named, refusal
from flashbulb.runtimes.engines import AnyEngine, Eager
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.inspection import Inspection
from flashbulb.runtimes.latency import Effort, Subject
from flashbulb.runtimes.latency import bench as bench_engines
from flashbulb.runtimes.machine import driver_versions
from flashbulb.runtimes.options import refuse_bench, refuse_check
from flashbulb.runtimes.pipeline import Pipeline, save_png
from flashbulb.runtimes.records import (
    BundleIdentity,
    Device,
    LatencyRecord,
    ParityRecord,
    RegressionRecord,
    Report,
    SanityRecord,
    host,
    now,
    runtime_versions,
    usable_cores,
    write_report,
)
from flashbulb.runtimes.regression import Limits, open_baseline
from flashbulb.runtimes.summary import markdown, publish
from flashbulb.runtimes.tables import TWIN

log = logging.getLogger(__name__)

EngineWord = Literal["eager", "ort", "executorch", "coreml", "mil"]
OnStep = Callable[[int, int, str], None]
"""Called as ``on_step(done, total, what)`` before each part of the work."""
Record = SanityRecord | ParityRecord | LatencyRecord | RegressionRecord
Threads = Annotated[int, msgspec.Meta(ge=0)]


class RunConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Draw one picture from a prompt."""

    bundle: str
    """Folder that `export` wrote."""
    prompt: str
    """Any text; what does not fit is cut with a warning."""
    seed: int = 0
    """Seed of the noise, the same picture on every platform."""
    engine: EngineWord | None = None
    """What runs it; by default the first that the bundle serves and this machine has."""
    out: str = "flashbulb.png"
    """Picture to write."""
    threads: Threads = 0
    """Threads; 0 takes all cores."""
    fused: bool = True
    """One call of the fused generator; otherwise component by component."""
    checkpoint: str | None = None
    """For the eager engine: where the checkpoint is, if not where it was at export."""
    scale: Annotated[int, msgspec.Meta(ge=1, le=32)] = 1
    """Enlarge the picture by a whole factor, without smoothing."""


class CheckConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Hold a bundle to its golden vectors."""

    bundle: str
    """Folder that `export` wrote."""
    engine: EngineWord | None = None
    """What to check; by default everything that the bundle serves, and the eager reference."""
    threads: Threads = 0
    """Threads; 0 takes all cores, but one on another machine or where a slowdown is timed."""
    device: str | None = None
    """Run on another machine: 'qemu' for two imitated Arm processors, 'adb:SERIAL' or 'ios:UDID' for
    a phone."""
    runners: str | None = None
    """Folder with the device's runners, where they cannot be made here."""
    cases: Annotated[int, msgspec.Meta(ge=2)] | None = None
    """Golden cases that a device runs; by default all, and two where a processor is imitated."""
    checkpoint: str | None = None
    """For PyTorch and the weight gate: where the checkpoint is, if not where it was at export."""
    baseline: str | None = None
    """An earlier bundle, or only its report as JSON, that this one must not fall behind."""
    max_slowdown: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Fail when a picture takes more than this many times the baseline's time, as 1.1."""
    max_db_drop: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Fail when a parity lost more than this many decibels against the baseline, as 1."""
    seconds: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """Longest time to settle one slowdown; what is open then is undecided, which is no pass."""
    summary: str | None = None
    """Write the report here as Markdown, and append it to $GITHUB_STEP_SUMMARY where that is set."""
    bisect: bool = False
    """Also run every program operation by operation, and name the first that departs from PyTorch."""
    out: str | None = None
    """Write the report here as JSON."""


class BenchConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Time a bundle in turns with PyTorch eager."""

    bundle: str
    """Folder that `export` wrote."""
    engine: EngineWord | None = None
    """What to time; by default everything that the bundle serves."""
    threads: Threads = 1
    """Threads of every engine, eager included; 0 takes all cores."""
    runs: Annotated[int, msgspec.Meta(ge=5)] = 50
    """Measured runs per engine and target."""
    seconds: Annotated[float, msgspec.Meta(gt=0)] = 20.0
    """Stop a target after this time, but never before ten runs."""
    budget_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Fail when the median from prompt to picture is longer."""
    checkpoint: str | None = None
    """For the eager engine: where the checkpoint is, if not where it was at export."""
    optimum: str | None = None
    """Folder of optimum's own export of the same checkpoint, to be timed as the baseline."""
    prompt: str | None = None
    """Prompt to draw; by default the first golden one."""
    device: str | None = None
    """Time a phone, as 'adb:SERIAL' or 'ios:UDID'; an imitated processor says nothing of time."""
    runners: str | None = None
    """Folder with the phone's runners."""
    cores: Literal["all", "big", "little"] = "all"
    """Which cores of the phone to use: all, its fastest, or its slowest; the next kind too where those are
    fewer than the threads."""
    cool_down_s: Annotated[float, msgspec.Meta(ge=0)] = 120.0
    """Longest time to wait before each program until the phone is cool, where it tells whether it is."""
    out: str | None = None
    """Write the report here as JSON."""


def run(config: RunConfig, on_step: OnStep | None = None) -> Path:
    """Draw one picture and return where it lies.

    Raises:
        BundleError: when a file of the bundle is not the one that was exported.
        EngineError: when the engine cannot run it.
    """
    bundle = read_bundle(config.bundle)
    verify(bundle)
    engine = _engine(bundle, config.engine, config.checkpoint)
    held = engine.holds(bundle)
    fused = config.fused and "generator" in held
    components = ("generator",) if fused else tuple(c for c in held if c != "generator")
    _say(on_step, 0, 2, f"load {engine.name}")
    session = engine.load(bundle, threads=_threads(config.threads), components=components)
    _say(on_step, 1, 2, "draw")
    image = Pipeline(bundle, session).draw(config.prompt, config.seed, fused=fused)
    return save_png(image.repeat(config.scale, axis=0).repeat(config.scale, axis=1), Path(config.out))


def check(config: CheckConfig, on_step: OnStep | None = None) -> Report:
    """Hold a bundle and its engines to every gate; the report's ``ok`` is the verdict.

    Raises:
        BundleError: when there is no readable manifest.
        EngineError: when a named engine cannot run here or has nothing in the bundle.
    """
    refuse_check(config, config.device, config.baseline)
    bundle = read_bundle(config.bundle)
    if config.device:
        return _check_elsewhere(config, bundle, config.device, on_step)
    baseline = open_baseline(config.baseline, _limits(config))
    choice = choose(bundle, _names(config.engine), config.checkpoint)
    choice.require()
    asked = Inspection(bundle, choice, _threads(config.threads), config.checkpoint)
    total = len(asked.engines) + 2 + (baseline is not None) + config.bisect
    records: list[Record] = [r.record() for r in choice.refusals]
    records += asked.everything(lambda index, what: _say(on_step, index, total, what))
    sound = asked.changed() is None
    if config.bisect and sound:
        from flashbulb.runtimes.bisect.stage import bisect

        _say(on_step, len(asked.engines) + 2, total, "bisect")
        refused = {label: reason for label in asked.engines if (reason := asked.refused(label))}
        records += bisect(bundle, config.checkpoint, choice.backends, refused)
    if baseline and sound:
        _say(on_step, total - 1, total, f"against {config.baseline}")
        records += baseline.compare(bundle, choice.engines, records)
    report = _report("check", bundle, records, config.out)
    if config.summary:
        publish(markdown(report), Path(config.summary))
    return report


def _check_elsewhere(config: CheckConfig, bundle: Bundle, word: str, on_step: OnStep | None) -> Report:
    """Hold the bundle's files to their gates here, and its engines to theirs on another machine."""
    from flashbulb.runtimes.devices.check import Wanted, check_device

    digest = identity(bundle).manifest_sha256
    wanted = Wanted(
        config.engine, config.runners, config.cases, digest, config.threads or 1, config.checkpoint
    )
    found = check_device(bundle, word, wanted, lambda *step: _say(on_step, *step))
    report = _report("check", bundle, found.records, config.out, found.device)
    if config.summary:
        publish(markdown(report), Path(config.summary))
    return report


def bench(config: BenchConfig, on_step: OnStep | None = None) -> Report:
    """Time the engines of a bundle; the report's ``ok`` says that all ran, within the budget if there is one.

    Raises:
        BundleError: when a file of the bundle is not the one that was exported.
        EngineError: when a named engine cannot run here or has nothing in the bundle.
    """
    refuse_bench(config, config.device)
    bundle = read_bundle(config.bundle)
    verify(bundle)
    if config.device:
        return _bench_elsewhere(config, bundle, config.device, on_step)
    records: list[Record] = []
    chosen = _engines(bundle, config.engine, config.checkpoint, records)
    timed = [e for e in chosen if e.timed or config.engine]
    engines = cast(list[Subject], [way for e in timed for way in e.timings()])
    eager = _reference(bundle, config.checkpoint, records)
    if config.optimum:
        engines.append(Optimum(folder=str(Path(config.optimum).resolve())))
    total, done = 2 * len(engines), iter(range(2 * len(engines) + 1))
    records += bench_engines(
        bundle,
        engines,
        eager,
        threads=_threads(config.threads),
        effort=Effort(runs=config.runs, seconds=config.seconds),
        prompt=config.prompt if config.prompt is not None else bundle.manifest.golden.cases[0].prompt,
        budget_ms=config.budget_ms,
        on_step=lambda what: _say(on_step, next(done), total, what),
    )
    return _report("bench", bundle, records, config.out)


def _bench_elsewhere(config: BenchConfig, bundle: Bundle, word: str, on_step: OnStep | None) -> Report:
    """Time the bundle's engines on a phone."""
    from flashbulb.runtimes.devices.timing import Wanted, bench_device

    wanted = Wanted(
        engine=config.engine,
        runners=config.runners,
        cores=config.cores,
        threads=config.threads,
        effort=Effort(runs=config.runs, seconds=config.seconds),
        cool_down_s=config.cool_down_s,
        budget_ms=config.budget_ms,
        manifest_sha256=identity(bundle).manifest_sha256,
    )
    found = bench_device(bundle, word, wanted, lambda *step: _say(on_step, *step))
    return _report("bench", bundle, found.records, config.out, found.device)


def identity(bundle: Bundle) -> BundleIdentity:
    """Say which bundle this is."""
    manifest = bundle.manifest
    return BundleIdentity(
        name=manifest.name,
        path=bundle.root.name,
        manifest_sha256=hashlib.sha256((bundle.root / MANIFEST).read_bytes()).hexdigest(),
        checkpoint_sha256=manifest.source.sha256,
        created=manifest.created,
    )


def _engine(bundle: Bundle, name: str | None, checkpoint: str | None) -> AnyEngine:
    """Return the named engine, or the first that works, refusing with every reason."""
    reasons = []
    for word in (name,) if name else ("ort", "executorch", "coreml", "mil", "eager"):
        engine = named(word, checkpoint)
        if (reason := refusal(bundle, engine)) is None:
            return engine
        reasons.append(reason)
    raise EngineError("; ".join(reasons))


def _engines(
    bundle: Bundle, name: str | None, checkpoint: str | None, records: list[Record]
) -> list[AnyEngine]:
    """Return what to time; what cannot run here is recorded as skipped, never passed over in silence."""
    choice = choose(bundle, _names(name), checkpoint)
    choice.require()
    records += [r.record() for r in choice.refusals]
    return list(choice.engines)


def _names(name: str | None) -> tuple[str, ...]:
    return (name,) if name else ()


def _limits(config: CheckConfig) -> Limits:
    return Limits(
        max_slowdown=config.max_slowdown,
        max_db_drop=config.max_db_drop,
        seconds=config.seconds,
        threads=config.threads or 1,
        checkpoint=config.checkpoint,
        narrowed=config.engine is not None,
    )


def _reference(bundle: Bundle, checkpoint: str | None, records: list[Record]) -> Eager | None:
    """Return the eager engine, or record that the ratios will be missing."""
    eager = Eager(checkpoint=checkpoint)
    if reason := eager.missing() or eager.serves(bundle):
        words = f"no ratio to PyTorch eager: {reason}"
        records.append(SanityRecord(gate="reference", engine="eager", verdict="skip", sentence=words))
        return None
    return eager


def _report(
    command: Literal["check", "bench"],
    bundle: Bundle,
    records: Iterable[Record],
    out: str | None,
    device: Device | None = None,
) -> Report:
    found: Sequence[Record] = list(records)
    report = Report(
        command=command,
        created=now(),
        bundle=identity(bundle),
        device=device or host(),
        versions=driver_versions(_twins(found)) if device else runtime_versions(),
        sanity=tuple(r for r in found if isinstance(r, SanityRecord)),
        parity=tuple(r for r in found if isinstance(r, ParityRecord)),
        latency=tuple(r for r in found if isinstance(r, LatencyRecord)),
        regression=tuple(r for r in found if isinstance(r, RegressionRecord)),
    )
    if out:
        write_report(report, Path(out))
    return report


def _twins(records: Iterable[Record]) -> set[str]:
    """Name the engines that ran here beside a device's, to be compared with."""
    labels = [r.engine for r in records if isinstance(r, ParityRecord) and TWIN in r.engine]
    return {label.partition("@")[0] for label in labels}


def _threads(wanted: int) -> int:
    return wanted or usable_cores()


def _say(on_step: OnStep | None, done: int, total: int, what: str) -> None:
    log.info("%s", what)
    if on_step:
        on_step(done, total, what)


__all__ = [
    "BenchConfig",
    "BundleError",
    "CheckConfig",
    "RunConfig",
    "available",
    "bench",
    "check",
    "named",
    "run",
]
