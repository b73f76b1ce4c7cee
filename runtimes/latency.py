"""Time the engines: each in its own process, in turns with PyTorch eager, at the same threads.  No torch.

Other work on a machine slows both sides of an interleaved pair alike, so the ratio survives it better than
the milliseconds; the ratio of processor times survives best.  Each run's processor time over wall clock tells
whether it was disturbed: too low and something else had the processor, too high and a second thread pool was
at work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import cast

import msgspec
import numpy as np

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.baseline import Optimum
from flashbulb.runtimes.engines import AnyEngine, Eager
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.ratio import in_turns, ratio_interval
from flashbulb.runtimes.records import LatencyRecord, SanityRecord, Verdict
from flashbulb.runtimes.worker import Answer, Failed, Job, Loaded, Placed, Placing, Request, Timed, Turn

Subject = AnyEngine | Optimum
COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae_decoder")
LEAST_CPU_OVER_WALL = 0.8
"""Below it the run waited for something else."""
TURN = 5
"""Runs that one engine makes before it is the other's turn."""


class Effort(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long to measure."""

    runs: int = 50
    """Measured runs per engine and target, in turns of five."""
    warmup: int = 3
    """Runs before, beside the very first."""
    seconds: float = 30.0
    """Stop a target after this time, but never before ten runs."""


class Samples(msgspec.Struct, kw_only=True):
    """The runs of one worker on one target."""

    first_ms: float = 0.0
    wall_ms: list[float] = []
    cpu_ms: list[float] = []
    peak_rss_bytes: int = 0

    def add(self, timed: Timed) -> None:
        """Keep the runs of one turn."""
        self.wall_ms += timed.wall_ms
        self.cpu_ms += timed.cpu_ms
        self.peak_rss_bytes = timed.peak_rss_bytes

    def disturbed(self, threads: int) -> int:
        """Count runs whose processor time does not fit their wall clock."""
        ratios = np.asarray(self.cpu_ms) / np.asarray(self.wall_ms)
        return int(((ratios < LEAST_CPU_OVER_WALL) | (ratios > threads * 1.15 + 0.1)).sum())


class Died(EngineError):
    """A worker ended before it answered."""


class Worker(AbstractContextManager["Worker"]):
    """A child process that has an engine loaded."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flashbulb.runtimes.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,  # a file: a full pipe would block the child
            env=environment(job.threads),
        )

    def __enter__(self) -> Worker:
        try:
            self.loaded = cast(Loaded, self._ask(self.job))
        except BaseException:
            self.close()
            raise
        return self

    def turn(self, target: str, count: int) -> Timed:
        """Let it run a target a few times."""
        return cast(Timed, self._ask(Turn(target=target, count=count)))

    def placement(self, target: str) -> dict[str, float]:
        """Ask where a target runs; after everything that is timed."""
        return cast(Placed, self._ask(Placing(target=target))).shares

    def prepare(self, target: str, warmup: int) -> Samples:
        """Make the first run and the warm-up ones; return fresh samples."""
        first = self.turn(target, 1)
        if warmup:
            self.turn(target, warmup)
        return Samples(first_ms=first.wall_ms[0])

    def _ask(self, request: Job | Request) -> Answer:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(msgspec.json.encode(request) + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the reason is on its standard error, read below
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.log.seek(0)
            tail = self.log.read().decode(errors="replace").strip().splitlines()[-3:]
            raise Died(f"the {self.job.engine.name} process ended with {code}: {' | '.join(tail)}")
        answer = msgspec.json.decode(line, type=Answer)
        if isinstance(answer, Failed):
            raise EngineError(answer.reason)
        return answer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process: it stops by itself when its input ends."""
        for stream in (self.process.stdin, self.process.stdout, self.log):
            if stream:
                with suppress(BrokenPipeError):  # it may have died with a request unread
                    stream.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def environment(threads: int) -> dict[str, str]:
    """Return the environment of a worker: this interpreter's paths, and one size for every thread pool."""
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    paths = os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)
    return {**os.environ, **dict.fromkeys(pools, str(threads)), "PYTHONPATH": paths}


def bench(
    bundle: Bundle,
    engines: Sequence[Subject],
    eager: Eager | None,
    *,
    threads: int,
    effort: Effort,
    prompt: str,
    budget_ms: float | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Iterator[LatencyRecord | SanityRecord]:
    """Time every engine on the fused generator and on the components, in turns with eager.

    Yields:
        One record per engine and target; for an engine that cannot run, one failed condition with the reason.
    """
    for components in GROUPS:
        base = Job(
            engine=eager or Eager(),
            bundle=str(bundle.root.resolve()),
            components=components,
            threads=threads,
            prompt=prompt,
            seed=0,
        )
        subjects = [e for e in engines if suits(e, bundle, components)]
        if not subjects:
            continue
        with ExitStack() as stack:
            # One reference for the whole group: it takes turns with each engine.
            reference = None
            if eager is not None:
                job = msgspec.structs.replace(base, components=held(eager, bundle, components))
                reference = stack.enter_context(Worker(job))
            for engine in subjects:
                job = msgspec.structs.replace(
                    base, engine=engine, components=held(engine, bundle, components)
                )
                if on_step:
                    on_step(f"{engine.label}: {', '.join(job.components)}")
                yield from _timed(bundle, job, reference, effort, budget_ms)


GROUPS = (("generator",), COMPONENTS)
"""What is loaded together: the fused generator alone, and the components together."""


def held(engine: Subject, bundle: Bundle, components: Sequence[str]) -> tuple[str, ...]:
    """Return those of some components that an engine has in a bundle."""
    return tuple(c for c in components if c in engine.holds(bundle))


def suits(engine: Subject, bundle: Bundle, components: Sequence[str]) -> bool:
    """Tell whether an engine has something to time among some components."""
    return bool(held(engine, bundle, components))


def _timed(
    bundle: Bundle, job: Job, reference: Worker | None, effort: Effort, budget_ms: float | None
) -> Iterator[LatencyRecord | SanityRecord]:
    """Time one engine; what cannot run is one failed condition."""
    try:
        if isinstance(job.engine, Eager) and reference is not None:
            yield from _turns(bundle, reference, reference, effort, budget_ms)
            return
        with Worker(job) as worker:
            yield from _turns(bundle, worker, reference, effort, budget_ms)
    except EngineError as error:
        words = f"{job.engine.label} could not be timed: {error}"
        # The baseline is not on trial.
        verdict: Verdict = "skip" if isinstance(job.engine, Optimum) else "fail"
        yield SanityRecord(gate="bench", engine=job.engine.label, verdict=verdict, sentence=words)


def _turns(
    bundle: Bundle, worker: Worker, reference: Worker | None, effort: Effort, budget_ms: float | None
) -> Iterator[LatencyRecord]:
    """Time all targets of one engine in turns with the reference; the reference itself alone.

    Where a target runs is asked when all of them are timed: reading a plan takes memory and may warm caches.

    Raises:
        EngineError: when one cannot be run; what was timed before is yielded.
    """
    names = worker.job.components
    pair = [worker] if reference is None or reference is worker else [worker, reference]
    targets = (*names, "pipeline") if "unet" in names else names
    timed: dict[str, list[Samples]] = {}
    trouble: EngineError | None = None
    try:
        for name in targets:
            timed[name] = interleave(name, pair, effort)
    except EngineError as error:
        trouble = error
    for name, found in timed.items():
        placed = {} if trouble else worker.placement(name)
        theirs = found[-1] if reference else None
        yield record(bundle, worker, name, found[0], theirs, budget_ms, placed)
    if trouble:
        raise trouble


def interleave(target: str, workers: Sequence[Worker], effort: Effort) -> list[Samples]:
    """Let the workers take turns; who begins alternates, so that a drift favours nobody."""
    samples = [w.prepare(target, effort.warmup) for w in workers]
    order, begin = list(zip(workers, samples, strict=True)), time.monotonic()
    while len(samples[0].wall_ms) < effort.runs:
        for worker, kept in order:
            kept.add(worker.turn(target, min(TURN, effort.runs)))
        order.reverse()
        if time.monotonic() - begin > effort.seconds and len(samples[0].wall_ms) >= 10:
            break
    return samples


def record(
    bundle: Bundle,
    worker: Worker,
    target: str,
    mine: Samples,
    theirs: Samples | None,
    budget_ms: float | None,
    placed: dict[str, float],
) -> LatencyRecord:
    """Make the record of one engine and target."""
    job, wall = worker.job, np.asarray(mine.wall_ms)
    label = job.engine.label
    cpu = float(np.median(mine.cpu_ms))
    p50, p90, p99 = (float(v) for v in np.percentile(wall, (50, 90, 99)))
    ratio = p50 / float(np.median(theirs.wall_ms)) if theirs else None
    spread = ratio_interval(*(in_turns(s.wall_ms, TURN) for s in (mine, theirs))) if theirs else None
    cpu_ratio = cpu / max(float(np.median(theirs.cpu_ms)), 1e-9) if theirs else None
    disturbed = mine.disturbed(job.threads)
    whole = target in ("generator", "pipeline") and not isinstance(job.engine, Eager | Optimum)
    late = whole and budget_ms is not None and p50 > budget_ms
    undecided = late and disturbed > len(wall) // 2
    words = f"{label} {target}: median {p50:.2f} ms on {job.threads} thread(s)"
    words += f", {ratio:.2f} of PyTorch eager" if ratio is not None and label != "eager" else ""
    words += f"; placed on {', '.join(f'{k} {v:.0%}' for k, v in placed.items())}" if placed else ""
    words += f"; {disturbed} of {len(wall)} runs were disturbed" if disturbed else ""
    words += f"; the budget is {budget_ms:.2f} ms" if late else ""
    return LatencyRecord(
        engine=label,
        precision=precision(bundle, job),
        target=target,
        threads=job.threads,
        load_ms=worker.loaded.load_ms,
        first_ms=mine.first_ms,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        min_ms=float(wall.min()),
        runs=len(wall),
        cpu_p50_ms=cpu,
        cpu_over_wall=float(np.median(np.asarray(mine.cpu_ms) / wall)),
        disturbed_runs=disturbed,
        ratio_to_eager=ratio,
        cpu_ratio_to_eager=cpu_ratio,
        ratio_interval=(spread.low, spread.high) if spread else None,
        baseline_rss_bytes=worker.loaded.baseline_rss_bytes,
        peak_rss_bytes=mine.peak_rss_bytes,
        artifact_bytes=artifact_bytes(bundle, job, target),
        placement=placed,
        verdict="skip" if undecided else "fail" if late else "pass",
        budget_ms=budget_ms,
        sentence=words,
    )


def precision(bundle: Bundle, job: Job) -> str:
    """Return the precision of the artifacts that a worker has loaded."""
    if isinstance(job.engine, Eager | Optimum):
        return "float32"
    return "+".join(sorted({a.precision for a in job.engine.artifacts(bundle, job.components).values()}))


def artifact_bytes(bundle: Bundle, job: Job, target: str) -> int | None:
    """Return the size of the files behind a target; methods of one program share theirs."""
    if isinstance(job.engine, Optimum):
        return sum(p.stat().st_size for p in Path(job.engine.folder).rglob("*.onnx*"))
    if isinstance(job.engine, Eager):
        return None
    names = [target] if target in job.components else list(job.components)
    chosen = job.engine.artifacts(bundle, names).values()
    return sum({f.path: f.size_bytes for a in chosen for f in a.files}.values())
