"""Hold a bundle to an earlier one: no picture slower, no parity lower, and noise is not mistaken for either.

Where the earlier bundle is at hand both run here in turns, and the bootstrap interval of their ratio decides.
Where only its report is, the ratios to PyTorch eager are compared, each measured in turns with eager on its
own day: that tells whether the export lost ground to PyTorch, and nothing about what slowed both alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from flashbulb.export.bundle import MANIFEST, Bundle, read_bundle, verify
from flashbulb.runtimes.drops import WRITE_BOTH, db_drops, open_question, twin_drops
from flashbulb.runtimes.engines import AnyEngine, Eager, engine_named, engine_names
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.gates import engine_gates
from flashbulb.runtimes.latency import COMPONENTS, Worker, held
from flashbulb.runtimes.program_gates import program_gates
from flashbulb.runtimes.race import Race, race
from flashbulb.runtimes.ratio import Interval
from flashbulb.runtimes.records import (
    LatencyRecord,
    ParityRecord,
    RegressionRecord,
    Report,
    SanityRecord,
    host,
    read_report,
    runtime_versions,
)
from flashbulb.runtimes.worker import Job

Method = Literal["interleaved", "record"]
MOST_RATIO = 1e6
"""No two programs that draw a picture are that far apart; a report that says so is broken."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far a bundle may fall behind, and how hard to look."""

    max_slowdown: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Largest ratio of times that passes; None for any."""
    max_db_drop: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Largest loss of parity in dB that passes; None for any."""
    seconds: float = 60.0
    """Longest time to settle one ratio."""
    threads: int = 1
    """Threads of every program."""
    checkpoint: str | None = None
    """For the eager engine: where the checkpoint is."""
    narrowed: bool = False
    """Compare only the engines that were chosen, not all that the baseline has."""


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """An earlier bundle, or what is recorded of it."""

    bundle: Bundle | None
    report: Report | None
    limits: Limits

    @property
    def method(self) -> Method:
        """How it is compared with."""
        return "record" if self.bundle is None else "interleaved"

    def compare(
        self, bundle: Bundle, engines: Sequence[AnyEngine], records: Sequence[Any]
    ) -> Iterator[RegressionRecord]:
        """Yield one record per quantity that the baseline has."""
        limits, lost = self.limits, [] if self.limits.narrowed else self.lost(engines)
        if limits.max_db_drop is not None:
            new = [r for r in records if isinstance(r, ParityRecord)]
            old = self.parity([v for e in (*engines, *lost) for v in e.variants(bundle)])  # type: ignore[misc]
            labels = {v.label for e in engines for v in e.variants(bundle)} if limits.narrowed else None
            yield from db_drops(new, old, limits.max_db_drop, labels, self.method)
            if labels is None or "mil" in labels:
                told = [r for r in records if isinstance(r, SanityRecord)]
                yield from twin_drops(told, self.twins(), limits.max_db_drop, self.method)
        if limits.max_slowdown is not None:
            for engine in engines:
                if not isinstance(engine, Eager):
                    yield self.slowdown(bundle, engine, limits.max_slowdown)
            for engine in lost:
                words = f"{engine.label}: the baseline has it, this bundle does not"
                yield open_question("slowdown", engine.label, "all", limits.max_slowdown, words, self.method)

    def lost(self, engines: Sequence[AnyEngine]) -> list[AnyEngine]:
        """List the engines that the baseline has, that could run here, and that are not among these."""
        known, served = map(engine_named, engine_names()), {e.name for e in engines}
        others = [e for e in known if not isinstance(e, Eager) and e.name not in served]
        if self.bundle is not None:
            return [e for e in others if e.missing() is None and e.serves(self.bundle) is None]
        timed = {r.engine for r in self.report.latency} if self.report else set()
        return [e for e in others if e.label in timed]

    def parity(self, engines: Iterable[AnyEngine]) -> list[ParityRecord]:
        """Return the baseline's parity: measured here, or as recorded."""
        if self.bundle is None:
            return list(self.report.parity) if self.report else []
        able = [e for e in engines if e.missing() is None and e.serves(self.bundle) is None]
        found = [r for e in able for r in engine_gates(self.bundle, e, self.limits.threads)]
        return [r for r in found if isinstance(r, ParityRecord)]

    def twins(self) -> list[SanityRecord]:
        """Return the baseline's records of its Core ML programs' twins: made here, or as recorded."""
        if self.bundle is None:
            return list(self.report.sanity) if self.report else []
        held = "coreml" in {a.backend for a in self.bundle.manifest.artifacts}
        return list(program_gates(self.bundle, self.limits.checkpoint, ["coreml"])) if held else []

    def slowdown(self, bundle: Bundle, engine: AnyEngine, limit: float) -> RegressionRecord:
        """Time one engine's picture against the baseline's."""
        target = whole(engine, bundle)
        try:
            if self.bundle is not None:
                return self._interleaved(bundle, self.bundle, engine, target, limit)
            return self._recorded(bundle, engine, target, limit)
        except EngineError as error:
            words = f"{engine.label} {target} could not be timed: {error}"
            return open_question("slowdown", engine.label, target, limit, words, self.method)

    def _interleaved(
        self, bundle: Bundle, old: Bundle, engine: AnyEngine, target: str, limit: float
    ) -> RegressionRecord:
        """Let this bundle and the earlier one take turns."""
        if reason := engine.serves(old):
            raise EngineError(reason)
        targets = (target, whole(engine, old))
        found = self._race((engine, bundle), (engine, old), targets, limit)
        note = f"in turns with the baseline's bundle on {_threads(self.limits.threads)}"
        return judged(engine.label, target, limit, found, found.interval, note, "interleaved")

    def _recorded(self, bundle: Bundle, engine: AnyEngine, target: str, limit: float) -> RegressionRecord:
        """Compare the ratio to eager, measured now, with the recorded one."""
        assert self.report is not None
        old = recorded(self.report, engine.label, target)
        reference = Eager(checkpoint=self.limits.checkpoint)
        if reason := incomparable(self.report, old, self.limits.threads) or reference.serves(bundle):
            words = f"{engine.label} {target}: {reason}"
            return open_question("slowdown", engine.label, target, limit, words, "record")
        assert old is not None and old.ratio_interval is not None
        low, high = old.ratio_interval
        bounds = Interval(low, math.sqrt(low * high), high)
        found = self._race((engine, bundle), (reference, bundle), (target, target), limit * bounds.low)
        ratio = found.interval and Interval(
            found.interval.low / bounds.high,
            found.interval.ratio / bounds.ratio,
            found.interval.high / bounds.low,
        )
        note = f"by its ratio to PyTorch eager, {bounds} in the baseline's report and {found.interval} now; "
        same = self.report.bundle and self.report.bundle.checkpoint_sha256 == bundle.manifest.source.sha256
        note += "what slows eager as well does not show" + (
            "" if same else ", and the checkpoint is another one"
        )
        return judged(engine.label, target, limit, found, ratio, note, "record")

    def _race(
        self,
        mine: tuple[AnyEngine, Bundle],
        theirs: tuple[AnyEngine, Bundle],
        targets: tuple[str, str],
        limit: float,
    ) -> Race:
        with ExitStack() as stack:
            workers = [
                stack.enter_context(Worker(job(engine, bundle, target, self.limits.threads)))
                for (engine, bundle), target in zip((mine, theirs), targets, strict=True)
            ]
            return race(workers[0], workers[1], targets, limit=limit, seconds=self.limits.seconds)


def open_baseline(path: str | None, limits: Limits) -> Baseline | None:
    """Open what is to be compared with; None for nothing.

    Raises:
        ValueError: for limits without a baseline, a baseline without a limit, or a file that is no report.
        BundleError: when it is a bundle, and a broken one.
    """
    asked = limits.max_slowdown is not None or limits.max_db_drop is not None
    if path is None and asked:
        raise ValueError("wanted --baseline with --max-slowdown and --max-db-drop, got none; name it")
    if path is None:
        return None
    if not asked:
        raise ValueError("wanted --max-slowdown or --max-db-drop with --baseline, got neither; say one")
    folder = Path(path)
    if not folder.is_dir():
        return Baseline(bundle=None, report=read_report(folder), limits=limits)
    if not (folder / MANIFEST).is_file():
        raise ValueError(
            f"wanted a report (JSON) or a bundle as the baseline, got {path} without a {MANIFEST}"
        )
    bundle = read_bundle(folder)
    verify(bundle)
    return Baseline(bundle=bundle, report=None, limits=limits)


def whole(engine: AnyEngine, bundle: Bundle) -> str:
    """Name the target that draws a whole picture."""
    return "generator" if "generator" in engine.holds(bundle) else "pipeline"


def job(engine: AnyEngine, bundle: Bundle, target: str, threads: int) -> Job:
    """Say what a worker loads to run a target."""
    components = ("generator",) if target == "generator" else held(engine, bundle, COMPONENTS)
    return Job(
        engine=engine,
        bundle=str(bundle.root.resolve()),
        components=components,
        threads=threads,
        prompt=bundle.manifest.golden.cases[0].prompt,
        seed=0,
    )


def recorded(report: Report, engine: str, target: str) -> LatencyRecord | None:
    """Find the timing of one engine and target in a report."""
    return next((r for r in report.latency if (r.engine, r.target) == (engine, target)), None)


def incomparable(report: Report, old: LatencyRecord | None, threads: int) -> str | None:
    """Say why a recorded timing tells nothing here; None when it does."""
    if old is None or old.ratio_interval is None or old.ratio_to_eager is None:
        return (
            f"the baseline's report has no timing beside PyTorch eager with its interval; {WRITE_BOTH}, "
            "or give the earlier bundle itself"
        )
    low, high = old.ratio_interval
    if not 1.0 / MOST_RATIO < low <= high < MOST_RATIO:
        return (
            f"wanted a ratio to eager between two rising bounds of 1e-06 to 1e+06, the baseline's report has "
            f"[{low:g}, {high:g}]; {WRITE_BOTH}, or give the earlier bundle itself"
        )
    here, versions = host(), runtime_versions()
    conditions = [
        ("processor", report.device.cpu, here.cpu),
        ("architecture", report.device.arch, here.arch),
        ("torch", report.versions.get("torch"), versions.get("torch")),
        ("threads", old.threads, threads),
    ]
    other = [f"{name} {was} there and {now} here" for name, was, now in conditions if was != now]
    if not other:
        return None
    return f"a ratio to eager does not carry over ({', '.join(other)}); give the earlier bundle itself"


def judged(
    engine: str, target: str, limit: float, found: Race, ratio: Interval | None, note: str, method: Method
) -> RegressionRecord:
    """Make the record of one ratio."""
    if ratio is None:
        words = f"{engine} {target}: only {found.turns} turns in the time allowed; give more --seconds"
        return open_question("slowdown", engine, target, limit, words, method)
    verdict = ratio.decide(limit)
    words = f"{engine} {target}: {ratio.ratio:.3f} times the baseline's time, "
    words += (
        f"95 % interval [{ratio.low:.3f}, {ratio.high:.3f}], allowed {limit:.2f} ({found.turns} turns {note})"
    )
    if verdict == "undecided":
        words = f"undecided: {words}; the limit lies inside: give more --seconds or a quieter machine"
    return RegressionRecord(
        kind="slowdown",
        method=method,
        engine=engine,
        subject=target,
        value=ratio.ratio,
        low=ratio.low,
        high=ratio.high,
        limit=limit,
        turns=found.turns,
        verdict=verdict,
        sentence=words,
    )


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
