"""``flashbulb eval``: how good a checkpoint's pictures are, beside real pictures' own figures."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import msgspec

from flashbulb.distill.metrics.bootstrap import Interval
from flashbulb.distill.metrics.figures import Figure
from flashbulb.distill.metrics.gates import Gate
from flashbulb.distill.metrics.inception import to_bytes
from flashbulb.distill.metrics.pictures import save_pictures
from flashbulb.distill.samplers import SamplerName
from flashbulb.distill.timesteps import TimestepName

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

    from flashbulb.distill.checkpoint import Checkpoint
    from flashbulb.distill.data.stickers import Sticker, Stickers
    from flashbulb.distill.metrics.evaluation import Evaluation, Examiner, Reference
    from flashbulb.distill.metrics.prompts import Prompts

MEASUREMENTS = "eval.npz"
DRAWN_TOGETHER = 32


class EvalConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Judge a checkpoint: of the sticker world, or with ``prompts`` of any other."""

    checkpoint: str = "embedded:student"
    """Diffusers folder, Hub id, embedded:teacher or embedded:student."""
    split: Literal["train", "combination"] = "train"
    """Prompts: training captions, or held-out style x concept combinations."""
    pictures: Annotated[int, msgspec.Meta(ge=2)] = 148
    """Pictures to draw, one a prompt; a file of prompts is read from its start and may hold fewer."""
    steps: Annotated[int, msgspec.Meta(gt=0)] = 1
    """Sampling steps."""
    sampler: SamplerName = "ddim"
    """How the steps are made."""
    timesteps: TimestepName = "trailing"
    """Where they are: even from the last one, the first turbo demo's early four, or even in flow time."""
    guidance: Annotated[float, msgspec.Meta(ge=1)] = 1.0
    """Classifier-free guidance scale; one-step students use 1."""
    seed: int = 0
    """Seed of prompts, noise and resampling."""
    seeds: Annotated[int, msgspec.Meta(gt=0)] = 1
    """Sets of pictures of the same prompts, each of its own noise: figures are means, with their spread."""
    resamples: Annotated[int, msgspec.Meta(ge=20)] = 1000
    """Bootstrap resamples of the prompts behind each interval."""
    per_caption: Annotated[int, msgspec.Meta(ge=2)] = 4
    """Pictures of each of 32 captions drawn for the diversity figure."""
    prompts: str = ""
    """File of captions, one a line, or ``.jsonl`` with ``text`` and ``file_name`` of a real picture."""
    real: str = ""
    """Folder of real pictures to compare with, instead of those that belong to the prompts."""
    inception: str = ""
    """File with FID's Inception weights (pt_inception-2015-12-05): adds FID proper."""
    device: str = ""
    """Where networks draw and look: cpu, cuda or cuda:N; default: cuda where there is one, else cpu."""
    clip: str = ""
    """Folder or Hub id of a CLIP: adds the CLIP score."""
    against: str = ""
    """Folder of an earlier eval on the same prompts: adds the differences from it."""
    require: tuple[str, ...] = ()
    """Conditions on figures, such as ``retrieval_at_1>=0.6`` or ``frechet<=450``; a broken one fails."""
    out: str = "runs/eval"
    """Folder for ``eval.json``, measurements, a grid, and ``pictures/`` for `vote`."""


class EvalRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one checkpoint on one set of prompts."""

    checkpoint: str
    sha256: str
    split: str
    """Split of the stickers, or the file of the prompts."""
    prompts_sha256: str
    pictures: int
    """Pictures of each seed."""
    real_pictures: int
    seeds: tuple[int, ...]
    steps: int
    sampler: str
    timesteps: str
    guidance: float
    resamples: int
    figures: dict[str, Figure]
    against: str = ""
    """What the differences are from."""
    differences: dict[str, Interval] = {}
    """Figures minus those of ``against``, resampled in pairs."""
    notes: tuple[str, ...] = ()
    """What was not measured, and why."""
    require: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    """Conditions of ``require`` that do not hold."""


def run(config: EvalConfig) -> EvalRecord:
    """Draw, judge, write ``eval.json``, ``eval.npz`` and ``grid.png`` into ``config.out``; return the record.

    Raises:
        CheckpointError: for a checkpoint that cannot be opened.
        ValueError: for prompts, pictures or weights that cannot be read, an ``against`` of other prompts, or
            a condition in ``require`` that is none or on a figure that was not measured.
    """
    return run_all([config])[0]


def run_all(configs: list[EvalConfig]) -> list[EvalRecord]:
    """Do what :func:`run` does for several checkpoints, with the networks that the first one asks for."""
    from flashbulb.distill.checkpoint import Checkpoint
    from flashbulb.distill.metrics.evaluation import Evaluation, Examiner

    for text in (text for config in configs for text in config.require):
        Gate.parse(text)  # before hours of drawing
    against = {c.against: Evaluation.load(Path(c.against) / MEASUREMENTS) for c in configs if c.against}
    checkpoints, examiner = [Checkpoint.open(c.checkpoint) for c in configs], Examiner.open(configs[0])
    references: dict[tuple[Any, ...], Reference] = {}
    return [
        _run(config, checkpoint, examiner, references, against.get(config.against))
        for config, checkpoint in zip(configs, checkpoints, strict=True)
    ]


def _run(
    config: EvalConfig,
    checkpoint: Checkpoint,
    examiner: Examiner,
    references: dict[tuple[Any, ...], Reference],
    against: Evaluation | None,
) -> EvalRecord:
    import torch

    from flashbulb.distill.metrics.evaluation import Reference, evaluate

    pictures: list[torch.Tensor] = []
    out = Path(config.out)

    def keep(part: torch.Tensor) -> None:  # of the first seed alone, and small: as they are saved
        if sum(map(len, pictures)) < len(prompts.captions):
            pictures.append(to_bytes(part))

    size = checkpoint.image_size
    key = (config.prompts, config.real, config.split, config.pictures, config.seed, size)
    if key not in references:
        references[key] = Reference.of(open_prompts(config, examiner.data, size), examiner)
    prompts = references[key].prompts
    if against is not None and against.captions != prompts.captions:
        raise ValueError(f"wanted an eval of the same prompts in {config.against}, got one of others")
    evaluation = evaluate(
        checkpoint,
        config,
        examiner,
        reference=references[key],
        on_pictures=keep,
    )
    record = describe(config, checkpoint, prompts, evaluation, against)
    out.mkdir(parents=True, exist_ok=True)
    evaluation.save(out / MEASUREMENTS)
    (out / "eval.json").write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    first = torch.cat(pictures)
    save_grid(first[:96], out / "grid.png")
    (out / "grid.txt").write_text("\n".join(prompts.captions[:96]) + "\n")
    save_pictures(first, list(prompts.captions), out / "pictures")
    return record


def describe(
    config: EvalConfig,
    checkpoint: Checkpoint,
    prompts: Prompts,
    evaluation: Evaluation,
    against: Evaluation | None = None,
) -> EvalRecord:
    """Compute the figures of an evaluation, and its differences from another."""
    from flashbulb.distill.metrics.figures import differences, figures

    chance = {"resamples": config.resamples, "seed": config.seed}
    found = figures(evaluation, **chance)
    failures = [Gate.parse(text).failure(found) for text in config.require]
    return EvalRecord(
        checkpoint=config.checkpoint,
        sha256=checkpoint.sha256(),
        split=config.prompts or config.split,
        prompts_sha256=prompts.sha256(),
        pictures=len(evaluation.captions),
        real_pictures=0 if prompts.real is None else len(prompts.real),
        seeds=evaluation.seeds,
        steps=config.steps,
        sampler=config.sampler,
        timesteps=config.timesteps,
        guidance=config.guidance,
        resamples=config.resamples,
        figures=found,
        against=config.against,
        differences={} if against is None else differences(evaluation, against, **chance),
        notes=_notes(config, prompts),
        require=config.require,
        failures=tuple(filter(None, failures)),
    )


def _notes(config: EvalConfig, prompts: Prompts) -> tuple[str, ...]:
    """Say what was not measured."""
    missing = {
        "retrieval, style and background: only in the sticker world": not config.prompts,
        "clip_score: no --clip": bool(config.clip),
        "fid: no --inception": bool(config.inception),
        "frechet, precision and recall: no real pictures (--real)": prompts.real is not None,
        "what two sets of real pictures reach: too few of them": prompts.real is None
        or prompts.floor is not None,
    }
    return tuple(note for note, measured in missing.items() if not measured)


def open_prompts(config: EvalConfig, data: Stickers | None, size: int) -> Prompts:
    """Return what ``config`` asks for: of a file, or of the stickers; ``real`` replaces the real pictures.

    Raises:
        ValueError: for files that cannot be read.
    """
    from flashbulb.distill.metrics.prompts import embedded_prompts, read_prompts, read_real

    if config.prompts:
        found = read_prompts(Path(config.prompts), count=config.pictures, size=size)
    else:
        assert data is not None
        found = embedded_prompts(data, *choose_prompts(data, config), config.seed)
    if not config.real:
        return found
    count = len(found.captions)
    real, floor = read_real(Path(config.real), count=count, size=size, seed=config.seed)
    return dataclasses.replace(found, real=real, floor=floor, paired=False)


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
    """Draw one picture a caption, as ``config`` says: (n, 3, h, w) in [-1, 1], clamped, on the CPU."""
    import torch

    return torch.cat(list(drawn(checkpoint, captions, config, seed=seed)))


def drawn(
    checkpoint: Checkpoint, captions: list[str], config: EvalConfig, *, seed: int
) -> Iterator[torch.Tensor]:
    """Yield what :func:`draw_pictures` returns, 32 pictures at a time, so that not all need be kept."""
    import torch

    from flashbulb.distill.denoiser import Denoiser, Schedule
    from flashbulb.distill.metrics.evaluation import chosen_device
    from flashbulb.distill.samplers import SAMPLERS
    from flashbulb.distill.text import null_states, text_function, token_ids
    from flashbulb.distill.timesteps import choose_timesteps

    device = chosen_device(config.device)
    schedule = Schedule(checkpoint.config("scheduler"), device)
    denoiser, vae = Denoiser(checkpoint.load("unet").to(device), schedule), checkpoint.load("vae").to(device)
    encode, scale = text_function(checkpoint, device), checkpoint.config("vae").get("scaling_factor") or 1.0
    null, decode = null_states(checkpoint, encode), cast("AutoencoderKL", vae).decode
    generator = torch.Generator().manual_seed(seed)
    sample = SAMPLERS[config.sampler]
    timesteps = choose_timesteps(config.timesteps, config.steps, denoiser.schedule)
    for i in range(0, len(captions), DRAWN_TOGETHER):
        states = encode(token_ids(checkpoint, captions[i : i + DRAWN_TOGETHER]))[0]
        noise = torch.randn((len(states), *checkpoint.latent_shape), generator=generator)
        with torch.inference_mode():
            x0 = sample(
                denoiser,
                noise.to(device),
                states,
                timesteps,
                guidance=config.guidance,
                null_states=null,
                generator=generator,
            )
            pictures: torch.Tensor = decode(x0 / scale).sample.clamp(-1, 1)
        yield pictures.cpu()


def save_grid(pictures: torch.Tensor, file: Path, *, columns: int = 12) -> None:
    """Save pictures (n, 3, h, w), in [-1, 1] or bytes, as one PNG."""
    import torch
    from PIL import Image

    missing = -len(pictures) % columns
    white = torch.full((missing, *pictures.shape[1:]), 255, dtype=torch.uint8)
    rows = [torch.cat(list(row), 2) for row in torch.cat([to_bytes(pictures), white]).split(columns)]
    grid = torch.cat(rows, 1).permute(1, 2, 0).numpy()
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid).save(file)
