"""Figures and differences of made-up evaluations whose answers are known, and their way to disk and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flashbulb.distill.metrics.evaluation import Evaluation
from flashbulb.distill.metrics.figures import Figure, differences, estimates, figures
from flashbulb.distill.metrics.frechet import frechet_distance
from flashbulb.distill.metrics.gates import Gate
from flashbulb.distill.metrics.manifold import precision_recall

N, WIDTH = 80, 6


def made_up(quality: float, seed: int, seeds: int = 3, **more) -> Evaluation:
    """Pictures that are right with the chance ``quality`` and lie 1 - quality away from the real ones."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(0)
    real = shared.standard_normal((N, WIDTH)).astype(np.float32)
    hard = shared.random(N)
    right = rng.random((seeds, N)) < quality * (0.5 + hard)
    drawn = real + (1 - quality) + 0.3 * rng.standard_normal((seeds, N, WIDTH))
    return Evaluation(
        captions=tuple(f"prompt {i}" for i in range(N)),
        seeds=tuple(range(seeds)),
        scores={"retrieval_at_1": right.astype(float)},
        repeated={"diversity": rng.random((seeds, 16))},
        features={"judge": drawn.astype(np.float32)},
        real={"judge": real},
        floor={"judge": shared.standard_normal((N, WIDTH)).astype(np.float32)},
        real_scores={"retrieval_at_1": 0.9},
        **({"paired": True} | more),
    )


def test_figures_are_means_over_seeds_with_spread_and_floor():
    e = made_up(0.6, 1)
    found = figures(e, resamples=200)
    assert list(found) == ["retrieval_at_1", "frechet", "precision", "recall", "diversity"]
    per_seed = e.scores["retrieval_at_1"].mean(1)
    assert found["retrieval_at_1"].value == pytest.approx(per_seed.mean())
    assert found["retrieval_at_1"].spread == pytest.approx(per_seed.std(ddof=1))
    assert found["retrieval_at_1"].real == 0.9
    distances = [frechet_distance(d, e.real["judge"]) for d in e.features["judge"]]
    assert found["frechet"].value == pytest.approx(np.mean(distances))
    assert found["frechet"].real == pytest.approx(frechet_distance(e.floor["judge"], e.real["judge"]))
    recalled = [precision_recall(d, e.real["judge"])[1].mean() for d in e.features["judge"]]
    assert found["recall"].value == pytest.approx(np.mean(recalled))
    assert found["diversity"].real is None
    assert all(f.low <= f.value <= f.high for f in found.values())
    assert figures(e, resamples=200) == found


def test_the_interval_of_a_distance_is_as_wide_as_the_chance_of_prompts():
    """Its half-width is twice the standard deviation over fresh worlds, within a factor of two."""
    found = figures(made_up(0.5, 2, seeds=1), resamples=300)["frechet"]
    worlds = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        real = rng.standard_normal((N, WIDTH))
        worlds.append(frechet_distance(real + 0.5 + 0.3 * rng.standard_normal((N, WIDTH)), real))
    assert 0.5 < (found.high - found.low) / (4 * np.std(worlds)) < 2


def test_a_better_checkpoint_differs_and_an_equal_one_does_not():
    good, again, bad = made_up(0.7, 3), made_up(0.7, 4), made_up(0.4, 5)
    found = differences(good, bad, resamples=300)
    assert found["retrieval_at_1"].value > 0
    assert found["frechet"].value < 0
    assert found["retrieval_at_1"].excludes_zero
    assert found["frechet"].excludes_zero
    equal = differences(good, again, resamples=300)
    assert not equal["frechet"].excludes_zero
    assert not equal["retrieval_at_1"].excludes_zero
    assert all(d.value == d.low == d.high == 0 for d in differences(good, good, resamples=50).values())


def test_other_prompts_or_other_real_pictures_are_refused():
    e = made_up(0.5, 6)
    other = made_up(0.5, 6)
    other.real["judge"] = other.real["judge"] + 1
    with pytest.raises(ValueError, match="same real pictures"):
        differences(e, other)
    renamed = Evaluation(captions=("a",) * N, seeds=(0,), scores={})
    with pytest.raises(ValueError, match="same prompts"):
        differences(e, renamed)


def test_unpaired_real_pictures_may_be_more_or_fewer():
    e = made_up(0.1, 7, paired=False)
    e.real["judge"] = e.real["judge"][:30]
    found = figures(e, resamples=50)
    assert found["recall"].low < found["recall"].high


def test_few_pictures_have_no_manifold_and_no_figure_of_it():
    e = made_up(0.5, 8)
    few = Evaluation(
        captions=e.captions[:3],
        seeds=e.seeds,
        scores={k: v[:, :3] for k, v in e.scores.items()},
        features={"judge": e.features["judge"][:, :3]},
        real={"judge": e.real["judge"][:3]},
        paired=True,
    )
    assert list(estimates(few)) == ["retrieval_at_1", "frechet"]


def test_it_survives_a_file(tmp_path: Path):
    e = made_up(0.5, 9)
    e.save(tmp_path / "eval.npz")
    again = Evaluation.load(tmp_path / "eval.npz")
    assert figures(again, resamples=50) == figures(e, resamples=50)
    assert (again.captions, again.seeds, again.paired) == (e.captions, e.seeds, True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["eval.npz"]
    with pytest.raises(ValueError, match="folder of an earlier eval"):
        Evaluation.load(tmp_path / "nothing" / "eval.npz")


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("frechet<=4", None),
        ("frechet >= 3.5", None),
        ("frechet<=3.9", "wanted frechet <= 3.9, got 4"),
        ("broken<=4", "wanted broken <= 4, got nan"),
        ("broken>=4", "wanted broken >= 4, got nan"),
    ],
)
def test_conditions_hold_or_say_what_is_wrong(text: str, failure: str | None):
    found = {k: Figure(value=v, low=v, high=v) for k, v in (("frechet", 4.0), ("broken", float("nan")))}
    assert Gate.parse(text).failure(found) == failure


@pytest.mark.parametrize("text", ["frechet", "frechet<4", "frechet<=", "frechet<=1e", "<=4"])
def test_what_is_no_condition_is_refused(text: str):
    with pytest.raises(ValueError, match=r"such as frechet<=450, got '"):
        Gate.parse(text)


def test_a_condition_on_what_was_not_measured_is_refused():
    with pytest.raises(ValueError, match="one of frechet, got one on 'fid'"):
        Gate.parse("fid<=1").failure({"frechet": Figure(value=1, low=1, high=1)})
