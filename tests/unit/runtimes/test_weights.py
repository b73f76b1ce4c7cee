"""Coded weights are what their codes decode to: a wrong step or a poorer table is no rounding."""

from __future__ import annotations

import numpy as np
import pytest

from flashbulb.export.anatomy.listing import Constant, Listing
from flashbulb.runtimes.sources import Sources, Wanted
from flashbulb.runtimes.weights import Verdict, judge_weights

RNG = np.random.default_rng(0)
CODES = RNG.integers(-127, 128, (16, 24)).astype(np.int8)
STEPS = RNG.uniform(0.5, 2.0, (16, 1)).astype(np.float32) / 100
TABLE = np.sort(RNG.standard_normal(16)).astype(np.float32)
ENTRIES = RNG.integers(0, 16, (16, 24))


def judged(weight: np.ndarray, stored: Constant) -> Verdict:
    sources = Sources({"unet/w": Wanted("unet/w", weight.astype(np.float32))})
    return judge_weights(Listing((), {"w": stored}), sources, "unet")


def stepped(codes: np.ndarray, steps: np.ndarray, dtype: str) -> Constant:
    steps = steps.astype(dtype)
    return Constant(lambda: codes.astype(dtype) * steps, scale=lambda: steps)


def tabled(entries: np.ndarray, table: np.ndarray, dtype: str) -> Constant:
    return Constant(lambda: table.astype(dtype)[entries], table=lambda: table.astype(dtype))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_codes_of_the_checkpoint_pass_in_any_float_type(dtype: str) -> None:
    assert judged(CODES * STEPS, stepped(CODES, STEPS, dtype)).problems == []
    assert judged(TABLE[ENTRIES], tabled(ENTRIES, TABLE, dtype)).problems == []


def coarse() -> Constant:
    """The same weights in twenty times as large steps."""
    return stepped(np.round(CODES / 20), STEPS * 20, "float16")


def silenced() -> Constant:
    """One channel of zeros, with a step so large that zero is the nearest code."""
    codes, steps = CODES.copy(), STEPS.copy()
    codes[3], steps[3] = 0, 10.0
    return stepped(codes, steps, "float16")


def one_code() -> Constant:
    codes = CODES.copy()
    codes[5, 7] += 1 if codes[5, 7] < 0 else -1
    return stepped(codes, STEPS, "float16")


@pytest.mark.parametrize(("fault", "wrong"), [(coarse, 200), (silenced, 20), (one_code, 1)])
def test_other_codes_or_steps_fail(fault, wrong: int) -> None:
    found = judged(CODES * STEPS, fault())
    assert found.wrong >= wrong
    assert "unet/w" in found.problems[0]


def test_a_poorer_table_fails() -> None:
    """Each weight at the nearest of two entries."""
    table = TABLE[[3, 12]]
    entries = np.abs(TABLE[ENTRIES][..., None] - table).argmin(-1)
    assert judged(TABLE[ENTRIES], tabled(entries, table, "float16")).wrong > 200


def test_one_entry_elsewhere_fails() -> None:
    table = TABLE.copy()
    table[4] += 0.01
    assert judged(TABLE[ENTRIES], tabled(ENTRIES, table, "float16")).wrong == (ENTRIES == 4).sum()
