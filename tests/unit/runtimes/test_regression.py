"""Noise is not mistaken for a slowdown, a slowdown not for noise, and what is open is not passed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import stats

from flashbulb.export.bundle import Bundle, write_manifest
from flashbulb.runtimes import regression
from flashbulb.runtimes.drops import CEILING_DB, db_drops, twin_drops
from flashbulb.runtimes.race import LOOKS, Race, _look, race
from flashbulb.runtimes.ratio import Interval, in_turns, ratio_interval
from flashbulb.runtimes.records import (
    LatencyRecord,
    ParityRecord,
    Report,
    SanityRecord,
    Verdict,
    host,
    now,
    runtime_versions,
    write_report,
)
from flashbulb.runtimes.regression import Limits, open_baseline
from flashbulb.runtimes.stage import CheckConfig, check
from flashbulb.runtimes.worker import Timed


class Machine:
    """A clock that other work disturbs: slow drift, phases of half speed, single interrupted runs."""

    def __init__(self, seed: int, noise: float = 0.05) -> None:
        self.rng, self.noise, self.drift, self.calls = np.random.default_rng(seed), noise, 0.0, 0

    def spend(self, milliseconds: float) -> float:
        if self.calls % 10 == 0:  # it changes between pairs of turns, and also within them
            self.drift += self.rng.normal(0.0, 0.1)
        self.calls += 1
        interrupted = self.rng.uniform(1.0, 3.0) if self.rng.random() < 0.1 else 1.0
        return float(milliseconds * np.exp(self.drift + self.rng.normal(0.0, self.noise)) * interrupted)


class Program:
    """Takes a fixed time on a machine."""

    def __init__(self, machine: Machine, milliseconds: float) -> None:
        self.machine, self.milliseconds, self.targets = machine, milliseconds, set[str]()

    def turn(self, target: str, count: int) -> Timed:
        self.targets.add(target)
        wall = tuple(self.machine.spend(self.milliseconds) for _ in range(count))
        return Timed(wall_ms=wall, cpu_ms=wall, peak_rss_bytes=1)


def verdicts(slowdown: float, *, limit: float = 1.1, noise: float = 0.05, trials: int = 60) -> list[str]:
    found = []
    for seed in range(trials):
        machine = Machine(seed, noise)
        pair = Program(machine, 20.0 * slowdown), Program(machine, 20.0)
        found.append(race(*pair, ("generator", "generator"), limit=limit, seconds=60).decision)
    return found


def test_the_same_program_passes_and_never_fails() -> None:
    found = verdicts(1.0)
    assert found.count("fail") == 0
    assert found.count("pass") >= 55


def test_a_slowdown_fails_and_never_passes() -> None:
    found = verdicts(1.3)
    assert found.count("pass") == 0
    assert found.count("fail") >= 55


def test_a_slowdown_at_the_limit_is_mostly_left_open() -> None:
    """At the limit itself a verdict is right by chance only: each side may be taken in 5 % of trials."""
    found = verdicts(1.1, trials=100)
    assert found.count("undecided") >= 85
    assert stats.binomtest(found.count("fail"), 100, 0.05, alternative="greater").pvalue > 0.01


def test_early_looks_do_not_decide_more_often_than_stated() -> None:
    """At the limit every verdict is chance: 5 % of races may end in one, over all three looks.

    Of 300 races 15 are 5 %, with a standard deviation of 3.8 by chance; these are 11, and 19 where few pairs
    are taken for many.
    """
    rng, decided = np.random.default_rng(5), 0
    for _ in range(300):
        mine, theirs = (np.exp(rng.normal(mean, 0.1, (LOOKS[-1], 1))) for mean in (np.log(1.1), 0.0))
        looks = (_look(mine[:n].tolist(), theirs[:n].tolist(), 1.1) for n in LOOKS)
        decided += any(found.decision != "undecided" for found in looks)
    assert decided <= 15


def test_noise_that_hides_the_answer_leaves_it_open() -> None:
    assert "fail" not in verdicts(1.0, noise=1.0, trials=20)
    assert "undecided" in verdicts(1.0, noise=1.0, trials=20)


def test_the_turns_are_even_and_each_runs_its_own_target() -> None:
    machine = Machine(0)
    mine, theirs = Program(machine, 20.0), Program(machine, 20.0)
    found = race(mine, theirs, ("generator", "pipeline"), limit=1.5, seconds=60)
    assert (mine.targets, theirs.targets) == ({"generator"}, {"pipeline"})
    assert found.turns == 12  # decided at the first look
    assert found.interval is not None
    assert found.interval.low < 1.0 < found.interval.high


def test_no_time_gives_no_interval() -> None:
    machine = Machine(0)
    found = race(Program(machine, 20.0), Program(machine, 20.0), ("a", "a"), limit=1.1, seconds=-1.0)
    assert found == Race(None, 1, "undecided")


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(3), 0
    for _ in range(300):
        drift = np.exp(np.cumsum(rng.normal(0.0, 0.1, 24)))[:, None]
        mine, theirs = (r * drift * np.exp(rng.normal(0.0, 0.1, (24, 5))) for r in (1.1, 1.0))
        found = ratio_interval(mine.tolist(), theirs.tolist())
        assert found is not None
        hits += found.low <= 1.1 <= found.high
    assert stats.binomtest(hits, 300, 0.95, alternative="less").pvalue > 0.001


def test_the_interval_agrees_with_scipys_bootstrap() -> None:
    rng = np.random.default_rng(4)
    mine, theirs = np.exp(rng.normal(0.1, 0.2, (24, 1))), np.exp(rng.normal(0.0, 0.2, (24, 1)))
    logs = (np.log(mine) - np.log(theirs))[:, 0]
    bound = stats.t.ppf(0.975, 23) * np.sqrt(24 / 23)  # in place of 1.96
    wanted = stats.bootstrap(
        (logs,),
        lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
        method="percentile",
        confidence_level=2.0 * stats.norm.cdf(bound) - 1.0,
        n_resamples=20000,
        rng=1,
    ).confidence_interval
    found = ratio_interval(mine.tolist(), theirs.tolist())
    assert found is not None
    assert np.log(found.low) == pytest.approx(wanted.low, abs=0.02)
    assert np.log(found.high) == pytest.approx(wanted.high, abs=0.02)
    assert np.log(found.ratio) == pytest.approx(stats.trim_mean(logs, 0.25), abs=1e-12)


def test_runs_are_cut_into_whole_turns() -> None:
    assert in_turns([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.9, 1.1, "pass"), (1.11, 1.2, "fail"), (1.0, 1.2, "undecided"), (1.1, 1.2, "undecided")],
)
def test_only_a_whole_interval_decides(low: float, high: float, verdict: str) -> None:
    assert Interval(low, 1.0, high).decide(1.1) == verdict


def parity(**changes: Any) -> ParityRecord:
    fields: dict[str, Any] = {
        "engine": "ort", "precision": "float32", "quantity": "unet", "tensor": "out", "case": 0,
        "prompt": "p", "seed": 0, "metric": "snr_db", "threshold_db": 60.0, "snr_db": 80.0,
        "max_abs": 1e-3, "exact": False, "finite": True, "verdict": "pass", "sentence": "fine",
    }  # fmt: skip
    return ParityRecord(**(fields | changes))


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ({"snr_db": 80.0}, {"snr_db": 79.0}, "pass"),
        ({"snr_db": 80.0}, {"snr_db": 78.9}, "fail"),
        ({"snr_db": 80.0}, {"snr_db": 95.0}, "pass"),
        ({"snr_db": None, "exact": True}, {"snr_db": 150.0}, "pass"),
        ({"snr_db": None, "exact": True}, {"snr_db": 120.0}, "fail"),
        ({"snr_db": 80.0}, {"snr_db": None, "exact": True}, "pass"),
        ({"snr_db": 80.0}, {"snr_db": None, "finite": False}, "fail"),
        ({"snr_db": None, "finite": False}, {"snr_db": 80.0}, "undecided"),
        ({"snr_db": 80.0}, {"snr_db": 80.0, "prompt": "other"}, "undecided"),
        ({"snr_db": 80.0}, {"snr_db": 80.0, "quantity": "x0"}, "undecided"),
    ],
)
def test_decibels_against_those_of_the_baseline(
    old: dict[str, Any], new: dict[str, Any], verdict: str
) -> None:
    (found,) = db_drops([parity(**new)], [parity(**old)], 1.0)
    assert found.verdict == verdict
    assert found.sentence.startswith("undecided: ") == (verdict == "undecided")


def test_the_case_that_lost_most_decides_and_is_named() -> None:
    old = [parity(case=i, prompt=str(i)) for i in range(3)]
    new = [parity(case=i, prompt=str(i), snr_db=80.0 - 2.0 * i) for i in range(3)]
    (found,) = db_drops(new, old, 1.0)
    assert found.value == pytest.approx(4.0)
    assert "80.0 dB became 76.0 dB in case 2" in found.sentence
    assert parity(snr_db=None, exact=True).exact
    assert pytest.approx(20 * np.log10(2.0**24), abs=1.0) == CEILING_DB


def test_engines_that_were_not_chosen_are_left_out_only_when_one_was() -> None:
    old = [parity(), parity(engine="coreml")]
    assert [r.verdict for r in db_drops([parity()], old, 1.0)] == ["pass", "undecided"]
    assert [r.verdict for r in db_drops([parity()], old, 1.0, {"ort"})] == ["pass"]
    assert [r.verdict for r in db_drops([parity()], [], 1.0)] == ["undecided"]


def twin(component: str, value: float | None, verdict: Verdict = "pass") -> SanityRecord:
    return SanityRecord(
        gate=f"twin.{component}", engine="mil", value=value, verdict=verdict, sentence="a twin"
    )


def test_a_twin_may_not_lose_more_than_allowed() -> None:
    old = [twin("unet", 123.0), twin("generator", 120.0), twin("vae_decoder", None)]
    new = [twin("unet", 119.0), twin("generator", 118.5), twin("vae_decoder", 150.0)]
    found = {r.subject: r for r in twin_drops(new, old, 3.0)}
    assert {s: r.verdict for s, r in found.items()} == {
        "twin of unet": "fail",
        "twin of generator": "pass",
        "twin of vae_decoder": "pass",
    }
    assert found["twin of unet"].value == pytest.approx(4.0)
    assert "123.0 dB became 119.0 dB, allowed to lose 3.0 dB" in found["twin of unet"].sentence
    assert [r.verdict for r in twin_drops(new[1:], old[:1], 3.0)] == ["undecided"]
    lost = [twin("unet", None, "fail")]  # not finite, or not to be opened: no value to compare
    assert [r.verdict for r in twin_drops(lost, old[:1], 3.0)] == ["undecided"]
    assert list(twin_drops(new, [], 3.0)) == []


def latency(**changes: Any) -> LatencyRecord:
    fields: dict[str, Any] = {
        "engine": "ort", "precision": "float32", "target": "generator", "threads": 1, "load_ms": 1.0,
        "first_ms": 1.0, "p50_ms": 20.0, "p90_ms": 21.0, "p99_ms": 22.0, "min_ms": 19.0, "runs": 50,
        "cpu_p50_ms": 20.0, "cpu_over_wall": 1.0, "disturbed_runs": 0, "ratio_to_eager": 0.5,
        "cpu_ratio_to_eager": 0.5, "baseline_rss_bytes": 1, "peak_rss_bytes": 1, "artifact_bytes": 1,
        "verdict": "pass", "sentence": "fine", "ratio_interval": (0.49, 0.51),
    }  # fmt: skip
    return LatencyRecord(**(fields | changes))


def report(*records: LatencyRecord, **changes: Any) -> Report:
    found = Report(
        command="bench",
        created=now(),
        bundle=None,
        device=host(),
        versions=runtime_versions(),
        latency=records,
    )
    return msgspec.structs.replace(found, **changes)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Replace processes by programs whose times are told per bundle folder, or for eager."""
    times: dict[str, float] = {}
    machine = Machine(1)

    class Stand:
        def __init__(self, job: Any) -> None:
            self.job = job

        def __enter__(self) -> Program:
            key = "eager" if self.job.engine.name == "eager" else Path(self.job.bundle).name
            return Program(machine, times[key])

        def __exit__(self, *rest: object) -> None: ...

    monkeypatch.setattr(regression, "Worker", Stand)
    monkeypatch.setattr(regression.Eager, "serves", lambda self, bundle: None)
    return times


LIMITS = Limits(max_slowdown=1.1)


@pytest.mark.parametrize(("eager", "verdict"), [(40.0, "pass"), (30.0, "fail"), (36.4, "undecided")])
def test_a_recorded_ratio_to_eager_is_compared_with_that_of_today(
    bundle: Bundle,
    world: SimpleNamespace,
    workers: dict[str, float],
    tmp_path: Path,
    eager: float,
    verdict: str,
) -> None:
    workers.update(bundle=20.0, eager=eager)
    path = write_report(report(latency()), tmp_path / "old.json")
    baseline = open_baseline(str(path), LIMITS)
    assert baseline is not None
    (found,) = baseline.compare(bundle, [world.Engine()], [])
    assert (found.verdict, found.method) == (verdict, "record")
    assert "what slows eager as well does not show" in found.sentence
    assert found.value == pytest.approx(20.0 / eager / 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("old", "words"),
    [
        (report(), "no timing beside PyTorch eager"),
        (report(latency(ratio_interval=None)), "no timing beside PyTorch eager"),
        (report(latency(threads=2)), "threads 2 there and 1 here"),
        (report(latency(), versions={"torch": "1.0"}), "torch 1.0 there and"),
        (report(latency(), device=msgspec.structs.replace(host(), cpu="M1")), "processor M1 there"),
    ],
)
def test_a_record_from_other_conditions_is_left_open(
    bundle: Bundle, world: SimpleNamespace, workers: dict[str, float], tmp_path: Path, old: Report, words: str
) -> None:
    baseline = open_baseline(str(write_report(old, tmp_path / "old.json")), LIMITS)
    assert baseline is not None
    (found,) = baseline.compare(bundle, [world.Engine()], [])
    assert found.verdict == "undecided"
    assert words in found.sentence


@pytest.mark.parametrize(
    "bounds", [(0.0, 0.0), (0.0, 1.0), (-1.0, 1.0), (5.0, 0.1), (1e308, 1e308), (1e-320, 1e-320)]
)
def test_an_impossible_recorded_ratio_is_left_open(
    bundle: Bundle,
    world: SimpleNamespace,
    workers: dict[str, float],
    tmp_path: Path,
    bounds: tuple[float, float],
) -> None:
    workers.update(bundle=20.0, eager=40.0)
    old = report(latency(ratio_interval=bounds))
    baseline = open_baseline(str(write_report(old, tmp_path / "old.json")), LIMITS)
    (found,) = baseline.compare(bundle, [world.Engine()], [])
    assert found.verdict == "undecided"
    assert f"the baseline's report has [{bounds[0]:g}, {bounds[1]:g}]" in found.sentence


def test_both_sentences_about_what_a_report_lacks_name_the_same_way_out(
    bundle: Bundle, world: SimpleNamespace, workers: dict[str, float], tmp_path: Path
) -> None:
    """A report of `check` has no times and one of `bench` no parity: to ask for the other goes in circles."""
    path = str(write_report(report(), tmp_path / "old.json"))
    limits = msgspec.structs.replace(LIMITS, max_db_drop=1.0)
    found = list(open_baseline(path, limits).compare(bundle, [world.Engine()], []))
    assert [r.kind for r in found] == ["db_drop", "slowdown"]
    for record in found:
        assert "`report.json` of `flashbulb make`" in record.sentence
        assert "`flashbulb report BUNDLE --reports CHECK.json BENCH.json`" in record.sentence


@pytest.mark.parametrize(("old_ms", "verdict"), [(20.0, "pass"), (15.0, "fail")])
def test_an_earlier_bundle_runs_in_turns_with_this_one(
    bundle: Bundle,
    world: SimpleNamespace,
    workers: dict[str, float],
    tmp_path: Path,
    old_ms: float,
    verdict: str,
) -> None:
    import shutil

    shutil.copytree(bundle.root, tmp_path / "earlier")
    workers.update(bundle=20.0, earlier=old_ms)
    baseline = open_baseline(str(tmp_path / "earlier"), LIMITS)
    assert baseline is not None
    (found,) = baseline.compare(bundle, [world.Engine()], [])
    assert (found.verdict, found.method, found.subject) == (verdict, "interleaved", "generator")


def test_an_engine_that_only_the_baseline_has_is_an_open_question(
    bundle: Bundle, world: SimpleNamespace, workers: dict[str, float], tmp_path: Path
) -> None:
    """A bundle that lost a format is not faster than one that has it."""
    workers.update(bundle=20.0, eager=40.0)
    old = report(latency(), latency(engine="executorch"), latency(engine="optimum"))
    path = str(write_report(old, tmp_path / "old.json"))
    limits = msgspec.structs.replace(LIMITS, narrowed=False)
    found = {r.engine: r for r in open_baseline(path, limits).compare(bundle, [world.Engine()], [])}
    assert {name: r.verdict for name, r in found.items()} == {"ort": "pass", "executorch": "undecided"}
    assert "executorch: the baseline has it, this bundle does not" in found["executorch"].sentence
    narrowed = msgspec.structs.replace(LIMITS, narrowed=True)  # as when one engine was asked for
    assert len(list(open_baseline(path, narrowed).compare(bundle, [world.Engine()], []))) == 1


@pytest.mark.parametrize("earlier", ["report", "bundle"])
def test_a_check_compares_twins_with_those_of_the_baseline(
    bundle: Bundle, world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: str
) -> None:
    import shutil

    limits = Limits(max_db_drop=3.0)
    path = write_report(msgspec.structs.replace(report(), sanity=(twin("unet", 123.0),)), tmp_path / "old")
    if earlier == "bundle":
        path = Path(shutil.copytree(bundle.root, tmp_path / "earlier"))
        coreml = [msgspec.structs.replace(a, backend="coreml") for a in bundle.manifest.artifacts]
        write_manifest(msgspec.structs.replace(bundle.manifest, artifacts=tuple(coreml)), path)
        monkeypatch.setattr(regression, "program_gates", lambda *_: [twin("unet", 123.0)])
        monkeypatch.setattr(regression.Baseline, "parity", lambda self, engines: [])
    baseline = open_baseline(str(path), limits)
    assert baseline is not None
    found = baseline.compare(bundle, [world.Engine()], [twin("unet", 119.0)])
    assert [r.verdict for r in found if r.subject == "twin of unet"] == ["fail"]
    narrowed = msgspec.structs.replace(baseline, limits=msgspec.structs.replace(limits, narrowed=True))
    assert not [r for r in narrowed.compare(bundle, [world.Engine()], []) if "twin" in r.subject]


def test_a_format_that_only_the_earlier_bundle_has_is_an_open_question(
    bundle: Bundle, world: SimpleNamespace, workers: dict[str, float], tmp_path: Path, monkeypatch
) -> None:
    import shutil

    shutil.copytree(bundle.root, tmp_path / "earlier")
    workers.update(bundle=20.0, earlier=20.0)
    monkeypatch.setattr(regression.Baseline, "parity", lambda self, engines: [])
    monkeypatch.setattr("flashbulb.runtimes.engines.Executorch.missing", lambda self: None)
    monkeypatch.setattr("flashbulb.runtimes.engines.Executorch.serves", lambda self, bundle: None)
    baseline = open_baseline(str(tmp_path / "earlier"), LIMITS)
    found = {r.engine: r.verdict for r in baseline.compare(bundle, [world.Engine()], [])}
    assert found["executorch"] == "undecided"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_slowdown": 1.1}, "wanted --baseline"),
        ({"baseline": "x.json"}, "wanted --max-slowdown or --max-db-drop"),
        ({"baseline": "x.json", "max_db_drop": 1.0}, "wanted a report of schema 2"),
        ({"baseline": ".", "max_db_drop": 1.0}, "wanted a report .JSON. or a bundle"),
    ],
)
def test_what_cannot_be_a_baseline_is_the_users_error(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        check(CheckConfig(bundle=str(bundle.root), **changes))
