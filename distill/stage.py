"""``flashbulb distill``: teacher checkpoint in, one-step student checkpoint out."""

from __future__ import annotations

import hashlib
import logging
import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import msgspec
from msgspec.structs import replace

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.data.base import DataOptions
from flashbulb.distill.likeness import must_read_alike
from flashbulb.distill.lineage import EVALUATIONS
from flashbulb.distill.loop import LoopConfig, OnStep, Rank, State, StepRng, run_loop
from flashbulb.distill.objectives import AnyObjective
from flashbulb.distill.objectives.add import Add
from flashbulb.distill.objectives.base import Batch, Pairs, PairSpec, World, overflows_fp16
from flashbulb.distill.precision import autocast, computing_in, resolved
from flashbulb.distill.schedule import ending_at
from flashbulb.distill.sharding import plain_copy, shard
from flashbulb.distill.text import null_states, text_function, token_ids

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from flashbulb.distill.descent import Descent

log = logging.getLogger(__name__)


ONE_STEP_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
    "clip_sample": False,
}
"""What makes any diffusers pipeline start a student at its last timestep and return its x0 after one step."""


class DistillConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Distil a one-step student from a teacher checkpoint."""

    teacher: str = "embedded:teacher"
    """Teacher: diffusers folder, Hub id or embedded:teacher."""
    student: str = ""
    """Checkpoint whose UNet the student starts from; default: the teacher's. It may be smaller than that and
    predict something else, but must read the same latents and text; ``progressive`` and ``guided-2`` of more
    than one round want the teacher's own form."""
    data: str = "embedded"
    """Captioned pictures: 'embedded', a folder of them, shards.tar, tables.parquet or hub:owner/name."""
    data_options: DataOptions = DataOptions()
    """How pictures of your own are found and prepared."""
    image_size: Annotated[int, msgspec.Meta(gt=0)] | None = None
    """Pixels of the pictures, and of what the student draws; default: as the teacher."""
    out: str = "runs/distill"
    """Run folder; the student is written to ``OUT/student``."""
    processes: Annotated[int, msgspec.Meta(gt=0)] = 2
    """Data-parallel processes on this machine."""
    objective: AnyObjective = Add()
    """What the student learns from."""
    loop: LoopConfig = LoopConfig(steps=300, batch=32, ema=0.99, warmup=20, decay=0.4)
    """Length and bookkeeping."""
    sample_every: Annotated[int, msgspec.Meta(ge=0)] = 100
    """Steps between two sample grids in ``OUT/samples``; 0 draws none."""


def run(config: DistillConfig, *, on_step: OnStep | None = None) -> Path:
    """Distil and return the student's folder; a killed run continues with identical numbers.

    Raises:
        CheckpointError: for a checkpoint that cannot be distilled.
        ValueError: for a batch that cannot be divided, data or critic features that are not there, or when
            ``out`` holds a run with another configuration.
    """
    from flashbulb.distill.distributed import launch

    config, out = _as_computed_here(config), Path(config.out)
    if Rank.current().index == 0:
        _check(config)
        _claim(out, config)
    launch(_worker, config.processes, config, on_step if config.processes == 1 else None)
    return out / "student"


def _check(config: DistillConfig) -> None:
    """Refuse what the workers would refuse, before anything is written."""
    from flashbulb.distill.data.captioned import check_source
    from flashbulb.distill.descent import part_of_batch
    from flashbulb.distill.distributed import planned

    opened = [Checkpoint.open(source) for source in (config.teacher, config.student) if source]
    must_read_alike(opened[0], opened[-1])
    part_of_batch(config.loop, planned(config.processes))
    check_source(config.data, config.data_options)
    config.objective.check()


def _as_computed_here(config: DistillConfig) -> DistillConfig:
    """Say in which numbers this machine computes: a resumed run must have the same, and the student tells."""
    import torch

    found = resolved(config.loop.precision, "cuda" if torch.cuda.is_available() else "cpu")
    return replace(config, loop=replace(config.loop, precision=found))


MAY_CHANGE = ("processes",)
LOOP_MAY_CHANGE = (
    "accumulate",
    "checkpointing",
    "decode_batch",
    "sharding",
    "save_every_s",
    "log_every",
    "tensorboard",
)
"""What a resumed run may have otherwise than the killed one: it ends with the same student."""


def _claim(out: Path, config: DistillConfig) -> None:
    """Write the configuration into the run folder, or check that the run there has the same one."""
    out.mkdir(parents=True, exist_ok=True)
    file, partial = out / "config.json", out / ".config.partial"
    if file.is_file():
        texts = file.read_bytes(), msgspec.json.encode(config)
        there, here = (_lasting(msgspec.json.decode(text)) for text in texts)
        if other := sorted(k for k in there.keys() | here.keys() if there.get(k) != here.get(k)):
            raise ValueError(
                f"{out} holds a run with another configuration: {', '.join(other)} differ; choose another "
                "--out, or delete the folder"
            )
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(config)))
    partial.replace(file)


def _lasting(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a resumed run must share, those of the loop by their dotted names."""
    loop = {f"loop.{k}": v for k, v in config["loop"].items() if k not in LOOP_MAY_CHANGE}
    return {k: v for k, v in config.items() if k not in (*MAY_CHANGE, "loop")} | loop


def _worker(config: DistillConfig, on_step: OnStep | None) -> None:
    with computing_in(config.loop.precision):  # the teacher's pictures and the sample grids too
        _train(config, on_step)


def _train(config: DistillConfig, on_step: OnStep | None) -> None:
    import torch

    from flashbulb.distill.descent import Descent

    descend = Descent(config.loop)
    torch.manual_seed(config.loop.seed)
    rank, out = Rank.current(), Path(config.out)
    parent = Checkpoint.open(config.teacher).sized(config.image_size)
    world = make_world(config, parent, rank, descend)
    learner = config.objective.learner(world, batch=descend.batch, steps=config.loop.steps)
    if config.loop.sharding == "fsdp":
        shard(world.student.unet, learner.optimizers.values())
    state = State(learner.modules, learner.optimizers, averaged=("student",))
    count_evaluations(world.teacher.unet, state, rank.count)

    first = rank.index == 0

    def step_done(step: int, steps: int, stats: dict[str, float]) -> None:
        due = config.sample_every and (step % config.sample_every == 0 or step == steps)
        if due and (first or config.loop.sharding == "fsdp"):  # a dealt-out student draws together
            _sample_grid(world, parent, out / "samples" / f"step-{step:06d}.png", write=first)
        if on_step is not None:
            on_step(step, steps, stats)

    run_loop(config.loop, state, learner.update, out, descend, on_step=step_done)
    state.use_ema()
    trained = plain_copy(world.student.unet)
    if first:
        plain: dict[str, Any] = msgspec.to_builtins(config)
        parent.derive(
            out / "student",
            stage="distill",
            config=plain,
            replace={"unet": trained},
            scheduler=student_scheduler(config, parent) | ONE_STEP_SCHEDULER,
            metrics={
                "steps": state.step,
                "skipped": state.skipped,
                EVALUATIONS: state.tally[EVALUATIONS]
                + (spec.evaluations if (spec := config.objective.wanted_pairs) else 0),
            },
        )


def count_evaluations(teacher: torch.nn.Module, state: State, processes: int) -> None:
    """Count the pictures that all processes' teachers look at, with and without the text each for itself."""

    def look(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        state.tally[EVALUATIONS] += processes * len(arguments[0])

    teacher.register_forward_pre_hook(look)


def make_world(config: DistillConfig, parent: Checkpoint, rank: Rank, descend: Descent) -> World:
    """Load the networks and prepare the data of a distillation."""
    from flashbulb.distill.data.captioned import open_source
    from flashbulb.distill.denoiser import Denoiser, Schedule, suit_attention

    device = descend.device
    teacher = Denoiser(parent.load("unet").to(device), Schedule(parent.config("scheduler"), device))
    start = Checkpoint.open(config.student) if config.student else parent
    unet = config.objective.prepare(start.load("unet"))
    if config.image_size is not None:
        cast("UNet2DConditionModel", unet).register_to_config(sample_size=parent.latent_shape[1])
    schedule = Schedule(student_scheduler(config, parent), device)
    student = Denoiser(unet.requires_grad_(True).to(device), schedule)
    for network in (teacher.unet, student.unet):
        suit_attention(cast("UNet2DConditionModel", network))
    if config.loop.checkpointing:
        cast("UNet2DConditionModel", student.unet).enable_gradient_checkpointing()
    vae = cast("AutoencoderKL", parent.load("vae").to(device))
    encode = text_function(parent, device)
    source = open_source(config.data, parent.image_size, config.data_options)
    null = null_states(parent, encode)
    unwanted = config.objective.negative_prompt
    negative_states = None if unwanted is None else encode(token_ids(parent, [unwanted]))[0]

    def real(count: int, rng: StepRng) -> Batch:
        pictures, captions = source.draw_each(rng.each(count))
        states, pooled = encode(token_ids(parent, captions))
        return Batch(latents=to_latents(vae, pictures.to(device)), states=states, pooled=pooled)

    pairs = None
    if (wanted := config.objective.wanted_pairs) is not None:
        pairs = make_pairs(config, wanted, parent, teacher, encode, source, null, rank)
    return World(
        student=student,
        teacher=teacher,
        vae=vae,
        null_states=null,
        negative_states=negative_states,
        real=real,
        pairs=pairs,
        descend=descend,
        decode_batch=config.loop.decode_batch,
    )


def student_scheduler(config: DistillConfig, parent: Checkpoint) -> dict[str, Any]:
    """Return the scheduler config of the student: that of its own checkpoint, up to its last timestep."""
    start = Checkpoint.open(config.student) if config.student else parent
    own = {"trained_betas": None} | start.config("scheduler")
    return ending_at(own, config.objective.last_timestep)


def to_latents(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Encode pictures (b, 3, h, w) in [-1, 1] into scaled latents, KL or Tiny autoencoder."""
    import torch

    with torch.no_grad(), autocast(pictures.device, wide=overflows_fp16(vae)):
        encoded = vae.encode(pictures)
    latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
    return (latents * vae.config["scaling_factor"]).float()


def make_pairs(
    config: DistillConfig,
    wanted: PairSpec,
    parent: Checkpoint,
    teacher: Any,
    encode: Any,
    source: Any,
    null: torch.Tensor,
    rank: Rank,
) -> Any:
    """Cache the teacher pictures that the objective wants; return the function that draws from them."""
    import torch

    from flashbulb.distill.pairs import CHUNK, cache_pairs, load_pairs

    key = f"{parent.sha256()}/{config.data}/{wanted.steps}/{wanted.guidance}/{parent.image_size}"
    if config.data_options != DataOptions():
        key += f"/{config.data_options.split}/{config.data_options.caption}"
    folder = Path(config.out).parent / f"pairs-{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    def prompts(chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = token_ids(parent, source.captions(CHUNK, random.Random(chunk)))
        return ids, encode(ids)[0]

    cache_pairs(
        folder,
        wanted.count,
        teacher=teacher,
        prompts=prompts,
        null_states=null,
        shape=parent.latent_shape,
        steps=wanted.steps,
        guidance=wanted.guidance,
        rank=(rank.index, rank.count),
        on_chunk=lambda done, total: log.info("teacher pictures: %d of %d chunks", done, total),
    )
    if rank.count > 1:
        torch.distributed.barrier()
    ids, noise, endpoint = load_pairs(folder, wanted.count)

    def draw(count: int, rng: StepRng) -> Pairs:
        rows, device = rng.integers(0, len(noise), count).cpu(), null.device
        return Pairs(
            noise=noise[rows].to(device), endpoint=endpoint[rows].to(device), states=encode(ids[rows])[0]
        )

    return draw


GRID_PROMPTS = (
    "a glossy red apple on a white background",
    "a noto penguin on a blue background",
    "a cartoon rocket on a purple background",
    "a flat hamburger on a yellow background",
    "a classic fox on a green background",
    "a blob tulip on a pink background",
    "a bold owl on an orange background",
    "a glossy soccer ball on a gray background",
)


def _sample_grid(world: World, parent: Checkpoint, file: Path, *, write: bool) -> None:
    """Save one-step pictures of the present student for eight prompts and two noises."""
    import torch
    from PIL import Image

    device = world.device
    states = text_function(parent, device)(token_ids(parent, list(GRID_PROMPTS)))[0].repeat(2, 1, 1)
    noise = torch.randn((len(states), *parent.latent_shape), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        last = torch.full((len(noise),), world.student.schedule.terminal, device=device)
        pictures = world.decode(world.student(noise.to(device), last, states)).clamp(-1, 1).cpu()
    if not write:
        return
    rows = [torch.cat(list(row), 2) for row in pictures.chunk(2)]
    grid = ((torch.cat(rows, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid).save(file)
