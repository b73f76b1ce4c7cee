"""Judge faults in a process of their own, which a runtime that dies on a damaged file may take along."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mutants.fault import Refused
from mutants.files import check_donors
from mutants.judge import Verdict
from mutants.kept import NAME, head, read_kept

MOST_SECONDS = 600.0
"""Longest that one fault may take."""
MOST_START_SECONDS = 900.0
"""Longest that the clean bundle may take."""


class Task(NamedTuple):
    """What a worker works on."""

    base: Path
    work: Path
    donors: Mapping[str, Path]
    seed: int
    checkpoint: str | None


class Unsound(Refused):
    """The bundle that faults are to be planted in fails its own gates."""


def serve(task: Task, pipe: Connection) -> None:
    """List the faults, judge the clean bundle, then every fault that is asked for by its number."""
    from mutants.catalogue import catalogue
    from mutants.judge import Judge

    logging.disable(logging.WARNING)
    faults = catalogue(task.base, task.donors, task.seed, task.checkpoint)
    pipe.send([tuple(f)[:5] for f in faults])
    judge = Judge(task.base, task.work, task.checkpoint)
    pipe.send(judge.sound())
    while (number := pipe.recv()) is not None:
        pipe.send(msgspec.json.encode(judge.judge(faults[number])))


class Worker:
    """A process that judges; started again when it dies."""

    def __init__(
        self, task: Task, target: Callable[[Task, Connection], None] = serve, method: str = "spawn"
    ) -> None:
        self.task, self.target, self.context = task, target, multiprocessing.get_context(method)
        self.faults: list[tuple[str, ...]] = []
        self.start()

    def start(self) -> None:
        """Start, and wait until the clean bundle was judged.

        Raises:
            Unsound: when the clean bundle fails, with the sentences.
        """
        self.pipe, theirs = self.context.Pipe()
        self.process: Any = self.context.Process(target=self.target, args=(self.task, theirs), daemon=True)  # type: ignore[attr-defined]
        self.process.start()
        theirs.close()
        self.faults = self._receive(MOST_START_SECONDS)
        failed = self._receive(MOST_START_SECONDS)
        if failed:
            raise Unsound(f"wanted a bundle that passes its gates, got: {'; '.join(failed)}")

    def judge(self, number: int) -> Verdict:
        """Judge one fault; death and silence are verdicts of their own."""
        start = time.perf_counter()
        self.pipe.send(number)
        try:
            return msgspec.json.decode(self._receive(MOST_SECONDS), type=Verdict)
        except (EOFError, TimeoutError, ConnectionResetError) as error:
            late = isinstance(error, TimeoutError)
            self.process.join(0 if late else 30)
            code = self.process.exitcode
            words = f"no answer in {MOST_SECONDS:.0f} s" if late else f"the process died with {code}"
            self.stop()
            self.start()
            seconds = round(time.perf_counter() - start, 2)
            return died(self.faults[number], f"{words} ({type(error).__name__})", seconds)

    def _receive(self, seconds: float) -> Any:
        if not self.pipe.poll(seconds):
            raise TimeoutError(f"wanted an answer within {seconds} s")
        return self.pipe.recv()

    def stop(self) -> None:
        """End the process."""
        if self.process.is_alive():
            self.process.kill()  # while the pipe is open, or its end would be an error there
        self.process.join()
        self.pipe.close()


def died(fault: Sequence[str], words: str, seconds: float) -> Verdict:
    """Return the verdict of a fault that ended the process."""
    name, kind, fmt, component, about = fault
    return Verdict(
        name=name,
        kind=kind,
        format=fmt,
        component=component,
        about=about,
        gates={"died": words},
        seconds=seconds,
    )


def judge_all(task: Task, wanted: Sequence[str], sample: int = 0) -> Iterator[Verdict]:
    """Judge faults, those first that were judged before and are kept beside the overlay.

    Args:
        task: what to work on.
        wanted: parts of names; all where there are none.
        sample: most faults of one kind, format and component; 0 for all.

    Raises:
        Refused: when the bundle fails, a donor has nothing to give, or what is kept is of another run.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    check_donors(task.base, task.donors)
    kept = task.work.with_name(NAME)
    known = read_kept(kept, head(task.base, task.donors, task.seed))
    worker = Worker(task)
    try:
        for number, fault in _turns(worker.faults, wanted, sample):
            if fault[0] in known and known[fault[0]].about == fault[4]:
                yield known[fault[0]]
                continue
            verdict = worker.judge(number)
            with kept.open("ab") as stream:
                stream.write(msgspec.json.encode(verdict) + b"\n")
            yield verdict
    finally:
        worker.stop()


def _turns(
    faults: Sequence[tuple[str, ...]], words: Sequence[str], sample: int
) -> list[tuple[int, tuple[str, ...]]]:
    """Order faults so that the first ones are of every kind and format, for a run that is stopped."""
    counts: Counter[tuple[str, ...]] = Counter()
    ranked = []
    for number, fault in enumerate(faults):
        group = fault[1:3] if not sample else fault[1:4]
        counts[group] += 1
        if (not words or any(word in fault[0] for word in words)) and (not sample or counts[group] <= sample):
            ranked.append((counts[group], number, fault))
    return [(number, fault) for _, number, fault in sorted(ranked)]
