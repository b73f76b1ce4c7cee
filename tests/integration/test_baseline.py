"""`check --baseline` from its options to its verdict, on real programs that really run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from flashbulb.export.bundle import read_bundle
from flashbulb.runtimes.merge import merge
from flashbulb.runtimes.records import RegressionRecord, Report, write_report
from flashbulb.runtimes.stage import BenchConfig, CheckConfig, bench, check

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow


def checked(bundle: Path, **limits: object) -> Report:
    return check(CheckConfig(bundle=str(bundle), engine="ort", threads=1, **limits))  # type: ignore[arg-type]


def regressions(report: Report) -> list[RegressionRecord]:
    return [r for r in report.records if isinstance(r, RegressionRecord)]


@pytest.fixture
def worse(sticker_bundle: Path, tmp_path: Path) -> Path:
    """The bundle with noise of a thousandth in the decoder's larger weights, which its thresholds allow."""
    copy = Path(shutil.copytree(sticker_bundle, tmp_path / "worse"))
    held = read_bundle(copy)
    path = held.path(held.artifact("vae_decoder", "ort", "ort"))
    data = bytearray(path.read_bytes())
    values = np.frombuffer(data, "<f4", len(data) // 4)
    chosen = (np.abs(values) > 0.01) & (np.abs(values) < 0.5)
    values = values.copy()
    values[chosen] *= 1 + 1e-3 * np.random.default_rng(0).standard_normal(chosen.sum()).astype(np.float32)
    path.write_bytes(values.tobytes() + bytes(data[len(values) * 4 :]))
    return copy


def test_a_bundle_keeps_up_with_itself(sticker_bundle: Path) -> None:
    report = checked(sticker_bundle, baseline=str(sticker_bundle), max_slowdown=3.0, max_db_drop=1.0)
    found = regressions(report)
    assert {r.kind for r in found} == {"slowdown", "db_drop"}
    assert [r.sentence for r in found if r.verdict != "pass"] == []
    (slowdown,) = [r for r in found if r.kind == "slowdown"]
    assert slowdown.method == "interleaved" and 0.33 < (slowdown.value or 0) < 3.0
    assert report.ok, report.failures


def test_a_joined_report_is_a_baseline_for_times_and_parity(sticker_bundle: Path, tmp_path: Path) -> None:
    timed = bench(BenchConfig(bundle=str(sticker_bundle), engine="ort", threads=1, runs=50))
    path = write_report(merge([checked(sticker_bundle), timed]), tmp_path / "earlier.json")
    report = checked(sticker_bundle, baseline=str(path), max_slowdown=3.0, max_db_drop=1.0)
    found = regressions(report)
    assert {(r.kind, r.method) for r in found} == {("slowdown", "record"), ("db_drop", "record")}
    assert [r.sentence for r in found if r.verdict != "pass"] == []
    assert report.ok, report.failures


def test_lost_parity_is_named(sticker_bundle: Path, worse: Path, resign) -> None:
    resign(worse)
    report = checked(worse, baseline=str(sticker_bundle), max_db_drop=1.0)
    failed = {r.subject for r in regressions(report) if r.verdict == "fail"}
    assert any("vae_decoder" in subject for subject in failed) and any("image" in s for s in failed)
    assert not any("unet" in subject for subject in failed)
    assert not report.ok
