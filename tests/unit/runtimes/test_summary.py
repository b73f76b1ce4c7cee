"""The Markdown of a report holds what failed, and nothing that a stranger's bundle could smuggle in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.runtimes.test_merge import latency

from flashbulb.runtimes.merge import merge
from flashbulb.runtimes.records import (
    BundleIdentity,
    Device,
    ParityRecord,
    Report,
    SanityRecord,
    host,
    now,
)
from flashbulb.runtimes.summary import MOST_BYTES, escape, markdown, publish, shortened


def parity(**changes: Any) -> ParityRecord:
    fields: dict[str, Any] = {
        "engine": "ort", "precision": "float32", "quantity": "unet", "tensor": "out", "case": 0,
        "prompt": "p", "seed": 0, "metric": "snr_db", "threshold_db": 60.0, "snr_db": 80.0,
        "max_abs": 1e-3, "exact": False, "finite": True, "verdict": "pass", "sentence": "fine",
    }  # fmt: skip
    return ParityRecord(**(fields | changes))


def report(*records: ParityRecord, sanity: tuple[SanityRecord, ...] = (), name: str = "b") -> Report:
    bundle = BundleIdentity(
        name=name, path="b", manifest_sha256="0" * 64, checkpoint_sha256="1" * 64, created=now()
    )
    return Report(
        command="check",
        created=now(),
        bundle=bundle,
        device=host(),
        versions={},
        parity=records,
        sanity=sanity,
    )


def test_the_worst_case_stands_for_its_tensor() -> None:
    text = markdown(report(parity(), parity(case=1, snr_db=20.0, verdict="fail", sentence="unet is off")))
    assert "1 failed" in text.splitlines()[0]
    assert "- ❌ unet is off" in text
    assert "| ort | unet (out) | 20.0 SNR | 60.0 |" in text
    assert "80.0 SNR" not in text


def test_a_case_that_fails_without_a_number_is_the_worst() -> None:
    nan = parity(case=1, snr_db=None, max_abs=None, finite=False, verdict="fail", sentence="nan")
    assert "| not finite |" in markdown(report(parity(), nan))
    assert "| exact |" in markdown(report(parity(snr_db=None, exact=True)))


def test_skips_are_told_and_an_empty_report_is_no_pass() -> None:
    skipped = SanityRecord(gate="engine", engine="coreml", verdict="skip", sentence="coreml: needs macOS")
    assert "- ⏭️ coreml: needs macOS" in markdown(report(parity(), sanity=(skipped,)))
    assert "nothing could be judged" in markdown(report())


def test_a_gate_that_failed_once_is_not_passed_by_its_next_case() -> None:
    found = [
        SanityRecord(gate="range", engine="ort", verdict=verdict, sentence=verdict)  # type: ignore[arg-type]
        for verdict in ("skip", "fail", "pass")
    ]
    assert "| range | ❌ |" in markdown(report(sanity=tuple(found)))
    assert "| range | ⏭️ |" in markdown(report(sanity=(found[2], found[0])))


def test_among_failures_the_one_without_a_number_is_the_worst() -> None:
    bad = parity(snr_db=20.0, verdict="fail")
    nan = parity(case=1, snr_db=None, max_abs=None, finite=False, verdict="fail", sentence="nan")
    for order in ((bad, nan), (nan, bad)):
        assert "| not finite |" in markdown(report(*order))


def test_every_device_has_its_tables_and_its_conditions() -> None:
    phone = Device(
        kind="adb", name="Pixel <8>", os="Android 15", arch="aarch64", cpu="G3", cores=8, memory_bytes=1
    )
    fast, slow = latency(p50_ms=1.5, ratio_to_eager=0.5), latency(p50_ms=77.25)
    there = msgspec.structs.replace(
        report(parity(snr_db=66.6), parity(engine="ort~x86_64", snr_db=11.1)), device=phone, latency=(slow,)
    )
    failed = SanityRecord(gate="range", engine="ort", verdict="fail", sentence="too dark")
    here = msgspec.structs.replace(report(parity(), sanity=(failed,)), latency=(fast,))
    text = markdown(merge([there, here]))
    sections = {part.splitlines()[0]: part for part in text.split("### ")[1:]}
    assert "66.6" in sections["Parity with PyTorch, worst case on Pixel &lt;8&gt;"]
    assert (
        "11.1" in sections["Agreement with the same file on another machine, worst case on Pixel &lt;8&gt;"]
    )
    assert text.count("11.1") == 1
    phones = sections["Latency on Pixel &lt;8&gt;"]
    assert "77.25" in phones
    assert "on the device itself, by a runner" in phones
    assert "in turns with" not in phones
    mine = next(part for title, part in sections.items() if title == f"Latency on {escape(host().name)}")
    assert "1.50" in mine
    assert "in turns with PyTorch eager at the same threads" in mine
    assert "77.25" not in mine
    assert f"- ❌ {escape(host().name)}: too dark" in text
    assert "on 2 devices" in text
    assert "- Pixel &lt;8&gt;, G3, Android 15: 3 passed" in text
    assert text.splitlines()[0].endswith("1 failed")


def test_the_cores_and_the_condition_of_a_figure_are_told() -> None:
    taken = {"governors": {"0,1": "walt"}, "thermal_before": 0, "thermal_after": 0, "cold": True}
    found = tuple(latency("ort@P", cores=cores, **taken) for cores in ("big (mask f0)", "little (mask f)"))
    text = markdown(msgspec.structs.replace(report(), latency=found))
    for cores in ("big (mask f0)", "little (mask f)"):
        assert f"| ort\\@P | generator | 1 | {cores} | 20.00 |" in text
        words = f"cores: {cores}; walt on 0,1; thermal status 0 before, 0 after; opened cold"
        assert f"- ort\\@P generator: {words}" in text
    assert "| ort | generator | 1 | - | 20.00 |" in markdown(
        msgspec.structs.replace(report(), latency=(latency(),))
    )


@pytest.mark.parametrize(
    "name",
    ["<img src=x onerror=alert(1)>", "a|b\n| c", "[x](http://evil)", "\x1b[31mred", "`code`", "\u202egnp"],
)
def test_names_of_strangers_stay_text(name: str) -> None:
    text = markdown(report(parity(tensor=name), name=name))
    assert "<img" not in text
    assert not re.search(r"(?<!\\)\]\(", text)
    assert "\x1b" not in text
    assert "\u202e" not in text
    row = next(line for line in text.splitlines() if line.startswith("| ort |"))
    assert row.replace("\\|", "").count("|") == 7


def test_escape_keeps_words() -> None:
    assert escape("a red apple, 20.1 dB (x8)") == "a red apple, 20.1 dB (x8)"


def test_a_summary_is_appended_for_github_and_cut_at_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = tmp_path / "step.md"
    step.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    publish("hello ✅", tmp_path / "deep/summary.md")
    assert step.read_text() == "before\nhello ✅\n"
    assert (tmp_path / "deep/summary.md").read_text() == "hello ✅"
    assert len(shortened("✅" * MOST_BYTES).encode()) < MOST_BYTES + 100
