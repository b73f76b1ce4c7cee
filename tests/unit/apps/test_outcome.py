"""What a result shows, and which exit code it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from flashbulb.apps.cli import outcome
from flashbulb.distill.cost import CostRecord, Part
from flashbulb.export.doctor import Diagnosis, Finding
from flashbulb.runtimes.records import ParityRecord, RegressionRecord, Report, SanityRecord, host, now


def parity(verdict: Any, snr_db: float | None, *, case: int = 0) -> ParityRecord:
    return ParityRecord(
        engine="ort", precision="float32", quantity="unet", tensor="out", case=case, prompt="p", seed=0,
        metric="snr_db", threshold_db=60.0, snr_db=snr_db, max_abs=1e-3, exact=snr_db is None,
        finite=True, verdict=verdict, sentence=f"unet is {verdict}",
    )  # fmt: skip


def report(*records: ParityRecord, sanity: tuple[SanityRecord, ...] = ()) -> Report:
    return Report(
        command="check", created=now(), bundle=None, device=host(), versions={}, parity=records, sanity=sanity
    )


def test_a_passing_report_gives_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome.show(report(parity("pass", 80.0))) == 0
    assert "check: passed" in capsys.readouterr().out


def test_a_failing_report_gives_one_and_says_what(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome.show(report(parity("pass", 80.0), parity("fail", 20.0, case=1))) == 1
    shown = capsys.readouterr()
    assert "unet is fail" in shown.err
    assert "20.00" in shown.out  # the worst case stands for its quantity


def test_a_report_of_nothing_is_no_proof(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome.show(report()) == 1
    assert "no proof" in capsys.readouterr().err


def test_what_was_skipped_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    skipped = SanityRecord(gate="engine", engine="coreml", verdict="skip", sentence="coreml: needs macOS")
    assert outcome.show(report(parity("pass", None), sanity=(skipped,))) == 0
    assert "skipped: coreml: needs macOS" in capsys.readouterr().err


def test_a_gate_that_failed_once_is_not_passed_by_its_next_case(capsys: pytest.CaptureFixture[str]) -> None:
    found = tuple(
        SanityRecord(gate="range", engine="ort", verdict=verdict, sentence=verdict)  # type: ignore[arg-type]
        for verdict in ("fail", "pass", "skip")
    )
    assert outcome.show(report(sanity=found)) == 1
    row = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("range"))
    assert row.split() == ["range", "FAIL"]


def test_undecided_is_not_passed_and_has_its_own_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    open_ = RegressionRecord(
        kind="slowdown", method="record", engine="ort", subject="generator", value=1.08, low=1.0, high=1.2,
        limit=1.1, turns=48, verdict="undecided", sentence="undecided: ort generator: 1.08 times",
    )  # fmt: skip
    found = msgspec.structs.replace(report(parity("pass", 80.0)), regression=(open_,))
    assert outcome.show(found) == 1
    shown = capsys.readouterr()
    assert "undecided: ort generator: 1.08 times" in shown.err
    assert "1 undecided, and undecided is not passed" in shown.err
    assert "check: passed" not in shown.out
    assert "1.1 x" in shown.out
    decided = msgspec.structs.replace(open_, verdict="pass")
    assert outcome.show(msgspec.structs.replace(found, regression=(decided,))) == 0


@pytest.mark.parametrize(("severity", "code"), [("error", 1), ("warning", 0)])
def test_a_diagnosis_fails_on_errors_only(severity: Any, code: int) -> None:
    finding = Finding(severity=severity, artifact="onnx/unet.onnx", component="unet", what="too large")
    assert outcome.show(Diagnosis(bundle="b", findings=(finding,))) == code


def test_paths_codes_and_records(capsys: pytest.CaptureFixture[str]) -> None:
    class Figures(msgspec.Struct):
        value: float = 0.12345

    assert outcome.show(Path("a/b")) == 0
    assert capsys.readouterr().out == "a/b\n"
    assert outcome.show(1) == 1
    assert outcome.show(Figures()) == 0
    assert "0.1235" in capsys.readouterr().out


def test_a_cost_is_a_table_of_parts(capsys: pytest.CaptureFixture[str]) -> None:
    part = Part(name="student", calls=2, core_ms=8.0, share=0.8)
    other = Part(name="other", calls=1, core_ms=2.0, share=0.2)
    record = CostRecord(
        objective="add", teacher="t", device="a processor", torch="2", threads=1, batch=32, repeats=15,
        step_core_ms=10.0, parts=(part,), rest=(other,), sum_core_ms=8.0, ratio=1.25,
        ratio_quartiles=(1.2, 1.3),
    )  # fmt: skip
    assert outcome.show(record) == 0
    shown = capsys.readouterr().out
    assert "80.0%" in shown
    assert "1.250" in shown


@pytest.mark.parametrize(("limit", "calls", "code"), [(1.15, 1, 1), (1.25, 1, 0), (1.15, 0, 0)])
def test_a_ratio_above_its_limit_fails(
    capsys: pytest.CaptureFixture[str], limit: float, calls: int, code: int
) -> None:
    """But only where all of the networks that the limit is for take part."""
    names = ("student", "teacher", "decode")
    parts = tuple(Part(name=name, calls=1, core_ms=2.0, share=0.2) for name in names)
    critic = Part(name="critic", calls=calls, core_ms=2.0, share=0.2)
    record = CostRecord(
        objective="add", teacher="t", device="a processor", torch="2", threads=1, batch=32, repeats=15,
        step_core_ms=10.0, parts=(*parts, critic), rest=(), sum_core_ms=8.0, ratio=1.25,
        ratio_quartiles=(1.2, 1.3), limit=limit,
    )  # fmt: skip
    assert outcome.show(record) == code
    shown = capsys.readouterr()
    assert f"limit {limit}" in shown.out
    assert ("wanted a ratio of at most 1.15, got 1.250" in shown.err) == bool(code)
