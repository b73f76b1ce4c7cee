"""The Markdown of a report holds what failed, and nothing that a stranger's bundle could smuggle in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flashbulb.runtimes.records import BundleIdentity, ParityRecord, Report, SanityRecord, host, now
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
