"""Judge faults in a process of their own, which a runtime that dies on a damaged file may take along."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mutants.judge import Verdict

MOST_SECONDS = 120.0
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


class Unsound(RuntimeError):
    """The bundle that faults are to be planted in fails its own gates."""


def serve(task: Task, pipe: Connection) -> None:
    """List the faults, judge the clean bundle, then every fault that is asked for by its number."""
    from mutants.catalogue import catalogue
    from mutants.judge import Judge

    logging.disable(logging.WARNING)
    faults = catalogue(task.base, task.donors, task.seed)
    pipe.send([tuple(f)[:5] for f in faults])
    judge = Judge(task.base, task.work, task.checkpoint)
    pipe.send(judge.sound())
    while (number := pipe.recv()) is not None:
        pipe.send(msgspec.json.encode(judge.judge(faults[number])))


class Worker:
    """A process that judges; started again when it dies."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.faults: list[tuple[str, ...]] = []
        self.start()

    def start(self) -> None:
        """Start, and wait until the clean bundle was judged.

        Raises:
            Unsound: when the clean bundle fails, with the sentences.
        """
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(self.task, theirs), daemon=True)
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
            self.process.join(2)
            code = self.process.exitcode
            words = f"no answer in {MOST_SECONDS:.0f} s" if code is None else f"the process died with {code}"
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
        self.pipe.close()
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


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


def judge_all(task: Task, wanted: Sequence[str]) -> Iterator[Verdict]:
    """Judge every fault whose name holds one of some words; all of them where there are none."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    worker = Worker(task)
    try:
        for number, fault in enumerate(worker.faults):
            if not wanted or any(word in fault[0] for word in wanted):
                yield worker.judge(number)
    finally:
        worker.stop()
