"""Draw pictures of a checkpoint for the table's prompts, and judge them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashbulb.distill.metrics.stage import EvalConfig, choose_prompts, draw_pictures, save_grid
from flashbulb.distill.table.results import Drawn, Figures
from flashbulb.distill.table.rows import Draw

if TYPE_CHECKING:
    from collections.abc import Callable

    from flashbulb.distill.checkpoint import Checkpoint

PER_CAPTION, REPEATED = 4, 32
GRID = 24


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
    judged = Judging()
    found: list[Drawn] = []
    for text in draws:
        for seed in seeds:
            if on_draw is not None:
                on_draw(text, seed)
            config = _config(Draw.parse(text), pictures, seed)
            first = grid if not found else None
            found.append(Drawn(draw=text, seed=seed, figures=judged.figures(checkpoint, config, first)))
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


class Judging:
    """The judge and the data, loaded once."""

    def __init__(self) -> None:
        from flashbulb.distill.data.stickers import Stickers
        from flashbulb.distill.metrics.judge import Judge

        self.data = Stickers()
        self.judge = Judge(self.data)

    def figures(self, checkpoint: Checkpoint, config: EvalConfig, grid: Path | None) -> Figures:
        """Return the figures of pictures drawn as ``config`` says."""
        from flashbulb.distill.metrics.detail import diversity, sharpness
        from flashbulb.distill.metrics.frechet import frechet_distance
        from flashbulb.distill.metrics.manifold import precision_recall

        stickers, backgrounds = choose_prompts(self.data, config)
        captions = self.data.captions(stickers, backgrounds)
        pictures = draw_pictures(checkpoint, captions, config, seed=config.seed)
        if grid is not None:
            save_grid(pictures[:GRID], grid)
        repeated = [c for c in captions[:REPEATED] for _ in range(PER_CAPTION)]
        again = draw_pictures(checkpoint, repeated, config, seed=config.seed + 1)
        real = self.judge.raw_features(self.data.composite(stickers, backgrounds))
        drawn = self.judge.raw_features(pictures)
        precise, recalled = precision_recall(drawn, real)
        right = self.judge.alignment(pictures, [s.concept for s in stickers], backgrounds)
        return Figures(
            retrieval_at_1=right.retrieval_at_1,
            retrieval_at_10=right.retrieval_at_10,
            background=right.background,
            frechet=frechet_distance(drawn, real),
            precision=float(precise.mean()),
            recall=float(recalled.mean()),
            diversity=float(diversity(self.judge.raw_features(again), repeated).mean()),
            sharpness=float(sharpness(pictures).mean()),
        )
