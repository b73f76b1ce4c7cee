"""What is asked of devices: their words, what is lacking, agreement of two processors, no false times."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from flashbulb.export.bundle import Bundle, read_bundle, write_manifest
from flashbulb.runtimes import options
from flashbulb.runtimes.devices import check as check_module
from flashbulb.runtimes.devices import qemu
from flashbulb.runtimes.devices.agreement import FLOAT32_DB, INT8_DB, agreement, tolerance_db
from flashbulb.runtimes.devices.check import Wanted, check_device, chosen, open_device
from flashbulb.runtimes.devices.remote import Launcher
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.gates import engine_gates
from flashbulb.runtimes.merge import merge
from flashbulb.runtimes.records import Device, LatencyRecord, Report, SanityRecord, now
from flashbulb.runtimes.stage import BenchConfig, CheckConfig, bench, check

WANTED = Wanted(None, None, None, "0" * 64)


@pytest.mark.parametrize("word", ["", "phone", "adb", "adb:", "qemu:x"])
def test_an_unknown_device_lists_the_known(bundle: Bundle, word: str):
    with pytest.raises(ValueError, match="wanted a device as 'qemu', 'adb:SERIAL' or 'ios:UDID'"):
        open_device(word)
    with pytest.raises(ValueError, match="wanted a device as"):
        check_device(bundle, word, WANTED, lambda *step: None)


def test_a_machine_without_an_emulator_says_what_to_install(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="apt-get install qemu-user-static"):
        check(CheckConfig(bundle=str(bundle.root), device="qemu"))
    (tmp_path / qemu.PROGRAMS[0]).write_text("#!/bin/sh\n")
    (tmp_path / qemu.PROGRAMS[0]).chmod(0o755)
    with pytest.raises(EngineError, match=r"apt-get install g\+\+-aarch64-linux-gnu"):
        check(CheckConfig(bundle=str(bundle.root), device="qemu"))


def test_changed_files_are_not_run(bundle: Bundle):
    (bundle.root / "onnx/unet.ort").write_text("changed")
    found = check_device(bundle, "qemu", WANTED, lambda *step: None)
    assert found.device is None and [r.verdict for r in found.records] == ["fail"]


CHECK_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"device": "qemu", "baseline": "x"}, "wanted --baseline or --device, got both; qemu"),
    ({"device": "qemu", "max_slowdown": 1.1}, "wanted --max-slowdown or --device, got both"),
    ({"device": "adb:x", "max_db_drop": 1.0}, "wanted --max-db-drop or --device, got both; adb:x"),
    ({"device": "adb:x", "seconds": 1.0}, "wanted --seconds or --device"),
    ({"device": "adb:x", "bisect": True}, "wanted --bisect or --device, got both; .*run it without"),
    ({"device": "qemu", "runners": "x"}, "wanted --runners or --device, got both; qemu: .*made here"),
    ({"device": "ios:x", "runners": "x"}, "wanted --runners or --device, got both; ios:x: .*an app"),
    ({"device": "ios:x", "threads": 2}, "wanted --threads or --device, got both; ios:x: the app"),
    ({"runners": "x"}, "wanted --device with --runners, got 'x' alone"),
    ({"cases": 3}, "wanted --device with --cases, got 3 alone"),
    ({"seconds": 5.0}, "wanted --baseline with --seconds, got 5.0 alone"),
    ({"max_slowdown": 1.1}, "wanted --baseline with --max-slowdown"),
]


@pytest.mark.parametrize(("given", "words"), CHECK_OPTIONS, ids=[str(o) for o, _ in CHECK_OPTIONS])
def test_check_ignores_no_option(bundle: Bundle, given: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        check(CheckConfig(bundle=str(bundle.root), **given))


BENCH_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"device": "adb:x", "optimum": "x"}, "wanted --optimum or --device, got both; adb:x"),
    ({"device": "adb:x", "prompt": "x"}, "wanted --prompt or --device, got both; .*first golden case"),
    ({"device": "adb:x", "checkpoint": "x"}, "wanted --checkpoint or --device, got both; .*no PyTorch"),
    ({"device": "ios:x", "cores": "big"}, "wanted --cores or --device, got both; ios:x: the app"),
    ({"device": "ios:x", "threads": 2}, "wanted --threads or --device, got both; ios:x: the app"),
    ({"device": "ios:x", "runners": "x"}, "wanted --runners or --device, got both; ios:x"),
    ({"cores": "big"}, "wanted --device with --cores, got 'big' alone"),
    ({"cool_down_s": 1.0}, "wanted --device with --cool-down-s, got 1.0 alone"),
    ({"runners": "x"}, "wanted --device with --runners, got 'x' alone"),
]


@pytest.mark.parametrize(("given", "words"), BENCH_OPTIONS, ids=[str(o) for o, _ in BENCH_OPTIONS])
def test_bench_ignores_no_option(bundle: Bundle, given: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        bench(BenchConfig(bundle=str(bundle.root), **given))


@pytest.mark.parametrize("config", [CheckConfig, BenchConfig])
def test_every_option_is_heeded_or_refused(config: type[Any]):
    """A new option must be put into one of these lists, or it may be ignored."""
    refused = {
        CheckConfig: (options.CHECK_HERE, options.CHECK_DEVICE),
        BenchConfig: (options.BENCH_HERE, options.BENCH_DEVICE),
    }[config]
    both = {"bundle", "engine", "threads", "device", "out"}
    heeded = {
        CheckConfig: both | {"checkpoint", "summary"},
        BenchConfig: both | {"runs", "seconds", "budget_ms"},
    }[config]
    assert set(config.__struct_fields__) == heeded.union(*refused)


def test_the_files_are_held_to_every_gate_before_a_device_is_asked(bundle: Bundle, stand_in: Stand):
    sound = bundle.manifest
    lowered = {
        f"{kind}_rms_min": getattr(sound.sanity, f"{kind}_rms_min") / 100 for kind in ("prompt", "noise")
    }
    sanity = msgspec.structs.replace(sound.sanity, **lowered)
    write_manifest(msgspec.structs.replace(sound, sanity=sanity), bundle.root)
    bundle = read_bundle(bundle.root)
    found = check_device(bundle, "adb:x", WANTED._replace(threads=3), lambda *step: None)
    gates = {r.gate: r.verdict for r in found.records if isinstance(r, SanityRecord)}
    wanted = {a.component: f"structure.{a.component}.ort" for a in bundle.manifest.artifacts}
    assert {gates[name] for name in wanted.values()} == {"fail"}  # words in place of programs
    assert gates["rule"] == "fail"  # this bundle's thresholds are lower than an export's
    assert (gates["source"], gates["weights"], gates["pictures"]) == ("skip", "skip", "pass")
    assert gates["floors"] == "fail" and stand_in.threads == {3}  # of what the device drew
    write_manifest(sound, bundle.root)
    found = check_device(read_bundle(bundle.root), "adb:x", WANTED, lambda *step: None)
    assert [r.verdict for r in found.records if getattr(r, "gate", "") == "floors"] == ["pass"]


class Stand:
    """A device that computes as this machine."""

    def __init__(self, world: SimpleNamespace) -> None:
        self.world, self.threads = world, set[int]()

    @contextmanager
    def open(self, word: str, runners: str | None) -> Iterator[check_module.Place]:
        yield check_module.Place(
            (SimpleNamespace(where="x", close=lambda: None),),  # type: ignore[arg-type]
            lambda: Device(kind="adb", name="x", os="x", arch="x", cpu="x", cores=1, memory_bytes=1),
            lambda bundle: iter(()),
            lambda launcher, engine: None,
        )

    def gates(self, bundle: Bundle, remote: Any, threads: int, cases: int | None) -> Iterator[Any]:
        self.threads.add(threads)
        return engine_gates(bundle, self.world.Engine(), threads, cases)


@pytest.fixture
def stand_in(world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Stand:
    found = Stand(world)
    monkeypatch.setattr(check_module, "open_device", found.open)
    monkeypatch.setattr(check_module, "engine_gates", found.gates)
    monkeypatch.setattr(check_module, "_agreement", lambda *a: iter(()))
    return found


def test_only_what_apps_load_runs_elsewhere(bundle: Bundle, world: SimpleNamespace):
    assert [engine.label for engine in chosen(bundle, None)] == ["ort"]
    with pytest.raises(EngineError, match=r"wanted .ort or .pte files for executorch"):
        chosen(bundle, "executorch")


def test_two_processors_agree_or_are_told_apart(bundle: Bundle, world: SimpleNamespace):
    here, there = world.Engine().load(bundle), world.Engine().load(bundle)
    there.engine = "ort@cortex-a53"
    records = list(agreement(bundle, here, there, 2))
    assert len(records) == 2 * 4 and all(r.exact and r.verdict == "pass" for r in records)
    assert {r.engine for r in records} == {f"ort@cortex-a53~{platform.machine()}"}
    assert {r.threshold_db for r in records} == {FLOAT32_DB}
    slip = np.float32(1 + 2e-5)
    there = world.Engine(fault={"unet": lambda s, h: world.unet(s, h) * slip}).load(bundle)
    failed = {r.quantity: r for r in agreement(bundle, here, there, None) if r.verdict == "fail"}
    assert set(failed) == {"unet"}  # 94 dB: enough for the golden vectors, too far for the same file
    assert failed["unet"].snr_db == pytest.approx(-20 * np.log10(2e-5), abs=0.5)


def test_int8_has_a_tolerance_of_its_own(bundle: Bundle):
    artifact = bundle.manifest.artifacts[0]
    assert tolerance_db(artifact) == FLOAT32_DB
    assert tolerance_db(msgspec.structs.replace(artifact, encodings={"palettize6": 3})) == FLOAT32_DB
    assert tolerance_db(msgspec.structs.replace(artifact, encodings={"int8_weight_only": 3})) == INT8_DB


@pytest.mark.parametrize(
    ("model", "features", "verdict"),
    [
        (qemu.MODELS[0], ("neon",), "pass"),
        (qemu.MODELS[1], ("neon", "dotprod"), "pass"),
        (qemu.MODELS[0], ("neon", "dotprod"), "fail"),
        (qemu.MODELS[1], ("neon",), "fail"),
        (qemu.MODELS[1], (), None),
    ],
)
def test_the_processor_must_be_the_one_asked_for(model: qemu.Model, features: tuple[str, ...], verdict):
    launcher: Launcher = qemu.Qemu("qemu", model, Path("/nowhere"))
    launcher.features = features
    record = qemu.proof(launcher, "ort@x")
    assert (record and record.verdict) == verdict


def test_an_emulator_has_no_latency():
    names = ("load", "first", "p50", "p90", "p99", "min", "cpu_p50")
    latency = LatencyRecord(
        engine="ort@cortex-a53",
        precision="float32",
        target="unet",
        threads=1,
        runs=10,
        cpu_over_wall=1.0,
        disturbed_runs=0,
        ratio_to_eager=None,
        cpu_ratio_to_eager=None,
        baseline_rss_bytes=1,
        peak_rss_bytes=1,
        artifact_bytes=1,
        verdict="pass",
        sentence="fast",
        **{f"{name}_ms": 1.0 for name in names},
    )
    device = Device(kind="qemu", name="x", os="x", arch="x", cpu="x", cores=1, memory_bytes=1)
    told = {"command": "check", "created": now(), "bundle": None, "device": device, "versions": {}}
    Report(**told)
    with pytest.raises(ValueError, match="emulation says nothing of time"):
        Report(**told, latency=(latency,))
    phone = msgspec.structs.replace(device, kind="adb")
    report = Report(**told | {"device": phone}, latency=(latency,))
    emulated = Report(**told)
    for order in ([report, emulated], [emulated, report]):
        assert (merge(order).device.kind, merge(order).latency) == ("adb", (latency,))
    assert merge([emulated]).device.kind == "qemu"
    forged = msgspec.json.encode(report).replace(b'"kind":"adb"', b'"kind":"qemu"')
    with pytest.raises(msgspec.ValidationError, match="emulation says nothing"):
        msgspec.json.decode(forged, type=Report)
