"""A sample of Apple's operator tests passes on the interpreter, and planted wrong meanings fail them.

`python tests/apple/run.py --per-test 0` runs all of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("coremltools")
slow = pytest.mark.skipif(
    os.environ.get("FLASHBULB_SLOW_TESTS") != "1",
    reason="minutes of conversions: FLASHBULB_SLOW_TESTS=1 runs them",
)
FEW = ("iOS14/test_activation.py", "iOS16/test_scatter_gather.py", "iOS18/test_states.py")
SAMPLE = (
    "iOS14/test_activation.py",
    "iOS14/test_pool.py",
    "iOS17/test_scatter_gather.py",
    "iOS18/test_states.py",
)
CAUGHT = {
    "gelu-mode": ("iOS14/test_activation.py", "GeLU"),
    "softmax-axis": ("iOS14/test_activation.py", "Softmax"),
    "conv-pad": ("iOS14/test_conv.py", "TestConv and stress and not padding_mode"),
    "transpose": ("iOS14/test_linear.py", "MatMul"),
    "epsilon": ("iOS14/test_normalization.py", "LayerNorm"),
    "next-axis": ("iOS14/test_scatter_gather.py", "TestGather"),
    "twice": ("iOS14/test_reduction.py", "TestReduction and mean"),
    "keep-order": ("iOS14/test_tensor_transformation.py", "Transpose"),
}


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("apple_run", Path(__file__).with_name("run.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("absolute", "relative", "rounding"),
    [("0.001", "0.002", True), ("0.001", "0.5", False), ("0.5", "0.001", False), ("0.001", "nan", False)],
)
def test_a_difference_is_rounding_when_it_is_small_absolutely_and_relatively(
    absolute: str, relative: str, rounding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    close = importlib.import_module("mil_plugin").close
    words = "Max {} difference among violations: {}\n"
    assert close(words.format("absolute", absolute) + words.format("relative", relative)) is rounding


def test_a_few_of_each_opset_pass(runner: ModuleType) -> None:
    counts, bad = runner.summary(runner.outcomes([], fp32_only=True, files=FEW))
    assert not bad, bad
    assert counts["passed"] >= 20


@slow
def test_a_sample_passes_without_a_mismatch(runner: ModuleType) -> None:
    counts, bad = runner.summary(runner.outcomes([], fp32_only=True, files=SAMPLE))
    assert all(result["outcome"] == "explained" for result in bad.values()), bad
    assert counts["passed"] >= 36
    assert runner.passed(counts) >= runner.LEAST_SHARE


@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=() if f in ("gelu-mode", "transpose") else slow) for f in CAUGHT]
)
def test_a_planted_wrong_meaning_fails(runner: ModuleType, fault: str) -> None:
    file, words = CAUGHT[fault]
    found = runner.outcomes([f"--fault={fault}", "-k", words], fp32_only=True, files=(file,))
    counts, _ = runner.summary(found)
    assert counts["mismatch"] + counts["failed"] >= 1, found
