"""Draw pictures of a checkpoint for the table's prompts, and judge them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashbulb.distill.metrics.stage import EvalConfig, save_grid
from flashbulb.distill.table.results import Drawn, Figures
from flashbulb.distill.table.rows import Draw

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from flashbulb.distill.checkpoint import Checkpoint
    from flashbulb.distill.metrics.evaluation import Examiner

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
            config = _config(Draw.parse(text), pictures, seed)
            first = grid if not found else None
            found.append(Drawn(draw=text, seed=seed, figures=figures(checkpoint, config, examiner, first)))
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
    from flashbulb.distill.metrics.frechet import frechet_distance
    from flashbulb.distill.metrics.manifold import precision_recall

    def keep(pictures: torch.Tensor) -> None:
        if grid is not None:
            save_grid(pictures[:GRID], grid)

    found = evaluate(checkpoint, config, examiner, on_pictures=keep)
    drawn, real = found.features["judge"][0], found.real["judge"]
    precise, recalled = precision_recall(drawn, real)
    named = {name: float(found.scores[name].mean()) for name in SCORES}
    return Figures(
        frechet=frechet_distance(drawn, real),
        precision=float(precise.mean()),
        recall=float(recalled.mean()),
        diversity=float(found.repeated["diversity"].mean()),
        **named,
    )
