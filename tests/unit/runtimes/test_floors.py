"""Floors of a picture's variance and sensitivity are held to what golden pictures and engines show."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.gates import engine_gates, sanity
from flashbulb.runtimes.records import SanityRecord
from flashbulb.runtimes.source_gates import floor_gate, rule_gates


def told(bundle: Bundle, world: SimpleNamespace, **floors: float) -> Bundle:
    return world.edit(bundle, lambda m: m["sanity"].update(floors))


def variance_floor(bundle: Bundle) -> SanityRecord:
    return next(r for r in rule_gates(bundle) if r.gate == "floors.variance")


def test_the_floor_of_the_variance_is_half_of_the_least_golden_one(
    bundle: Bundle, world: SimpleNamespace
) -> None:
    half = min(np.std(case["image"]) for case in bundle.golden()) / 2
    assert variance_floor(told(bundle, world, std_min=round(float(half), 6))).verdict == "pass"
    lowered = variance_floor(told(bundle, world, std_min=float(half) - 1e-5))
    assert lowered.verdict == "fail"
    assert f"the export's rule {half:.4g}" in lowered.sentence
    assert variance_floor(told(bundle, world, std_min=0.0)).verdict == "fail"


def floors_by(bundle: Bundle, world: SimpleNamespace, **fault: Any) -> SanityRecord | None:
    """Judge the floors by what one engine, that is not PyTorch, shows."""
    return floor_gate(engine_gates(bundle, world.Engine(fault=fault), 1))


def shown(bundle: Bundle, world: SimpleNamespace) -> dict[str, float]:
    records = [r for r in engine_gates(bundle, world.Engine(), 1) if isinstance(r, SanityRecord)]
    return {r.gate: r.value or 0.0 for r in records if "_sensitivity." in r.gate}


@pytest.mark.parametrize("kind", ["prompt", "noise"])
def test_an_engine_alone_shows_that_a_floor_of_sensitivity_was_lowered(
    bundle: Bundle, world: SimpleNamespace, kind: str
) -> None:
    values = shown(bundle, world)
    halves = {f"{k}_rms_min": values[f"{k}_sensitivity.pipeline"] / 2 for k in ("prompt", "noise")}
    sound = floors_by(told(bundle, world, **halves), world)
    assert sound is not None
    assert sound.verdict == "pass"
    lowered = floors_by(told(bundle, world, **{**halves, f"{kind}_rms_min": 0.0}), world)
    assert lowered is not None
    assert lowered.verdict == "fail"
    assert f"the floor of {kind}_sensitivity.pipeline is 0, far under half" in lowered.sentence


def test_an_engine_that_draws_other_pictures_proves_nothing_of_floors(
    bundle: Bundle, world: SimpleNamespace
) -> None:
    lowered = told(bundle, world, prompt_rms_min=0.0, noise_rms_min=0.0)
    noisy = np.random.default_rng(0)

    def other(*_: Any) -> np.ndarray:
        return noisy.random((1, 3, 16, 16)).astype(np.float32)

    assert floors_by(lowered, world, vae_decoder=other, generator=other) is None


def test_records_without_a_picture_say_nothing_of_floors() -> None:
    alone = sanity("prompt_sensitivity.pipeline", "ort", True, "", value=0.2, threshold=0.0)
    assert floor_gate([alone]) is None
