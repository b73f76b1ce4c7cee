"""A device that is lost for good: what was found is kept, the rest not waited for, a report is left."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.devices.shell import DeviceLost, Shell
from flashbulb.runtimes.records import read_report
from flashbulb.runtimes.stage import BenchConfig, CheckConfig, bench, check


def waits(fake_adb: Path) -> int:
    lines = (fake_adb / "asked").read_text().splitlines()
    return [ast.literal_eval(line)[2] for line in lines].count("wait-for-device")


def test_figures_that_were_taken_are_kept(
    fake_adb: Path, runners: Path, bundle: Bundle, there: Path, thermal: Path, tmp_path: Path
):
    thermal.write_text("0\n")
    names = bundle.components("ort")
    (fake_adb / "away_at").write_text(f"{names[2]}.ort -")
    out = tmp_path / "bench.json"
    config = BenchConfig(
        bundle=str(bundle.root), device="adb:fake:5555", runners=str(runners), runs=10, out=str(out)
    )
    report = bench(config)
    assert read_report(out) == report and not report.ok
    assert [(r.target, r.verdict) for r in report.latency] == [(name, "pass") for name in names[:2]]
    assert [(r.gate, r.verdict) for r in report.sanity] == [
        ("pushed", "pass"),
        ("bench", "fail"),
        ("bench", "fail"),
        ("device_files", "fail"),
    ]
    assert [name for name in names[2:] if any(f"{name} could not be timed" in s for s in report.failures)]
    assert "fake:5555 is gone: waiting for fake:5555" in report.failures[-1]
    assert waits(fake_adb) == 1
    assert (report.device.kind, report.device.attributes["features"]) == ("adb", "neon")


@pytest.mark.parametrize("at", ["unet.ort -", "sha256sum", "push"])
def test_a_check_ends_in_a_report(
    fake_adb: Path, runners: Path, bundle: Bundle, there: Path, tmp_path: Path, at: str
):
    (fake_adb / "away_at").write_text(at)
    out = tmp_path / "check.json"
    config = CheckConfig(
        bundle=str(bundle.root), device="adb:fake:5555", runners=str(runners), cases=2, out=str(out)
    )
    report = check(config)
    assert read_report(out) == report and not report.ok and report.device.kind == "adb"
    found = {r.gate: r.verdict for r in report.sanity}
    assert (found["files"], found["load"], found["device_files"]) == ("pass", "fail", "fail")
    assert found["pushed"] == ("pass" if at == "unet.ort -" else "fail")
    assert waits(fake_adb) == 1


def test_a_device_is_waited_for_once(fake_adb: Path):
    (fake_adb / "away_at").write_text("")
    shell = Shell("fake:5555")
    for _ in range(3):
        with pytest.raises(DeviceLost):
            shell.run(["true"])
    assert waits(fake_adb) == 1
    with pytest.raises(DeviceLost, match="is gone: waiting for fake:5555"):
        shell.require()


def test_a_device_that_does_not_answer_is_not_asked_again(fake_adb: Path):
    shell = Shell("fake:5555", patience_s=0.4)
    with pytest.raises(DeviceLost, match="no answer in 0 s"):
        shell.run(["sleep", "60"])
    before = (fake_adb / "asked").exists() and (fake_adb / "asked").read_text()
    with pytest.raises(DeviceLost, match="fake:5555 is gone: sleep on fake:5555: no answer"):
        shell.run(["true"])
    assert ((fake_adb / "asked").exists() and (fake_adb / "asked").read_text()) == before
