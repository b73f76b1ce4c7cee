"""``flashbulb eval``: how good a checkpoint's pictures are, beside real pictures' own figures."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from flashbulb.distill.metrics.pictures import save_pictures
from flashbulb.distill.samplers import SamplerName
from flashbulb.distill.timesteps import TimestepName

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.checkpoint import Checkpoint
    from flashbulb.distill.data.stickers import Sticker, Stickers
    from flashbulb.distill.metrics.judge import Judge


class EvalConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Judge a checkpoint of the sticker world."""

    checkpoint: str = "embedded:student"
    """Diffusers folder, Hub id, embedded:teacher or embedded:student."""
    split: Literal["train", "combination"] = "train"
    """Prompts: training captions, or held-out style x concept combinations."""
    pictures: Annotated[int, msgspec.Meta(ge=2)] = 148
    """Pictures to draw (at most the split's number of iconic stickers for combinations)."""
    steps: Annotated[int, msgspec.Meta(gt=0)] = 1
    """Sampling steps."""
    sampler: SamplerName = "ddim"
    """How the steps are made."""
    timesteps: TimestepName = "trailing"
    """Where they are: even from the last one, the first turbo demo's early four, or even in flow time."""
    guidance: Annotated[float, msgspec.Meta(ge=1)] = 1.0
    """Classifier-free guidance scale; one-step students use 1."""
    seed: int = 0
    """Seed of prompts and noise."""
    per_caption: Annotated[int, msgspec.Meta(ge=2)] = 4
    """Pictures of each of 32 captions drawn for the diversity figure."""
    out: str = "runs/eval"
    """Folder for ``eval.json``, the picture grid, and ``pictures/`` one by one for flashbulb vote."""


class EvalRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one checkpoint on one set of prompts; ``real_*`` are real pictures' own."""

    checkpoint: str
    sha256: str
    split: str
    steps: int
    sampler: str
    timesteps: str
    guidance: float
    pictures: int
    seed: int
    retrieval_at_1: float
    retrieval_at_10: float
    background: float
    frechet: float
    diversity: float
    sharpness: float
    real_retrieval_at_1: float
    real_retrieval_at_10: float
    real_background: float
    real_frechet_floor: float
    real_sharpness: float


def run(config: EvalConfig) -> EvalRecord:
    """Draw, judge, write ``eval.json`` and ``grid.png`` into ``config.out``, and return the record."""
    return run_all([config])[0]


def run_all(configs: list[EvalConfig]) -> list[EvalRecord]:
    """Do what :func:`run` does for several checkpoints, with one judge."""
    from flashbulb.distill.checkpoint import Checkpoint
    from flashbulb.distill.data.stickers import Stickers
    from flashbulb.distill.metrics.judge import Judge

    checkpoints, data = [Checkpoint.open(c.checkpoint) for c in configs], Stickers()
    judge = Judge(data)
    return [_run(config, c, judge, data) for config, c in zip(configs, checkpoints, strict=True)]


def _run(config: EvalConfig, checkpoint: Checkpoint, judge: Judge, data: Stickers) -> EvalRecord:
    out = Path(config.out)
    stickers, backgrounds = choose_prompts(data, config)
    captions = data.captions(stickers, backgrounds)
    pictures = draw_pictures(checkpoint, captions, config, seed=config.seed)
    record = _record(config, checkpoint, judge, data, pictures, stickers, backgrounds)
    out.mkdir(parents=True, exist_ok=True)
    (out / "eval.json").write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    save_grid(pictures[:96], out / "grid.png")
    (out / "grid.txt").write_text("\n".join(captions[:96]) + "\n")
    save_pictures(pictures, captions, out / "pictures")
    return record


def choose_prompts(data: Stickers, config: EvalConfig) -> tuple[list[Sticker], list[str]]:
    """Choose stickers of iconic concepts, each once before any twice, and a background for each."""
    from flashbulb.distill.data.words import BACKGROUNDS

    rng = random.Random(config.seed)
    pool = data.select(config.split, iconic=True)
    rng.shuffle(pool)
    stickers = [pool[i % len(pool)] for i in range(config.pictures)]
    return stickers, rng.choices(list(BACKGROUNDS), k=len(stickers))


def draw_pictures(
    checkpoint: Checkpoint, captions: list[str], config: EvalConfig, *, seed: int
) -> torch.Tensor:
    """Draw one picture a caption, as ``config`` says: (n, 3, h, w) in [-1, 1], clamped."""
    import torch

    from flashbulb.distill.denoiser import Denoiser, Schedule
    from flashbulb.distill.samplers import SAMPLERS
    from flashbulb.distill.text import null_states, text_function, token_ids
    from flashbulb.distill.timesteps import choose_timesteps

    denoiser = Denoiser(checkpoint.load("unet"), Schedule(checkpoint.config("scheduler")))
    vae: Any = checkpoint.load("vae")
    encode, scale = text_function(checkpoint), checkpoint.config("vae").get("scaling_factor") or 1.0
    null, pictures = null_states(checkpoint, encode), []
    generator = torch.Generator().manual_seed(seed)
    sample = SAMPLERS[config.sampler]
    timesteps = choose_timesteps(config.timesteps, config.steps, denoiser.schedule)
    for i in range(0, len(captions), 32):
        states = encode(token_ids(checkpoint, captions[i : i + 32]))[0]
        noise = torch.randn((len(states), *checkpoint.latent_shape), generator=generator)
        with torch.inference_mode():
            x0 = sample(
                denoiser,
                noise,
                states,
                timesteps,
                guidance=config.guidance,
                null_states=null,
                generator=generator,
            )
            pictures.append(vae.decode(x0 / scale).sample.clamp(-1, 1))
    return torch.cat(pictures)


def _record(
    config: EvalConfig,
    checkpoint: Checkpoint,
    judge: Judge,
    data: Stickers,
    pictures: torch.Tensor,
    stickers: list[Sticker],
    backgrounds: list[str],
) -> EvalRecord:
    from flashbulb.distill.metrics.detail import diversity, sharpness
    from flashbulb.distill.metrics.frechet import frechet_distance

    real = data.composite(stickers, backgrounds)
    features, real_features = judge.raw_features(pictures), judge.raw_features(real)
    found = judge.alignment(pictures, [s.concept for s in stickers], backgrounds)
    ceiling = judge.ceiling(data, stickers, backgrounds)
    repeated = [c for c in data.captions(stickers, backgrounds)[:32] for _ in range(config.per_caption)]
    again = draw_pictures(checkpoint, repeated, config, seed=config.seed + 1)
    half = len(real_features) // 2
    return EvalRecord(
        checkpoint=config.checkpoint,
        sha256=checkpoint.sha256(),
        split=config.split,
        steps=config.steps,
        sampler=config.sampler,
        timesteps=config.timesteps,
        guidance=config.guidance,
        pictures=len(pictures),
        seed=config.seed,
        retrieval_at_1=found.retrieval_at_1,
        retrieval_at_10=found.retrieval_at_10,
        background=found.background,
        frechet=frechet_distance(features, real_features),
        diversity=float(diversity(judge.raw_features(again), repeated).mean()),
        sharpness=float(sharpness(pictures).mean()),
        real_retrieval_at_1=ceiling.retrieval_at_1,
        real_retrieval_at_10=ceiling.retrieval_at_10,
        real_background=ceiling.background,
        real_frechet_floor=frechet_distance(real_features[:half], real_features[half:]),
        real_sharpness=float(sharpness(real).mean()),
    )


def save_grid(pictures: torch.Tensor, file: Path, *, columns: int = 12) -> None:
    """Save pictures (n, 3, h, w) in [-1, 1] as one PNG."""
    import torch
    from PIL import Image

    missing = -len(pictures) % columns
    padded = torch.cat([pictures, torch.ones(missing, *pictures.shape[1:])])
    rows = [torch.cat(list(row), 2) for row in padded.split(columns)]
    grid = ((torch.cat(rows, 1) + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid).save(file)
