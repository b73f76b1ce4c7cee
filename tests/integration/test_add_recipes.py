"""ADD as recipes: the paper's values, and a run of each on random networks of the same architecture."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import transformers
from diffusers import DiffusionPipeline
from PIL import Image

from flashbulb.apps.cli import dispatch
from flashbulb.apps.cli.commands import find
from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.descent import part_of_batch
from flashbulb.distill.loop import LoopConfig
from flashbulb.distill.objectives.add import Add
from flashbulb.distill.stage import DistillConfig, run

LOOP = {"steps": 2, "batch": 2, "warmup": 1, "log_every": 1, "accumulate": 1}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four pictures with captions."""
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    rows = []
    for index in range(4):
        Image.fromarray(rng.integers(0, 255, (80, 70, 3), np.uint8)).save(folder / f"{index}.png")
        rows.append({"file_name": f"{index}.png", "text": f"a red apple number {index}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def dinov2(folder: Path, width: int) -> str:
    """Write a random DINOv2 of few and narrow layers."""
    torch.manual_seed(width)
    config = transformers.Dinov2Config(
        hidden_size=width,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        patch_size=14,
        image_size=224,
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    return str(folder)


def recipe(name: str) -> DistillConfig:
    command = find("distill")
    assert command is not None
    found = dispatch.configure(command, [name])
    assert isinstance(found, DistillConfig)
    return found


def at_home(config: DistillConfig, teacher: Path, pictures: Path, out: Path) -> DistillConfig:
    """Return the recipe with names of the tiny networks instead, and two steps; nothing else differs."""
    assert isinstance(config.objective, Add)
    names = {"features": dinov2(out / "s", 24), "image_features": dinov2(out / "l", 40)}
    critic = msgspec.structs.replace(config.objective.critic, **names)
    return msgspec.structs.replace(
        config,
        teacher=str(teacher), data=str(pictures), out=str(out / "run"), image_size=32, sample_every=2,
        objective=msgspec.structs.replace(config.objective, critic=critic),
        loop=msgspec.structs.replace(config.loop, **LOOP),
    )  # fmt: skip


def check_student(teacher: Path, student: Path) -> None:
    """The UNet was trained; diffusers opens the student and draws at the recipe's size in one step."""
    before, after = (Checkpoint.open(folder).load("unet").state_dict() for folder in (teacher, student))
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert Checkpoint.open(student).image_size == 32
    pipeline = DiffusionPipeline.from_pretrained(student)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("a red apple", num_inference_steps=1, guidance_scale=1.0, output_type="np").images
    assert drawn.shape == (1, 32, 32, 3)
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize("name", ["add-m", "add-xl"])
def test_the_recipes_hold_the_paper_s_values(name: str) -> None:
    config = recipe(name)
    objective = config.objective
    assert isinstance(objective, Add)
    assert config.image_size == 512
    assert (objective.distill, objective.r1, objective.weighting, objective.space) == (
        2.5,
        1e-5,
        "nfsd",
        "pixel",
    )
    assert (len(objective.timesteps), objective.last_timestep, objective.terminal_share) == (4, 999, 0.25)
    assert (objective.teacher_steps, objective.anchor, objective.mismatch, objective.warmup) == (1, 0, 0, 0)
    assert (objective.nfsd.scale, objective.nfsd.threshold) == (7.5, 200)
    for processes in (1, 2, 4, 8):  # as their comments say
        loop = msgspec.structs.replace(config.loop, accumulate=config.loop.accumulate // processes)
        assert part_of_batch(loop, processes) == (8 if name == "add-m" else 4)
    assert (config.loop.checkpointing, config.loop.decode_batch) == (True, 4)
    critic = objective.critic
    assert (critic.features, critic.image_features) == ("facebook/dinov2-small", "facebook/dinov2-large")
    assert (critic.condition, critic.heads, critic.reduction, critic.places) == ("both", "tokens", "sum", 0)
    assert (critic.r1, critic.input_size) == ("head", 224)


def test_knobs_of_a_recipe_are_flags() -> None:
    command = find("distill")
    assert command is not None
    words = "add-m --objective.weighting exp --objective.critic.augment color cutout --objective.nfsd.scale 5"
    more = "--objective.timesteps 99 399 --objective.conditioning-timestep 399 --image-size 256"
    config = dispatch.configure(command, [*words.split(), *more.split()])
    assert isinstance(config, DistillConfig)
    objective = config.objective
    assert isinstance(objective, Add)
    assert (objective.weighting, objective.nfsd.scale, objective.distill) == ("exp", 5.0, 2.5)
    assert (objective.timesteps, objective.last_timestep) == ((99, 399), 399)
    assert (objective.critic.augment, config.image_size) == (("color", "cutout"), 256)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["nfsd", "exp"])
def test_add_m_runs_on_a_tiny_stable_diffusion(
    tiny_sd: Path, pictures: Path, tmp_path: Path, weighting: str
) -> None:
    config = at_home(recipe("add-m"), tiny_sd, pictures, tmp_path)
    objective = msgspec.structs.replace(config.objective, weighting=weighting)
    student = run(msgspec.structs.replace(config, objective=objective))
    check_student(tiny_sd, student)
    stats = [json.loads(line) for line in (tmp_path / "run" / "stats.jsonl").read_text().splitlines()]
    assert all(row.keys() >= {"adv", "distill", "critic", "r1"} and row["r1"] > 0 for row in stats)


@pytest.mark.slow
def test_add_xl_runs_on_a_tiny_stable_diffusion_xl(tiny_sdxl: Path, pictures: Path, tmp_path: Path) -> None:
    check_student(tiny_sdxl, run(at_home(recipe("add-xl"), tiny_sdxl, pictures, tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize("start", ["pretrained", "random"])
def test_a_small_student_learns_from_a_larger_teacher_of_another_prediction(
    tiny_sd: Path, tiny_sd_v: Path, tmp_path: Path, start: str
) -> None:
    """``student:`` names the network; the text encoder and the decoder are the teacher's."""
    from diffusers import UNet2DConditionModel

    parent = Checkpoint.open(tiny_sd_v)
    narrow = {**parent.load("unet").config, "block_out_channels": (8, 16), "attention_head_dim": 4}
    torch.manual_seed(1)
    small = parent.derive(
        tmp_path / "small",
        stage="narrow",
        config={},
        replace={"unet": UNet2DConditionModel.from_config(narrow)},
    )
    student = run(
        DistillConfig(
            teacher=str(tiny_sd), student=str(small.path), out=str(tmp_path / "run"), processes=1,
            objective=Add(anchor=0, warmup=0, start=start), loop=LoopConfig(ema=0.5, **LOOP), sample_every=0,
        )
    )  # fmt: skip
    opened = Checkpoint.open(student)
    assert opened.config("unet")["block_out_channels"] == [8, 16]
    assert opened.config("scheduler")["prediction_type"] == "v_prediction"
    assert Checkpoint.open(tiny_sd).config("scheduler")["prediction_type"] == "epsilon"
    drawn = DiffusionPipeline.from_pretrained(student)("a red apple", num_inference_steps=1, output_type="np")
    assert np.isfinite(drawn.images).all()


def test_a_size_that_the_networks_cannot_halve_is_refused(tiny_sd: Path) -> None:
    from flashbulb.distill.checkpoint import CheckpointError

    checkpoint = Checkpoint.open(tiny_sd)
    assert checkpoint.sized(32).latent_shape == (4, 4, 4)
    assert checkpoint.sized(None).image_size == checkpoint.image_size == 64
    with pytest.raises(CheckpointError, match="16 divides"):
        checkpoint.sized(40)
