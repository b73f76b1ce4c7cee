"""One engine in a process of its own, so that its peak memory and its threads are its own.

The parent writes one JSON line per request and reads one per answer: first a `Job`, then `Turn`s, `Placing`s
at last, then the end of the input.  What libraries print goes to standard error, never between the answers.
"""

from __future__ import annotations

import functools
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from flashbulb.distill.checkpoint import CheckpointError
from flashbulb.distill.errors import MissingExtra
from flashbulb.export.bundle import Bundle, BundleError, read_bundle
from flashbulb.runtimes.baseline import Optimum
from flashbulb.runtimes.engines import AnyEngine
from flashbulb.runtimes.engines.base import EngineError, Session
from flashbulb.runtimes.pipeline import Pipeline


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to load."""

    engine: AnyEngine | Optimum
    bundle: str
    components: tuple[str, ...]
    threads: int
    prompt: str
    seed: int


class Loaded(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="loaded"):
    """It is loaded."""

    load_ms: float
    baseline_rss_bytes: int


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="turn"):
    """A request to run one target a few times."""

    target: str
    count: int


class Placing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="placing"):
    """A question where a target runs; to be asked last, since reading a plan takes memory."""

    target: str


class Placed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="placed"):
    """Where a target runs, as far as the runtime says."""

    shares: dict[str, float]
    """Device -> share of its cost."""


class Timed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="timed"):
    """Times of each run, and the peak memory up to now."""

    wall_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]
    peak_rss_bytes: int


class Failed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="failed"):
    """It could not be done."""

    reason: str


Request = Turn | Placing
Answer = Loaded | Timed | Placed | Failed


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """Return the peak resident memory of this process.

    Linux's ``ru_maxrss`` survives ``exec`` and would report a big parent's memory, so the kernel's own
    high-water mark is read where there is one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def targets(bundle: Bundle, session: Session, prompt: str, seed: int) -> dict[str, Callable[[], object]]:
    """Return what can be timed: each component on golden inputs, and prompt to picture."""
    pipeline, case = Pipeline(bundle, session), bundle.golden()[0]
    given = {"sample": pipeline.sample(case["noise"]), **case}
    found: dict[str, Callable[[], object]] = {}
    for name in session.components:
        if name != "generator":
            found[name] = functools.partial(session.run, name, given)
    if "generator" in session.components:
        found["generator"] = lambda: pipeline.draw(prompt, seed, fused=True)
    if "unet" in session.components:
        found["pipeline"] = lambda: pipeline.draw(prompt, seed, fused=False)
    return found


def time_runs(call: Callable[[], object], count: int) -> Timed:
    """Run a few times and take wall clock and processor time of each."""
    wall, cpu = [], []
    for _ in range(count):
        cpu_begin, begin = time.process_time_ns(), time.perf_counter_ns()
        call()
        wall.append((time.perf_counter_ns() - begin) / 1e6)
        cpu.append((time.process_time_ns() - cpu_begin) / 1e6)
    return Timed(wall_ms=tuple(wall), cpu_ms=tuple(cpu), peak_rss_bytes=peak_bytes())


def load(job: Job) -> tuple[Bundle, Session, Loaded]:
    """Import the runtime, then load, timing the latter alone."""
    bundle = read_bundle(job.bundle)
    job.engine.warm()
    baseline, begin = resident_bytes(), time.perf_counter()
    session = job.engine.load(bundle, threads=job.threads, components=job.components)
    spent = (time.perf_counter() - begin) * 1e3
    return bundle, session, Loaded(load_ms=spent, baseline_rss_bytes=baseline)


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more."""

    def answer(value: Answer) -> None:
        answers.write(msgspec.json.encode(value) + b"\n")
        answers.flush()

    try:
        job = msgspec.json.decode(requests.readline(), type=Job)
        bundle, session, loaded = load(job)
        answer(loaded)
        known = targets(bundle, session, job.prompt, job.seed)
        for line in requests:
            match msgspec.json.decode(line, type=Request):
                case Turn(target=target, count=count):
                    answer(time_runs(known[target], count))
                case Placing(target=target):
                    held = target in session.components
                    answer(Placed(shares=session.placement(target) if held else {}))
    except (EngineError, BundleError, CheckpointError, MissingExtra) as error:
        answer(Failed(reason=str(error)))


def main() -> None:
    """Serve on the standard streams; the real standard output is kept for answers alone."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
