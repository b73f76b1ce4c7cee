"""Decibels are what they say, and nothing that is not a number passes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashbulb.runtimes.parity import ParityError, Subject, Threshold, diagnose, judge, measure

SUBJECT = Subject(
    engine="ort", precision="float32", quantity="unet", tensor="out", case=0, prompt="x", seed=1
)


def test_snr_is_a_power_ratio_in_decibels() -> None:
    reference = np.full((10,), 2.0)
    found = measure(reference, reference + 0.02)
    assert found.snr_db == pytest.approx(40.0)
    assert found.psnr_db == pytest.approx(10 * math.log10(1 / 0.02**2))
    assert found.max_abs == pytest.approx(0.02)


def test_identical_is_exact_and_null() -> None:
    found = measure(np.ones(3), np.ones(3, np.float32))
    assert (found.snr_db, found.psnr_db, found.exact, found.max_abs) == (None, None, True, 0.0)
    assert (
        judge(SUBJECT, Threshold(metric="snr_db", minimum_db=300.0), np.ones(3), np.ones(3)).verdict == "pass"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("minimum", [-1000.0, 0.0, 40.0])
def test_non_finite_fails_whatever_the_threshold(bad: float, minimum: float) -> None:
    actual = np.ones(4)
    actual[2] = bad
    record = judge(SUBJECT, Threshold(metric="snr_db", minimum_db=minimum), np.ones(4), actual)
    assert (record.verdict, record.finite, record.snr_db) == ("fail", False, None)
    assert "1 of 4 values" in record.sentence


def test_a_reference_that_is_not_finite_fails_also_against_itself() -> None:
    lost = np.array([np.nan, 1.0])
    assert judge(SUBJECT, Threshold(metric="snr_db", minimum_db=-1000), lost, lost).verdict == "fail"


def test_nan_as_a_threshold_does_not_pass() -> None:
    record = judge(SUBJECT, Threshold(metric="snr_db", minimum_db=math.nan), np.ones(4), np.ones(4) * 1.1)
    assert record.verdict == "fail"


def test_a_silent_reference_has_no_power_to_compare_with() -> None:
    record = judge(SUBJECT, Threshold(metric="snr_db", minimum_db=-1000), np.zeros(4), np.ones(4))
    assert (record.verdict, record.snr_db) == ("fail", None)
    assert "all zero" in record.sentence


def test_another_shape_is_a_failed_record_and_an_error() -> None:
    with pytest.raises(ParityError, match=r"\(4,\).*\(5,\)"):
        measure(np.ones(4), np.ones(5))
    assert judge(SUBJECT, Threshold(metric="snr_db", minimum_db=0), np.ones(4), np.ones(5)).verdict == "fail"


@settings(max_examples=60, deadline=None)
@given(scale=st.floats(1e-6, 1e6), noise=st.floats(1e-5, 0.5), seed=st.integers(0, 100))
def test_snr_does_not_depend_on_the_scale(scale: float, noise: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference, error = rng.standard_normal(50) + 2.0, rng.standard_normal(50) * noise
    here = measure(reference, reference + error).snr_db
    there = measure(reference * scale, (reference + error) * scale).snr_db
    assert here == pytest.approx(there, abs=1e-3)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda x: x[:, [2, 1, 0]], "order BGR"),
        (lambda x: x[:, [1, 2, 0]], "order GBR"),
        (lambda x: x * 2 - 1, "in [-1, 1]"),
        (lambda x: x * 255, "in [0, 255]"),
        (lambda x: 1 - x, "inverted"),
        (lambda x: x[..., ::-1], "mirrored"),
        (lambda x: x[..., ::-1, :], "upside down"),
        (lambda x: np.swapaxes(x, -1, -2), "exchanged"),
        (lambda x: x * 0, "one colour"),
    ],
)
def test_well_known_mistakes_are_named(mistake, words: str) -> None:
    picture = np.random.default_rng(0).random((1, 3, 8, 8))
    assert words in (diagnose(picture, mistake(picture)) or "")


def test_an_unknown_mistake_is_not_given_a_name() -> None:
    rng = np.random.default_rng(0)
    assert diagnose(rng.random((1, 3, 8, 8)), rng.random((1, 3, 8, 8))) is None
