"""Every objective trains for real on a tiny teacher, and diffusers opens the student that it writes."""

import pytest

from flashbulb.distill.loop import LoopConfig
from flashbulb.distill.objectives.add import Add
from flashbulb.distill.objectives.cfg_aware import CfgAware
from flashbulb.distill.objectives.guided import GuidedFirst, GuidedSecond
from flashbulb.distill.objectives.halving import Rounds
from flashbulb.distill.objectives.instaflow import InstaFlow, Reflow
from flashbulb.distill.objectives.lcm import Lcm
from flashbulb.distill.objectives.progressive import Progressive
from flashbulb.distill.objectives.ufogen import UfoGen
from flashbulb.distill.stage import DistillConfig, run

LOOP = LoopConfig(steps=4, batch=2, ema=0.5, warmup=1, log_every=1)


def distill(teacher, out, objective):
    return run(
        DistillConfig(
            teacher=str(teacher), out=str(out), processes=1, objective=objective, loop=LOOP, sample_every=0
        )
    )


def picture(student, steps, guidance):
    import numpy as np
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(student)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        "a red apple", num_inference_steps=steps, guidance_scale=guidance, output_type="np"
    ).images
    assert drawn.shape == (1, 64, 64, 3)
    assert np.isfinite(drawn).all()
    return drawn


def moved(teacher, student):
    from safetensors.torch import load_file

    before, after = (
        load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in (teacher, student)
    )
    return [key for key in before if not before[key].equal(after[key].to(before[key].dtype))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        CfgAware(),
        Lcm(grid=4),
        Reflow(pairs=64, pair_steps=2),
        InstaFlow(pairs=64, pair_steps=2),
        InstaFlow(pairs=64, pair_steps=2, conditioning_timestep=399),
        UfoGen(),
        UfoGen(conditioning_timestep=399),
        Add(anchor=0, warmup=0, weighting="nfsd", critic_every=2),
        Add(anchor=0, warmup=0, distill=0, start="random", terminal_share=1.0),  # a GAN from scratch
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_each_of_the_others(tiny_sticker, tmp_path, objective):
    student = distill(tiny_sticker, tmp_path / "run", objective)
    assert moved(tiny_sticker, student)
    picture(student, 2, 1.0)
    told = scheduler_timesteps(student)
    assert told == [999 if objective.last_timestep is None else objective.last_timestep]


def scheduler_timesteps(student):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_pretrained(student, subfolder="scheduler")
    scheduler.set_timesteps(1)
    return scheduler.timesteps.tolist()


def test_progressive(tiny_sticker, tmp_path):
    student = distill(tiny_sticker, tmp_path / "run", Progressive(rounds=Rounds(first=4, last=1)))
    assert moved(tiny_sticker, student)
    picture(student, 1, 1.0)


@pytest.mark.slow
def test_guided_distillation_in_two_stages(tiny_sticker, tmp_path):
    from flashbulb.distill.checkpoint import Checkpoint

    first = distill(tiny_sticker, tmp_path / "first", GuidedFirst())
    second = distill(first, tmp_path / "second", GuidedSecond(rounds=Rounds(first=2, last=1)))
    assert Checkpoint.open(second).config("unet")["time_cond_proj_dim"] == 256
    assert moved(first, second)
    assert [entry.config["objective"]["type"] for entry in Checkpoint.open(second).lineage.entries] == [
        "guided-1",
        "guided-2",
    ]
    picture(second, 2, 3.0)
