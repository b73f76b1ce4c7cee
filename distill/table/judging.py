"""Draw pictures of a checkpoint for the table's prompts, and judge them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashbulb.distill.metrics.stage import EvalConfig, open_prompts, save_grid
from flashbulb.distill.table.references import REFERENCES, seen
from flashbulb.distill.table.results import Drawn, Figures
from flashbulb.distill.table.rows import Draw

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from flashbulb.distill.checkpoint import Checkpoint
    from flashbulb.distill.metrics.evaluation import Examiner, Features, Floats

GRID = 24
SCORES = ("retrieval_at_1", "retrieval_at_10", "background", "sharpness")


def judge_draws(
    checkpoint: Checkpoint,
    draws: tuple[str, ...],
    seeds: tuple[int, ...],
    *,
    pictures: int,
    grid: Path,
    on_draw: Callable[[str, int], None] | None = None,
) -> tuple[Drawn, ...]:
    """Draw in each way with each seed, and judge; the first set's first pictures go into ``grid``."""
    from flashbulb.distill.metrics.evaluation import Examiner

    examiner, found = Examiner.open(EvalConfig()), list[Drawn]()
    for text in draws:
        for seed in seeds:
            if on_draw is not None:
                on_draw(text, seed)
            first = grid if not found else None
            if text in REFERENCES:
                plain = EvalConfig(pictures=pictures, seed=seed)
                made = reference_figures(checkpoint, text, plain, examiner, first)
            else:
                made = figures(checkpoint, _config(Draw.parse(text), pictures, seed), examiner, first)
            found.append(Drawn(draw=text, seed=seed, figures=made))
    return tuple(found)


def _config(draw: Draw, pictures: int, seed: int) -> EvalConfig:
    return EvalConfig(
        steps=draw.steps,
        sampler=draw.sampler,
        guidance=draw.guidance,
        timesteps=draw.spacing,
        pictures=pictures,
        seed=seed,
    )


def figures(checkpoint: Checkpoint, config: EvalConfig, examiner: Examiner, grid: Path | None) -> Figures:
    """Return the figures of pictures drawn as ``config`` says; the first of them go into ``grid``."""
    from flashbulb.distill.metrics.evaluation import evaluate

    def keep(pictures: torch.Tensor) -> None:
        if grid is not None and not shown:
            save_grid(pictures[:GRID], grid)
            shown.append(grid)

    shown: list[Path] = []
    found = evaluate(checkpoint, config, examiner, on_pictures=keep)
    return _figures(
        found.features["judge"][0],
        found.real["judge"],
        found.scores,
        diversity=float(found.repeated["diversity"].mean()),
    )


def reference_figures(
    checkpoint: Checkpoint, name: str, config: EvalConfig, examiner: Examiner, grid: Path | None
) -> Figures:
    """Return the figures of a reference's pictures; a caption has one of them, so they have no diversity."""
    from flashbulb.distill.metrics.evaluation import measure

    prompts = open_prompts(config, examiner.data, checkpoint.image_size)
    assert prompts.real is not None
    pictures, look = seen(name, prompts.real, checkpoint), examiner.networks["judge"]
    if grid is not None:
        save_grid(pictures[:GRID], grid)
    features = look(pictures)
    scores = measure(examiner, prompts, pictures, features)
    return _figures(features, look(prompts.real), scores, diversity=0.0)


def _figures(drawn: Features, real: Features, scores: dict[str, Floats], *, diversity: float) -> Figures:
    from flashbulb.distill.metrics.frechet import frechet_distance
    from flashbulb.distill.metrics.manifold import precision_recall

    precise, recalled = precision_recall(drawn, real)
    return Figures(
        frechet=frechet_distance(drawn, real),
        precision=float(precise.mean()),
        recall=float(recalled.mean()),
        diversity=diversity,
        **{name: float(scores[name].mean()) for name in SCORES},
    )
