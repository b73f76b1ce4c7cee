"""Turns are fair, disturbed runs are counted, memory is a process's own."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes import latency
from flashbulb.runtimes.engines import Coreml, Ort
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.latency import Effort, Samples, Worker, bench, environment, interleave
from flashbulb.runtimes.records import SanityRecord
from flashbulb.runtimes.worker import Job, Timed, peak_bytes, time_runs


class FakeWorker:
    """Takes a fixed time per run, and notes when it was its turn."""

    def __init__(self, name: str, milliseconds: float, turns: list[tuple[str, int]]) -> None:
        self.name, self.milliseconds, self.turns = name, milliseconds, turns

    def turn(self, target: str, count: int) -> Timed:
        self.turns.append((self.name, count))
        value = (self.milliseconds,) * count
        return Timed(wall_ms=value, cpu_ms=value, peak_rss_bytes=7)

    prepare = Worker.prepare


def test_two_workers_take_turns_and_alternate_who_begins() -> None:
    turns: list[tuple[str, int]] = []
    a, b = FakeWorker("a", 1.0, turns), FakeWorker("b", 2.0, turns)
    found = interleave("unet", [a, b], Effort(runs=20, warmup=2))  # type: ignore[list-item]
    assert [len(s.wall_ms) for s in found] == [20, 20]
    assert turns[:4] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert [name for name, _ in turns[4:]] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_the_time_limit_still_leaves_ten_runs() -> None:
    worker = FakeWorker("a", 1.0, [])
    (found,) = interleave("unet", [worker], Effort(runs=1000, warmup=0, seconds=1e-9))  # type: ignore[list-item]
    assert len(found.wall_ms) == 10


@pytest.mark.parametrize(
    ("cpu", "threads", "disturbed"),
    [(1.0, 1, 0), (0.5, 1, 4), (2.0, 1, 4), (2.0, 2, 0), (1.3, 2, 0), (0.1, 2, 4)],
)
def test_processor_time_over_wall_clock_tells_disturbed_runs(
    cpu: float, threads: int, disturbed: int
) -> None:
    assert Samples(wall_ms=[1.0] * 4, cpu_ms=[cpu] * 4).disturbed(threads) == disturbed


def test_time_runs_measures_wall_and_processor() -> None:
    slept = time_runs(lambda: time.sleep(0.02), 3)
    assert all(w >= 20 for w in slept.wall_ms)
    assert all(c < 15 for c in slept.cpu_ms)


def test_a_child_does_not_report_its_parents_peak() -> None:
    ballast = np.ones(200_000_000 // 8)
    code = "from flashbulb.runtimes.worker import peak_bytes; print(peak_bytes())"
    child = subprocess.run(
        [sys.executable, "-c", code], env=environment(1), capture_output=True, text=True, check=True
    )
    assert peak_bytes() > ballast.nbytes
    assert int(child.stdout) < 150_000_000


def test_an_artifact_that_no_runtime_opens_is_a_failed_record(bundle: Bundle) -> None:
    pytest.importorskip("onnxruntime")
    found = list(bench(bundle, [Ort()], None, threads=1, effort=Effort(runs=5), prompt="a"))
    assert found
    assert all(isinstance(r, SanityRecord) and r.verdict == "fail" for r in found)
    assert "refused generator.ort" in found[0].sentence


def test_a_worker_that_dies_tells_why(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(engine=Ort(), bundle=str(bundle.root), components=("unet",), threads=1, prompt="", seed=0)
    monkeypatch.setattr(latency.sys, "executable", "/bin/false")
    with pytest.raises(EngineError, match="ended with 1"), Worker(job):
        pass


def test_core_ml_elsewhere_than_on_a_mac_says_so(bundle: Bundle) -> None:
    if sys.platform == "darwin":
        pytest.skip("this is a Mac")
    with pytest.raises(EngineError, match="only macOS has; this is Linux"):
        Coreml().load(bundle)
