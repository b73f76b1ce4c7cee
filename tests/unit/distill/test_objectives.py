"""CFG-aware, LCM, reflow, InstaFlow and UFOGen on networks whose right answers are known."""

import pytest
import torch
from diffusers import LCMScheduler

from flashbulb.distill.denoiser import Denoiser, Schedule
from flashbulb.distill.loop import StepRng
from flashbulb.distill.objectives.base import Batch, Pairs, World
from flashbulb.distill.objectives.cfg_aware import CfgAware
from flashbulb.distill.objectives.instaflow import InstaFlow, Reflow, even_times
from flashbulb.distill.objectives.lcm import Lcm, boundary
from flashbulb.distill.objectives.ufogen import UfoGen

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "sample"}
SCHEDULE = Schedule(SD)
SHAPE = (4, 8, 8)
VARIANCE = 0.25


class Net(torch.nn.Module):
    """A network of a given answer ``predict(z, t, states, told)``; it may take a guidance scale."""

    def __init__(self, predict, *, scaled=False):
        super().__init__()
        self.predict, self.config = predict, {"time_cond_proj_dim": 256 if scaled else None}

    def forward(self, z, t, states, timestep_cond=None):
        return type("Out", (), {"sample": self.predict(z, t, states)})


def world(student, teacher=None, *, x0=None, pairs=None, scaled=False):
    def real(count, rng):
        latents = VARIANCE**0.5 * torch.randn(count, *SHAPE, generator=rng.torch)
        latents = latents if x0 is None else x0.expand(count, *SHAPE)
        states = torch.zeros(count, 2, 3)
        return Batch(latents=latents, states=states, pooled=states[:, 0])

    return World(
        student=Denoiser(Net(student, scaled=scaled), SCHEDULE),
        teacher=Denoiser(Net(teacher or student), SCHEDULE),
        vae=None, null_states=torch.zeros(1, 2, 3), real=real, pairs=pairs,
    )  # fmt: skip


def gaussian(z, t, states):
    """The exact denoiser of N(0, VARIANCE)."""
    alpha, sigma = SCHEDULE.at(t)
    return alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * z


def flow(z, t, states):
    """The start of the exact flow of N(0, VARIANCE): z over its standard deviation, times the data's."""
    alpha, sigma = SCHEDULE.at(t)
    return (VARIANCE / (alpha**2 * VARIANCE + sigma**2)).sqrt() * z


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_cfg_aware_has_no_loss_for_the_truth_and_a_loss_for_half_of_it(probability):
    x0 = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(0))

    def truth(z, t, states):
        return x0.expand_as(z)

    objective = CfgAware(probability=probability)
    right, _ = objective.loss(world(truth, x0=x0), 16, StepRng(0, 0, 0))
    wrong, stats = objective.loss(
        world(lambda z, t, s: x0.expand_as(z) / 2, truth, x0=x0), 16, StepRng(0, 0, 0)
    )
    assert right < 1e-6
    assert wrong > 0.1
    assert stats["guided"] == probability
    assert wrong == pytest.approx(2 * stats["distill"], rel=1e-3)  # gamma makes both parts equal


def test_the_boundary_of_lcm_is_diffusers():
    scheduler = LCMScheduler(timestep_scaling=10.0)
    for t in (0, 1, 19, 999):
        skip, out = boundary(SCHEDULE, torch.tensor([t - 1]))
        theirs = scheduler.get_scalings_for_boundary_condition_discrete(t)
        assert (float(skip), float(out)) == pytest.approx(tuple(map(float, theirs)), rel=1e-5)


def test_lcm_is_at_rest_on_the_exact_flow_and_nowhere_else():
    def loss(answer, grid):
        made = world(answer, gaussian, scaled=True)
        return Lcm(grid=grid).loss(made, made.student, 64, StepRng(0, 0, 0))

    # The finer the grid, the nearer the teacher's steps are to its flow.
    assert 30 * loss(flow, 500) < 3 * loss(flow, 100) < loss(flow, 20)
    assert 50 * loss(flow, 100) < loss(gaussian, 100)


def test_lcm_averages_the_student_into_its_target():
    class Scaled(torch.nn.Module):
        config = {"time_cond_proj_dim": 256}

        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.tensor(0.1))

        def forward(self, z, t, states, timestep_cond=None):
            return type("Out", (), {"sample": self.a * z})

    made = world(gaussian)
    made = World(
        student=Denoiser(Scaled(), SCHEDULE), teacher=made.teacher, vae=None,
        null_states=made.null_states, real=made.real,
    )  # fmt: skip
    learner = Lcm(target_ema=0.75, learning_rate=0.1).learner(made, batch=4, steps=2)
    learner.update(0, StepRng(0, 0, 0))
    student, target = (learner.modules[name].a.item() for name in ("student", "target"))
    assert student != pytest.approx(0.1)
    assert target == pytest.approx(0.75 * 0.1 + 0.25 * student)


def straight(scale):
    """Pairs on straight lines from noise n to ``scale * n``, which do not cross."""

    def pairs(count, rng):
        noise = torch.randn(count, *SHAPE, generator=rng.torch)
        return Pairs(noise=noise, endpoint=scale * noise, states=torch.zeros(count, 2, 3))

    return pairs


def test_a_straight_flow_is_a_fixed_point_of_reflow():
    def answer(z, t, states):
        alpha, sigma = SCHEDULE.at(t)
        pure = (t == 999).view(-1, 1, 1, 1)  # there the input is the noise alone
        return torch.where(pure, 0.5 * z, 0.5 * z / (alpha * 0.5 + sigma))

    assert Reflow().loss(world(answer, pairs=straight(0.5)), 64, StepRng(0, 0, 0)) < 1e-2
    assert Reflow().loss(world(gaussian, pairs=straight(0.5)), 64, StepRng(0, 0, 0)) > 0.1


def test_the_times_of_a_flow_are_even():
    t = even_times(SCHEDULE, 20000, StepRng(0, 0, 0))
    times = (SCHEDULE.alphas / (SCHEDULE.alphas + SCHEDULE.sigmas))[t]
    counts = torch.histc(times, 4, 0.0, 1.0) / len(t)
    assert counts.sub(0.25).abs().max() < 0.02


def test_instaflow_has_no_loss_when_one_step_reaches_the_pair():
    objective = InstaFlow()
    loss, _ = objective.loss(world(lambda z, t, s: 0.5 * z, pairs=straight(0.5)), 8, StepRng(0, 0, 0), None)
    assert loss < 1e-6
    with pytest.raises(ValueError, match="cached"):
        objective.loss(world(gaussian), 8, StepRng(0, 0, 0), None)


@pytest.fixture
def gan(tiny_sd):
    from flashbulb.distill.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(tiny_sd)
    schedule = Schedule(checkpoint.config("scheduler"))

    def real(count, rng):
        states = torch.randn(count, 77, 32, generator=rng.torch)
        return Batch(
            latents=torch.randn(count, *SHAPE, generator=rng.torch), states=states, pooled=states[:, 0]
        )

    return World(
        student=Denoiser(checkpoint.load("unet").requires_grad_(True), schedule),
        teacher=Denoiser(checkpoint.load("unet"), schedule),
        vae=None, null_states=torch.zeros(1, 77, 32), real=real,
    )  # fmt: skip


def flat(module):
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def test_ufogen_gives_each_player_its_own_gradients(gan):
    from flashbulb.distill.critic_unet import UnetCritic

    objective, rng = UfoGen(), StepRng(0, 0, 0)
    critic, real = UnetCritic(gan.teacher.unet), gan.real(3, rng)
    share, drawn = objective.draw(gan, real, rng)
    loss, _ = objective.student_loss(gan, critic, real, share, drawn, rng)
    loss.backward()
    assert all(p.grad is None for p in critic.parameters())
    assert any(p.grad is not None and p.grad.any() for p in gan.student.unet.parameters())
    gan.student.unet.zero_grad()
    critic_loss, _ = objective.critic_loss(gan, critic, real, share, drawn.detach(), rng)
    critic_loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in gan.student.unet.parameters())
    assert all(p.grad is not None for p in critic.parameters())
    assert all(p.grad is None for p in gan.teacher.unet.parameters())


def test_the_critic_reads_what_the_teacher_s_middle_sees(gan):
    from flashbulb.distill.critic_unet import UnetCritic

    seen = []
    unet = gan.teacher.unet
    unet.mid_block.register_forward_hook(lambda module, inputs, out: seen.append(out))
    z, t, states = torch.randn(2, *SHAPE), torch.tensor([5, 500]), torch.randn(2, 77, 32)
    unet(z, t, states)
    critic = UnetCritic(unet)
    critic.mid_block._forward_hooks.clear()
    critic.mid_block.register_forward_hook(lambda module, inputs, out: seen.append(out))
    logits = critic(z, t, states)
    torch.testing.assert_close(seen[1].float(), seen[0], atol=0.05, rtol=0.05)
    assert logits.shape == (2, seen[0].shape[2] * seen[0].shape[3])


def test_ufogen_moves_both_players(gan):
    objective = UfoGen()
    learner = objective.learner(gan, batch=2, steps=4)
    before = {name: flat(module) for name, module in learner.modules.items()}
    learner.update(0, StepRng(0, 0, 0))
    assert all(not torch.equal(before[name], flat(m)) for name, m in learner.modules.items())


def test_the_earlier_time_of_the_first_step_is_clean(gan):
    objective, rng = UfoGen(student_steps=4), StepRng(0, 0, 0)
    x0 = torch.randn(1, *SHAPE)
    z, t = objective.earlier(gan, x0, torch.tensor([0.25]), rng)
    assert torch.equal(z, x0)
    assert int(t) == 0
    _, t = objective.earlier(gan, x0, torch.tensor([1.0]), rng)
    assert int(t) == 749
