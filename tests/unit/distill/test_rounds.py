"""Rounds of halving: the student of one teaches the next, guidance enters with the first."""

import msgspec
import pytest
import torch

from flashbulb.distill.denoiser import Denoiser, Schedule
from flashbulb.distill.objectives.base import Batch, World
from flashbulb.distill.objectives.halving import Rounds, halving_loss
from flashbulb.distill.objectives.progressive import Progressive
from flashbulb.distill.rng import StepRng
from flashbulb.distill.state import State
from flashbulb.distill.targets import snr_weight, two_step_target

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "sample"}
SCHEDULE, SHAPE, VARIANCE, GUIDANCE = Schedule(SD), (4, 4, 4), 0.25, 2.0
GRID = torch.tensor([249, 499, 749, 999])


class Table(torch.nn.Module):
    """Predicts ``a_t z + b_t m`` with the mean m of its text: at first it is exact for N(m, VARIANCE)."""

    def __init__(self):
        super().__init__()
        alpha, sigma = (part.flatten() for part in SCHEDULE.at(GRID))
        k = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
        self.a, self.b = torch.nn.Parameter(k), torch.nn.Parameter(1 - k * alpha)

    def forward(self, z, t, states):
        mean, index = states.mean((1, 2)).view(-1, 1, 1, 1), torch.searchsorted(GRID, t)
        return type("Out", (), {"sample": self.told(z, index, mean)})

    def told(self, z, index, mean):
        return self.a[index].view(-1, 1, 1, 1) * z + self.b[index].view(-1, 1, 1, 1) * mean


def real(count, rng):
    mean = rng.normal((count, 1, 1, 1))
    latents = mean + VARIANCE**0.5 * rng.normal((count, *SHAPE))
    return Batch(latents=latents, states=mean.view(-1, 1, 1).expand(-1, 2, 3), pooled=mean.view(-1, 1))


def world():
    return World(
        student=Denoiser(Table(), SCHEDULE), teacher=Denoiser(Table().requires_grad_(False), SCHEDULE),
        vae=None, real=real, null_states=torch.zeros(1, 2, 3),
    )  # fmt: skip


def halved(table, steps, guidance):
    """Return the best table of ``steps`` student steps after this teacher; the other entries stay."""
    following, share = Table(), (torch.arange(steps) + 1) / steps
    index = torch.searchsorted(GRID, SCHEDULE.at_share(share)[0])
    with torch.no_grad():
        for name, z, mean in (("a", 1.0, 0.0), ("b", 0.0, guidance)):
            start = torch.full((steps, 1, 1, 1), z)
            target = two_step_target(
                lambda z, t, m=mean: table.told(z, torch.searchsorted(GRID, t), m),
                SCHEDULE,
                start,
                share,
                steps,
            )
            getattr(following, name)[index] = target.flatten()
    return following


def test_two_rounds_end_at_the_composed_optimum():
    """Four guided teacher steps in one: the second round learns from the first one's student, unguided."""
    made, steps = world(), 240
    objective = Progressive(rounds=Rounds(first=2, last=1), guidance=GUIDANCE, learning_rate=0.02)
    learner = objective.learner(made, batch=16, steps=steps)
    for step in range(steps):
        learner.optimizers["student"].param_groups[0]["lr"] = 0.02 * min(
            1, 2 - 2 * (2 * step % steps) / steps
        )
        learner.update(step, StepRng(0, step))
    first = halved(Table(), 2, GUIDANCE)
    best = halved(first, 1, 1.0)
    for found, expected in ((made.student.unet.a, best.a), (made.student.unet.b, best.b)):
        assert found[-1].item() == pytest.approx(expected[-1].item(), abs=0.01)
    # Neither the first teacher, nor none or twice the guidance, leads there.
    for other in (
        halved(Table(), 1, GUIDANCE),
        halved(halved(Table(), 2, 1.0), 1, 1.0),
        halved(first, 1, GUIDANCE),
    ):
        gaps = (abs(part[-1] - right[-1]) for part, right in ((other.a, best.a), (other.b, best.b)))
        assert max(gaps) > 0.05


class Deeper(Table):
    """A network with one weight more."""

    def __init__(self):
        super().__init__()
        self.more = torch.nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize(
    ("student", "config", "unlike"),
    [
        (Deeper(), {}, "of another architecture"),
        (
            Table(),
            {"prediction_type": "v_prediction"},
            "predicts v_prediction where the teacher predicts sample",
        ),
        (Table(), {"beta_end": 0.02}, "with another noise schedule"),
    ],
)
def test_a_student_that_cannot_teach_the_next_round_is_refused_at_the_start(student, config, unlike):
    made = msgspec.structs.replace(world(), student=Denoiser(student, Schedule(SD | config)))
    with pytest.raises(ValueError, match=unlike):
        Progressive(rounds=Rounds(first=2, last=1)).learner(made, batch=2, steps=4)
    Progressive(rounds=Rounds(first=2, last=2)).learner(made, batch=2, steps=4)  # it never has to


def test_a_run_killed_within_a_round_goes_on_with_the_teacher_of_that_round(tmp_path):
    def begin():
        made = world()
        rounds = Rounds(first=2, last=1)
        learner = Progressive(rounds=rounds, learning_rate=0.05).learner(made, batch=4, steps=4)
        return State(learner.modules, learner.optimizers), learner

    (state, learner), (resumed, other) = begin(), begin()
    for step in range(3):  # the second round began at step 2
        learner.update(step, StepRng(0, step))
    state.save(tmp_path)
    assert resumed.load(tmp_path)
    assert other.update(3, StepRng(0, 3)) == learner.update(3, StepRng(0, 3))
    assert not torch.equal(other.modules["teacher"].a, Table().a)


def test_the_error_of_x0_weighs_by_the_truncated_snr():
    alpha, sigma = torch.tensor([0.8, 0.6]), torch.tensor([0.6, 0.8])
    torch.testing.assert_close(snr_weight(alpha, sigma), torch.tensor([16 / 9, 1.0]))
    made, rng = world(), StepRng(0, 0)
    with torch.no_grad():
        made.student.unet.a.mul_(0.5)
        found = halving_loss(made, 16, 4, StepRng(0, 0), {}, {})
        batch = real(16, rng)
        share = (rng.integers(0, 4, 16) + 1) / 4
        t, alpha, sigma = SCHEDULE.at_share(share)
        z = SCHEDULE.add_noise(batch.latents, rng.normal(batch.latents.shape), t, zero_snr=True)
        target = two_step_target(lambda z, t: made.teacher(z, t, batch.states), SCHEDULE, z, share, 4)
        squared = (made.student(z, t, batch.states) - target).square()
    weight = (alpha**2 / sigma**2).clamp(min=1)
    assert weight.max() > 2
    assert found.item() == pytest.approx((weight * squared).mean().item(), rel=1e-4)
