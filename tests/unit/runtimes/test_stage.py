"""The commands refuse with a reason, and a report is never silent about what it left out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flashbulb.export.bundle import Bundle, BundleError
from flashbulb.runtimes.engines import engine_named, engine_names
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.records import read_report
from flashbulb.runtimes.stage import BenchConfig, CheckConfig, RunConfig, available, bench, check, run

pytest.importorskip("onnxruntime")


def test_every_engine_says_why_it_cannot_run(bundle: Bundle) -> None:
    found = available(bundle)
    assert tuple(found) == engine_names() == ("eager", "ort", "executorch", "coreml", "mil")
    assert found["ort"] is None
    assert "nowhere/at-all is not on this machine" in str(found["eager"])
    assert found["executorch"]
    assert found["coreml"]


def test_an_unknown_engine_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"\['eager', 'ort', 'executorch', 'coreml', 'mil'\], got 'tflite'"):
        engine_named("tflite")


def test_programs_that_no_runtime_opens_fail_the_check(bundle: Bundle, tmp_path: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    out = tmp_path / "check.json"
    found = check(CheckConfig(bundle=str(bundle.root), out=str(out)), lambda *a: steps.append(a))
    assert not found.ok
    assert any("text_encoder.ort cannot be taken apart" in f for f in found.failures)
    assert any("ort: not opened: text_encoder.ort cannot be taken apart" in f for f in found.failures)
    assert not any("refused text_encoder.ort" in f for f in found.failures)  # by the runtime
    assert any("not on this machine" in s for s in found.skipped)
    assert read_report(out) == found
    assert [s[0] for s in steps] == [0, 1, 2]
    assert {s[1] for s in steps} == {3}


def test_a_named_engine_without_anything_in_the_bundle_is_the_users_error(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="nothing for executorch"):
        check(CheckConfig(bundle=str(bundle.root), engine="executorch"))
    if sys.platform != "darwin":
        with pytest.raises(EngineError, match="only macOS has"):
            run(RunConfig(bundle=str(bundle.root), prompt="a", engine="coreml"))


@pytest.mark.parametrize("function", [check, bench])
def test_a_folder_that_is_no_bundle_is_the_users_error(function, tmp_path: Path) -> None:
    config = {check: CheckConfig, bench: BenchConfig}[function](bundle=str(tmp_path))
    with pytest.raises(BundleError, match=r"manifest\.json"):
        function(config)


def test_a_run_opens_no_file_that_was_changed(bundle: Bundle, tmp_path: Path) -> None:
    path = bundle.root / "onnx/generator.ort"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(BundleError, match=r"generator\.ort"):
        run(RunConfig(bundle=str(bundle.root), prompt="a", out=str(tmp_path / "x.png")))
    assert not (tmp_path / "x.png").exists()


def test_bench_without_a_reference_says_so_and_fails_on_what_does_not_run(bundle: Bundle) -> None:
    found = bench(BenchConfig(bundle=str(bundle.root), runs=5, seconds=1))
    assert not found.ok
    assert any("no ratio to PyTorch eager" in s for s in found.skipped)
    assert all("could not be timed" in s for s in found.failures)
