"""The whole loop on a stand-in device: push, judge, lose the cable, fill the storage, clean up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.devices import adb, condition, timing
from flashbulb.runtimes.devices.remote import Remote
from flashbulb.runtimes.engines import Ort
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.gates import engine_gates
from flashbulb.runtimes.latency import Effort
from flashbulb.runtimes.records import LatencyRecord, ParityRecord, SanityRecord
from flashbulb.runtimes.stage import BenchConfig, bench


def judged(launcher: adb.Phone, bundle: Bundle) -> list[SanityRecord | ParityRecord]:
    return list(engine_gates(bundle, Remote(inner=Ort(artifact_format="ort"), launcher=launcher), 1))


def failures(records: list[SanityRecord | ParityRecord]) -> list[str]:
    return [record.sentence for record in records if record.verdict != "pass"]


def test_every_gate_is_asked_there_and_passes(phone: adb.Phone, bundle: Bundle, world: SimpleNamespace):
    (pushed,) = adb.prepare(phone, bundle, ("ort", "pte"))
    assert (pushed.verdict, pushed.value) == ("pass", 6.0)
    records = judged(phone, bundle)
    assert failures(records) == []
    assert len(records) == len(list(engine_gates(bundle, world.Engine(), 1)))
    assert {record.engine for record in records} == {"ort@fake:5555"}
    (kept,) = adb.finish(phone)
    assert (kept.verdict, kept.value) == ("pass", 6.0)


def test_the_device_is_described_by_what_it_knows(phone: adb.Phone, bundle: Bundle):
    list(adb.prepare(phone, bundle, ("ort",)))
    judged(phone, bundle)
    found = adb.describe(phone)
    assert (found.kind, found.name, found.os.split()[0]) == ("adb", "fake:5555", "Linux")
    assert found.attributes["features"] == "neon" and found.attributes["ort"] == "numpy 1"
    assert found.cores >= 1 and found.memory_bytes > 1 << 20


def test_the_log_comes_back(phone: adb.Phone, bundle: Bundle, tmp_path: Path):
    list(adb.prepare(phone, bundle, ("ort",)))
    judged(phone, bundle)
    text = phone.log_file(tmp_path / "log").read_text()
    assert sorted(text.splitlines()) == sorted(
        f"complaint of {name}" for name in ("generator", "text_encoder", "unet", "vae_decoder")
    )


def test_a_wrong_model_on_the_device_fails(phone: adb.Phone, bundle: Bundle, runners: Path):
    program = runners / "flashbulb-ort"
    text = program.read_text()
    assert "0.5 * np.roll" in text
    program.write_text(text.replace("0.5 * np.roll", "0.4 * np.roll"))
    list(adb.prepare(phone, bundle, ("ort",)))
    assert any(
        "unet" in sentence and "below the required" in sentence
        for sentence in failures(judged(phone, bundle))
    )


def test_a_runner_that_is_killed_is_started_again(phone: adb.Phone, bundle: Bundle):
    list(adb.prepare(phone, bundle, ("ort",)))
    dies = Path(phone.folder) / "dies"
    dies.write_text("2")
    assert failures(judged(phone, bundle)) == []
    assert dies.read_text() == "0"
    phone.known.clear()
    dies.write_text("9")
    assert any("the runner ended with code 137" in sentence for sentence in failures(judged(phone, bundle)))


COMMANDS = ("getprop", "mkdir", "df", "push", "sha256sum", "chmod", "runner", "touch", "pull", "rm")
"""What a loop asks of a device, in this order."""


@pytest.mark.parametrize("how", ["before", "0", "255"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_cable_lost_at_any_command_is_survived(
    fake_adb: Path, runners: Path, bundle: Bundle, tmp_path: Path, command: str, how: str
):
    """Before it, or during it: ``adb`` then ends with 0 or 255, by its version."""
    (tmp_path / "there").mkdir()
    (fake_adb / "lose_how").write_text(how)
    (fake_adb / "lose_at").write_text(command)
    with adb.phone("fake:5555", str(runners), str(tmp_path / "there")) as launcher:
        (pushed,) = adb.prepare(launcher, bundle, ("ort",))
        assert failures(judged(launcher, bundle)) == []
        (kept,) = adb.finish(launcher)
        assert adb.describe(launcher).name == "fake:5555"
    assert (pushed.value, kept.verdict) == (6.0, "pass")
    assert "wait-for-device" in (fake_adb / "asked").read_text()
    assert not (fake_adb / "lose_at").exists()
    assert list((tmp_path / "there").iterdir()) == []


def test_a_cable_lost_while_a_runner_computes_or_is_timed_is_survived(
    phone: adb.Phone, bundle: Bundle, thermal: Path
):
    thermal.write_text("0\n")
    list(adb.prepare(phone, bundle, ("ort",)))
    (Path(phone.folder) / "dies").write_text("1")
    remote = Remote(inner=Ort(artifact_format="ort"), launcher=phone)
    effort = Effort(runs=12, warmup=2, seconds=60)
    found = list(timing.bench_phone(bundle, remote, threads=1, effort=effort, cool_down_s=1.0))
    assert [(r.verdict, r.runs) for r in found if isinstance(r, LatencyRecord)] == [("pass", 12)] * 4
    assert (Path(phone.folder) / "dies").read_text() == "0"


def test_full_storage_ends_in_a_sentence_and_is_cleaned(
    fake_adb: Path, runners: Path, bundle: Bundle, tmp_path: Path
):
    (tmp_path / "there").mkdir()
    (fake_adb / "full_after").write_text("3")
    with (
        pytest.raises(EngineError, match="the storage of fake:5555 is full"),
        adb.phone("fake:5555", str(runners), str(tmp_path / "there")) as launcher,
    ):
        list(adb.prepare(launcher, bundle, ("ort",)))
    assert list((tmp_path / "there").iterdir()) == []


def test_too_little_storage_is_told_before_anything_is_copied(
    phone: adb.Phone, bundle: Bundle, fake_adb: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(adb, "SPARE_BYTES", 1 << 60)
    with pytest.raises(EngineError, match=r"MiB free in .* on fake:5555, got"):
        list(adb.prepare(phone, bundle, ("ort",)))
    assert "push" not in json.dumps((fake_adb / "asked").read_text())


def test_a_file_that_changed_on_the_device_is_found(phone: adb.Phone, bundle: Bundle):
    list(adb.prepare(phone, bundle, ("ort",)))
    (Path(phone.folder) / "onnx/unet.ort").write_text("numpy generator")
    (kept,) = adb.finish(phone)
    assert kept.verdict == "fail" and "unet.ort" in kept.sentence


def benched(
    phone: adb.Phone, bundle: Bundle, cool_down_s: float = 60.0
) -> list[LatencyRecord | SanityRecord]:
    list(adb.prepare(phone, bundle, ("ort",)))
    remote = Remote(inner=Ort(artifact_format="ort"), launcher=phone)
    effort = Effort(runs=12, warmup=2, seconds=60)
    return list(timing.bench_phone(bundle, remote, threads=2, effort=effort, cool_down_s=cool_down_s))


def test_every_program_is_timed_by_its_runner(phone: adb.Phone, bundle: Bundle, thermal: Path):
    thermal.write_text("0\n")
    records = benched(phone, bundle)
    assert [r.target for r in records if isinstance(r, LatencyRecord)] == list(world_components(bundle))
    for record in records:
        assert isinstance(record, LatencyRecord)
        assert (record.load_ms, record.first_ms, record.runs, record.min_ms) == (1.0, 1.0, 12, 1.0)
        assert record.p50_ms == pytest.approx(1.0015) and record.p99_ms <= 1.004
        assert (record.baseline_rss_bytes, record.peak_rss_bytes) == (1000, 9_000_000)
        assert record.ratio_to_eager is None and record.verdict == "pass"
        assert "thermal status 0 before and 0 after" in record.sentence


def world_components(bundle: Bundle) -> tuple[str, ...]:
    return bundle.components("ort")


def test_a_phone_that_got_warm_gives_no_figure(phone: adb.Phone, bundle: Bundle, thermal: Path):
    thermal.write_text("0\n0\n2\n0\n")  # cool, before, after the first program; cool for the others
    first, *others = benched(phone, bundle)
    assert first.verdict == "fail" and "no figure" in first.sentence
    assert all(record.verdict == "pass" for record in others)


def test_a_warm_phone_is_waited_for(
    phone: adb.Phone,
    bundle: Bundle,
    thermal: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(condition, "STEP_S", 0.01)
    caplog.set_level("INFO")
    thermal.write_text("3\n1\n0\n")
    assert all(record.verdict == "pass" for record in benched(phone, bundle))
    assert [line[line.index("(") :] for line in caplog.messages if "is warm" in line] == [
        "(thermal status 3); waiting",
        "(thermal status 1); waiting",
    ]
    thermal.write_text("3\n")
    records = benched(phone, bundle, cool_down_s=0.0)
    assert all(record.verdict == "fail" and "thermal status 3" in record.sentence for record in records)


def test_the_generator_is_held_to_the_budget(phone: adb.Phone, bundle: Bundle, thermal: Path):
    thermal.write_text("0\n")
    records = benched(phone, bundle)
    late = {r.target: timing.within(r, 1.0) for r in records if isinstance(r, LatencyRecord)}
    assert {name for name, r in late.items() if r.verdict == "fail"} == {"generator"}
    assert late["generator"].sentence.endswith("the budget is 1.00 ms")
    assert all(timing.within(r, 1.1).verdict == "pass" for r in records)
    assert [timing.within(r, None) for r in records] == records


@pytest.mark.parametrize(
    ("before", "after", "verdict", "words"),
    [
        (0, 0, "pass", "thermal status 0 before and 0 after"),
        (0, 1, "fail", "0 before and 1 after; it was warm, so this is no figure"),
        (1, 1, "fail", "it was warm"),
        (None, None, "skip", "not judged: the device does not tell its thermal status"),
        (0, None, "skip", "not judged"),
    ],
)
def test_warmth_is_judged_where_it_is_told(before: int | None, after: int | None, verdict: str, words: str):
    assert condition.warmth(before, after)[0] == verdict
    assert words in condition.warmth(before, after)[1]


def test_a_device_without_a_thermal_status_gives_no_verdict(phone: adb.Phone, bundle: Bundle):
    records = benched(phone, bundle)  # this machine has no dumpsys
    assert [(r.verdict, r.runs, r.thermal_before) for r in records] == [("skip", 12, None)] * 4
    assert all("not judged: the device does not tell" in record.sentence for record in records)
    late = {r.target: timing.within(r, 1.0).verdict for r in records}
    assert late == {name: "fail" if name == "generator" else "skip" for name in late}


def test_what_decides_a_figure_is_recorded(
    phone: adb.Phone, bundle: Bundle, thermal: Path, clocks: dict[str, Any], fake_adb: Path
):
    thermal.write_text("0\n")
    every = benched(phone, bundle)
    (fake_adb / "rooted").touch()
    phone.kind, phone.cores = "little", "1"
    little = benched(phone, bundle)
    for record in every:
        assert (record.cores, record.cold) == ("all", False)
        assert "not opened cold: the page cache was not dropped" in record.sentence
    for record in little:
        assert (record.cores, record.cold) == ("little (mask 1)", True)
        assert "on 2 thread(s), cores: little (mask 1), thermal" in record.sentence
        assert record.sentence.endswith("; opened cold")
    for record in every + little:
        assert record.governors == {"0,1,2,3": "schedutil", "4,5,6": "schedutil", "7": "performance"}
        assert (record.thermal_before, record.thermal_after) == (0, 0)
    assert (fake_adb / "dropped").read_text().splitlines() == ["-w vm.drop_caches=3"] * 4


def test_reports_from_before_these_fields_are_read(phone: adb.Phone, bundle: Bundle, thermal: Path):
    thermal.write_text("0\n")
    told = msgspec.to_builtins(benched(phone, bundle)[0])
    for name in ("cores", "governors", "thermal_before", "thermal_after", "cold"):
        del told[name]
    old = msgspec.convert(told, LatencyRecord)
    assert (old.cores, old.governors, old.thermal_before, old.cold) == ("", {}, None, None)


@pytest.fixture
def clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, int, str]]:
    """Groups of cores as a phone's kernel tells of them."""
    found = {
        "policy0": ("0 1 2 3", 1800, "schedutil"),
        "policy4": ("4 5 6", 2400, "schedutil"),
        "policy7": ("7", 2900, "performance"),
    }
    for name, values in found.items():
        folder = tmp_path / "cpu" / "cpufreq" / name
        folder.mkdir(parents=True)
        for field, value in zip(condition.FIELDS, values, strict=True):
            (folder / field).write_text(f"{value}\n")
    (tmp_path / "cpu" / "cpufreq" / "boost").write_text("1\n")
    monkeypatch.setattr(condition, "CPUFREQ", str(tmp_path / "cpu" / "cpufreq"))
    return found


def test_kinds_of_cores(
    phone: adb.Phone, clocks: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    assert [condition.mask(phone, kind) for kind in ("all", "big", "little")] == [None, "80", "f"]
    for threads, taken in ((1, "80"), (2, "f0"), (4, "f0")):
        assert condition.mask(phone, "big", threads) == taken
    assert [condition.mask(phone, "little", threads) for threads in (4, 5)] == ["f", "7f"]
    said = "the first big cores are too few for 4 threads; with the next kind they are 4"
    assert said in " ".join(caplog.messages)
    with pytest.raises(EngineError, match=r"wanted 5 big cores of fake:5555 .*, got 4; give fewer threads"):
        condition.mask(phone, "big", 5)
    for name in ("policy4", "policy7"):
        shutil.rmtree(tmp_path / "cpu" / "cpufreq" / name)
    with pytest.raises(EngineError, match=r"got cores of 1 kind\(s\); say all"):
        condition.mask(phone, "big")
    shutil.rmtree(tmp_path / "cpu")
    with pytest.raises(EngineError, match=r"got cores of 0 kind\(s\)"):
        condition.mask(phone, "little")


def test_no_number_of_threads_takes_the_cores_that_are_used(phone: adb.Phone, fake_adb: Path):
    (fake_adb / "nproc").write_text("#!/bin/sh\necho 8\n")
    (fake_adb / "nproc").chmod(0o755)
    assert [condition.thread_count(phone, threads) for threads in (0, 1, 3)] == [8, 1, 3]
    phone.cores = "f0"
    assert [condition.thread_count(phone, threads) for threads in (0, 1, 3)] == [4, 1, 3]
    phone.cores = None
    (fake_adb / "nproc").write_text("#!/bin/sh\n")
    with pytest.raises(EngineError, match="give --threads"):
        condition.thread_count(phone, 0)


def test_runners_are_bound_to_the_cores(phone: adb.Phone, bundle: Bundle, fake_adb: Path):
    list(adb.prepare(phone, bundle, ("ort",)))
    phone.cores = "1"
    assert failures(judged(phone, bundle)) == []
    assert "taskset 1 ./flashbulb-ort onnx/unet.ort" in (fake_adb / "asked").read_text()


def test_a_command_is_heeded_on_the_phone(
    fake_adb: Path,
    runners: Path,
    bundle: Bundle,
    tmp_path: Path,
    thermal: Path,
    clocks: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
):
    thermal.write_text("0\n")
    (tmp_path / "there").mkdir()
    opened = adb.phone
    monkeypatch.setattr(adb, "phone", lambda serial, made: opened(serial, made, str(tmp_path / "there")))
    config = BenchConfig(
        bundle=str(bundle.root),
        device="adb:fake:5555",
        runners=str(runners),
        runs=10,
        threads=0,
        cores="little",
    )
    report = bench(config)
    assert report.ok and len(report.latency) == 4
    assert not {"torch", "onnxruntime", "executorch", "coremltools", "diffusers"} & set(report.versions)
    assert {"python", "flashbulb", "numpy"} <= set(report.versions)
    assert {(r.threads, r.cores, r.runs) for r in report.latency} == {(4, "little (mask f)", 10)}
    assert "taskset f ./flashbulb-ort onnx/unet.ort - 4" in (fake_adb / "asked").read_text()
    assert list((tmp_path / "there").iterdir()) == []


def test_an_emulator_is_not_timed(bundle: Bundle):
    with pytest.raises(ValueError, match="wanted a device to time as 'adb:SERIAL' or 'ios:UDID', got 'qemu'"):
        bench(BenchConfig(bundle=str(bundle.root), device="qemu"))


def test_what_is_missing_is_told(fake_adb: Path, runners: Path, tmp_path: Path):
    for folder in (None, str(tmp_path / "none")):
        with pytest.raises(EngineError, match="wanted --runners"), adb.phone("fake:5555", folder):
            pass
    with pytest.raises(EngineError, match="not found"), adb.phone("another", str(runners)):
        pass
    (fake_adb / "state").write_text("unauthorized")
    with pytest.raises(EngineError, match="'unauthorized'; unlock it"), adb.phone("fake:5555", str(runners)):
        pass
