"""Turns are fair, disturbed runs are counted, memory is a process's own."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes import latency, worker
from flashbulb.runtimes.engines import Coreml, Ort
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.latency import Effort, Samples, Worker, bench, environment, interleave
from flashbulb.runtimes.records import SanityRecord
from flashbulb.runtimes.worker import Job, Loaded, Timed, peak_bytes, time_runs


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
    alone = FakeWorker("a", 1.0, [])
    (found,) = interleave("unet", [alone], Effort(runs=1000, warmup=0, seconds=1e-9))  # type: ignore[list-item]
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


class Placing(FakeWorker):
    """Says where a target runs, and notes when it was asked; may die at a target."""

    def __init__(self, bundle: Bundle, dies: str = "") -> None:
        super().__init__("a", 1.0, [])
        held, self.dies = ("unet", "vae_decoder"), dies
        self.job = Job(
            engine=Ort(artifact_format="ort"), bundle=str(bundle.root), components=held, threads=1,
            prompt="", seed=0,
        )  # fmt: skip
        self.loaded = Loaded(load_ms=1.0, baseline_rss_bytes=1)

    def turn(self, target: str, count: int) -> Timed:
        if target == self.dies:
            raise EngineError("it died")
        return super().turn(target, count)

    def placement(self, target: str) -> dict[str, float]:
        self.turns.append((f"place {target}", 0))
        return {"CPU": 1.0}


def test_where_a_target_runs_is_asked_after_everything_is_timed(bundle: Bundle) -> None:
    fake: Any = Placing(bundle)
    found = list(latency._turns(bundle, fake, None, Effort(runs=5, warmup=0), None))
    assert [(r.target, r.placement) for r in found] == [
        (name, {"CPU": 1.0}) for name in ("unet", "vae_decoder", "pipeline")
    ]
    asked = [name for name, _ in fake.turns]
    assert asked == ["a"] * 6 + ["place unet", "place vae_decoder", "place pipeline"]


def test_what_was_timed_before_an_engine_died_is_kept(bundle: Bundle) -> None:
    fake: Any = Placing(bundle, dies="vae_decoder")
    turns = latency._turns(bundle, fake, None, Effort(runs=5, warmup=0), None)
    first = next(turns)
    assert (first.target, first.placement) == ("unet", {})
    with pytest.raises(EngineError, match="it died"):
        next(turns)


def test_a_worker_reads_no_plan_before_it_is_asked(
    bundle: Bundle, world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    session = world.Engine().load(bundle)
    session.placement = lambda name: asked.append(name) or {"GPU": 1.0}
    engine = Ort(artifact_format="ort")
    monkeypatch.setattr(Ort, "warm", lambda self: None)
    monkeypatch.setattr(Ort, "load", lambda self, bundle, **options: session)
    job = Job(engine=engine, bundle=str(bundle.root), components=("unet",), threads=1, prompt="", seed=0)
    requests = [job, worker.Turn(target="unet", count=2)]
    placings = [worker.Placing(target=target) for target in ("unet", "pipeline")]
    for more, wanted in (([], []), (placings, ["unet"])):
        answers = io.BytesIO()
        lines = b"".join(msgspec.json.encode(request) + b"\n" for request in [*requests, *more])
        worker.serve(io.BytesIO(lines), answers)
        assert asked == wanted
        told = [msgspec.json.decode(a, type=worker.Answer) for a in answers.getvalue().splitlines()]
        assert [type(a) for a in told[:2]] == [Loaded, Timed]
    assert told[2:] == [worker.Placed(shares={"GPU": 1.0}), worker.Placed(shares={})]


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
