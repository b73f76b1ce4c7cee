"""What is asked of devices: their words, what is lacking, agreement of two processors, no false times."""

from __future__ import annotations

import platform
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.devices import qemu
from flashbulb.runtimes.devices.agreement import FLOAT32_DB, INT8_DB, agreement, tolerance_db
from flashbulb.runtimes.devices.check import Wanted, check_device, chosen, open_device
from flashbulb.runtimes.devices.remote import Launcher
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.merge import merge
from flashbulb.runtimes.records import Device, LatencyRecord, Report, now
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


def test_a_baseline_is_of_this_machine(bundle: Bundle):
    with pytest.raises(ValueError, match="--baseline or --device, got both"):
        check(CheckConfig(bundle=str(bundle.root), device="qemu", baseline="x"))


def test_optimum_is_of_this_machine(bundle: Bundle):
    with pytest.raises(ValueError, match="--optimum or --device, got both"):
        bench(BenchConfig(bundle=str(bundle.root), device="adb:x", optimum="x"))


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
