"""Joined reports keep every device, and every record with the device that it is of."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flashbulb.runtimes.machine import titles
from flashbulb.runtimes.merge import merge
from flashbulb.runtimes.records import (
    BundleIdentity,
    Device,
    LatencyRecord,
    Report,
    SanityRecord,
    now,
    read_report,
    write_report,
)

BUNDLE = BundleIdentity(name="n", path="p", manifest_sha256="a", checkpoint_sha256="c", created="")


def device(name: str, kind: str = "adb", **attributes: str) -> Device:
    told: dict[str, Any] = {"kind": kind, "name": name, "attributes": attributes}
    return Device(os="o", arch="a", cpu="c", cores=1, memory_bytes=1, **told)


def latency(engine: str = "ort", **changes: Any) -> LatencyRecord:
    fields: dict[str, Any] = {
        "engine": engine, "precision": "float32", "target": "generator", "threads": 1, "load_ms": 1.0,
        "first_ms": 1.0, "p50_ms": 20.0, "p90_ms": 21.0, "p99_ms": 22.0, "min_ms": 19.0, "runs": 50,
        "cpu_p50_ms": 20.0, "cpu_over_wall": 1.0, "disturbed_runs": 0, "ratio_to_eager": None,
        "cpu_ratio_to_eager": None, "baseline_rss_bytes": 1, "peak_rss_bytes": 1, "artifact_bytes": 1,
        "verdict": "pass", "sentence": "fine",
    }  # fmt: skip
    return LatencyRecord(**(fields | changes))


def sanity(verdict: Any, gate: str = "g") -> SanityRecord:
    return SanityRecord(gate=gate, engine="ort", verdict=verdict, sentence=f"it is {verdict}")


def report(where: Device, **fields: Any) -> Report:
    told: dict[str, Any] = {"command": "bench", "versions": {"torch": "2"}} | fields
    return Report(created=now(), bundle=BUNDLE, device=where, **told)


HOST = report(device("desk", "host", governor="powersave"), latency=(latency(p50_ms=1.0),))
PIXEL = report(device("Pixel", serial="P", governor="walt", thermal_status="0"), latency=(latency("ort@P"),))
GALAXY = report(device("Galaxy", serial="G", governor="energy", thermal_status="1"), sanity=(sanity("fail"),))


@pytest.mark.parametrize("order", list(itertools.permutations([HOST, PIXEL, GALAXY])))
def test_every_device_keeps_its_records_and_what_it_was_like(
    order: tuple[Report, ...], tmp_path: Path
) -> None:
    joined = merge(order)
    assert joined.device == HOST.device
    assert {part.device.name: part.own for part in joined.parts} == {
        found.device.name: found.own for found in order
    }
    assert [part.device for part in joined.others] == [r.device for r in order if r is not HOST]
    assert joined.failures == ("Galaxy: it is fail",)
    assert not joined.ok
    assert read_report(write_report(joined, tmp_path / "r.json")) == joined
    assert merge([joined]).parts[1:] == joined.others


def test_what_one_device_did_at_different_times_stands_together() -> None:
    cool = report(device("Pixel", serial="P", governor="walt", thermal_status="0"), sanity=(sanity("pass"),))
    warm = report(
        device("Pixel", serial="P", governor="walt", thermal_status="2"),
        versions={"torch": "3", "x": "1"},
        latency=(latency(),),
    )
    joined = merge([cool, warm])
    assert joined.others == ()
    assert (joined.sanity, joined.latency) == (cool.sanity, warm.latency)
    assert joined.device.attributes == {"serial": "P", "governor": "walt", "thermal_status": "0; 2"}
    assert joined.versions == {"torch": "2; 3", "x": "1"}
    again = merge([joined, warm])
    assert again.device == joined.device


def test_two_phones_of_one_model_are_two_devices() -> None:
    twins = [report(device("Pixel", serial=s), sanity=(sanity("pass"),)) for s in "AB"]
    assert merge(twins).titles == ("Pixel (A)", "Pixel (B)")
    twins = [report(device("iPhone", "ios", udid=u), sanity=(sanity("pass"),)) for u in "AB"]
    assert merge(twins).titles == ("iPhone (A)", "iPhone (B)")
    assert titles([device("x"), device("x"), device("y")]) == ("x (1)", "x (2)", "y")


def test_a_machine_that_measured_nothing_is_left_out_where_others_did() -> None:
    idle = report(device("desk", "host"))
    assert merge([idle, PIXEL]).device == PIXEL.device
    assert merge([idle, PIXEL]).others == ()
    assert merge([idle]).device == idle.device


def test_one_device_needs_no_name_in_its_sentences() -> None:
    assert merge([GALAXY]).failures == ("it is fail",)


def test_any_device_can_break_a_joined_report() -> None:
    good = report(device("desk", "host"), sanity=(sanity("pass"),))
    assert merge([good, PIXEL]).ok
    assert not merge([good, GALAXY]).ok


def test_an_emulator_among_several_has_no_latency_either() -> None:
    joined = json.loads(msgspec.json.encode(merge([HOST, PIXEL])))
    joined["others"][0]["device"]["kind"] = "qemu"
    with pytest.raises(msgspec.ValidationError, match="emulation says nothing"):
        msgspec.json.decode(json.dumps(joined), type=Report)


def old(path: Path, **changes: Any) -> Path:
    """Write a report as it was before devices were kept apart."""
    told = json.loads(msgspec.json.encode(HOST)) | {"schema_version": 1} | changes
    del told["others"]
    path.write_text(json.dumps(told))
    return path


def test_a_report_of_schema_1_is_read(tmp_path: Path) -> None:
    assert read_report(old(tmp_path / "r.json")) == HOST
    joined = read_report(old(tmp_path / "r.json", command="report"))
    assert joined.parts == (msgspec.structs.replace(HOST, command="report"),)


def test_a_report_of_schema_1_that_mixed_devices_is_refused(tmp_path: Path) -> None:
    phone = json.loads(msgspec.json.encode(PIXEL.device))
    strays = json.loads(msgspec.json.encode(PIXEL.latency))
    for changes in ({"device": phone}, {"latency": strays}):
        path = old(tmp_path / "r.json", command="report", **changes)
        with pytest.raises(ValueError, match=r"joined one of schema 1 in .*r\.json; join the reports of"):
            read_report(path)
        assert read_report(old(tmp_path / "r.json", command="check", **changes))
