"""Compare a tensor with its reference, in decibels that say which they are.  Numpy only.

``snr_db`` is 10 log10(power of the reference / power of the error); ``psnr_db`` has the peak 1.0 of a picture
in [0, 1].  A NaN compares false with any threshold, so finiteness is judged before anything else.
"""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import numpy as np

from flashbulb.runtimes.records import Metric, ParityRecord, Verdict, decibel

Array = np.ndarray[Any, Any]


class ParityError(ValueError):
    """Tensors that cannot be compared: they have different shapes, or are empty."""


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """How far a tensor is from its reference."""

    snr_db: float | None = None
    psnr_db: float | None = None
    max_abs: float | None = None
    exact: bool = False
    finite: bool = True


class Threshold(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison must reach."""

    metric: Metric
    minimum_db: float


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison is about; the words that its record and its sentence share."""

    engine: str
    precision: str
    quantity: str
    tensor: str
    case: int
    prompt: str
    seed: int

    def __str__(self) -> str:
        name = self.quantity if self.tensor == self.quantity else f"{self.quantity} ({self.tensor})"
        return f"{self.engine} {self.precision} {name}, case {self.case}"


def measure(reference: Array, actual: Array) -> Measure:
    """Measure a tensor against its reference, in double precision.

    Identical tensors give null decibels and ``exact``; a tensor that is not finite gives nulls throughout; so
    does the signal-to-noise ratio of a reference that is all zero, which has no power to compare with.

    Raises:
        ParityError: when the shapes differ, or there is nothing to compare.
    """
    if reference.shape != actual.shape or reference.size == 0:
        raise ParityError(f"wanted a tensor of shape {reference.shape}, got {actual.shape}; export it again")
    wanted, got = reference.astype(np.float64), actual.astype(np.float64)
    if not (np.isfinite(got).all() and np.isfinite(wanted).all()):
        return Measure(finite=False)
    error = got - wanted
    worst = float(np.abs(error).max())
    if worst == 0.0:
        return Measure(max_abs=0.0, exact=True)
    noise, power = max(float(np.mean(error**2)), 1e-300), float(np.mean(wanted**2))
    snr = decibel(power / noise) if power > 0.0 else None
    return Measure(snr_db=snr, psnr_db=decibel(1.0 / noise), max_abs=worst)


def judge(subject: Subject, threshold: Threshold, reference: Array, actual: Array) -> ParityRecord:
    """Compare a tensor with its reference and hold the result to a threshold."""
    try:
        found = measure(reference, actual)
    except ParityError as error:
        return _record(subject, threshold, Measure(), "fail", str(error))
    if not found.finite:
        bad = int(np.size(actual) - np.isfinite(actual).sum())
        words = f"{bad} of {actual.size} values are NaN or infinite" if bad else "the reference is not finite"
        return _record(subject, threshold, found, "fail", words)
    if found.exact:
        return _record(subject, threshold, found, "pass", "equal to the reference in every value")
    value = found.psnr_db if threshold.metric == "psnr_db" else found.snr_db
    if value is None:
        return _record(subject, threshold, found, "fail", "the reference is all zero and the result is not")
    good = value >= threshold.minimum_db
    words = (
        f"{_METRICS[threshold.metric]} {value:.1f} dB, {'at least' if good else 'below the required'} "
        f"{threshold.minimum_db:.1f} dB (largest error {found.max_abs:.2g})"
    )
    if not good and subject.tensor == "image" and (hint := diagnose(reference, actual)):
        words += f"; {hint}"
    return _record(subject, threshold, found, "pass" if good else "fail", words)


_METRICS = {"snr_db": "SNR", "psnr_db": "PSNR"}


def _record(
    subject: Subject, threshold: Threshold, found: Measure, verdict: Verdict, words: str
) -> ParityRecord:
    image = subject.tensor == "image"
    return ParityRecord(
        **msgspec.structs.asdict(subject),
        snr_db=found.snr_db,
        psnr_db=found.psnr_db if image else None,
        max_abs=found.max_abs,
        exact=found.exact,
        finite=found.finite,
        metric=threshold.metric,
        threshold_db=threshold.minimum_db,
        verdict=verdict,
        sentence=f"{subject}: {words}",
    )


def diagnose(reference: Array, actual: Array) -> str | None:
    """Say which well-known mistake turns the reference (1, 3, h, w) into the actual picture, if any does."""
    suspects = {
        f"the channels come in the order {''.join('RGB'[i] for i in order)}": reference[:, list(order)]
        for order in itertools.permutations(range(3))
        if order != (0, 1, 2)
    }
    suspects |= {
        "the picture is in [-1, 1] instead of [0, 1]": reference * 2.0 - 1.0,
        "the picture is in [0, 255] instead of [0, 1]": reference * 255.0,
        "the picture is inverted": 1.0 - reference,
        "the picture is mirrored left to right": reference[..., ::-1],
        "the picture is upside down": reference[..., ::-1, :],
        "rows and columns are exchanged": np.swapaxes(reference, -1, -2),
    }
    if float(np.ptp(actual)) < 1e-3:
        return "the picture has one colour"
    same = {name: _closeness(picture, actual) for name, picture in suspects.items()}
    best = max(same, key=lambda name: same[name])
    return best if same[best] > max(25.0, _closeness(reference, actual) + 10.0) else None


def _closeness(reference: Array, actual: Array) -> float:
    if reference.shape != actual.shape:
        return -np.inf
    found = measure(reference, actual)
    return np.inf if found.exact else found.snr_db or -np.inf
