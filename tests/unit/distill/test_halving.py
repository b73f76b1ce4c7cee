"""Progressive and guided distillation on teachers whose answers are known, without any training but toys."""

import itertools

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline
from hypothesis import given
from hypothesis import strategies as st

from flashbulb.distill import samplers
from flashbulb.distill.denoiser import Denoiser, Schedule
from flashbulb.distill.guidance import ScaleRange, embed_scale, with_scale_input
from flashbulb.distill.loop import StepRng
from flashbulb.distill.objectives import halving
from flashbulb.distill.objectives.base import Batch, World
from flashbulb.distill.objectives.guided import GuidedFirst, GuidedSecond
from flashbulb.distill.objectives.halving import Rounds, steps_of
from flashbulb.distill.objectives.progressive import Progressive
from flashbulb.distill.samplers import SAMPLERS, trailing
from flashbulb.distill.targets import ddim_step, two_step_target

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "sample",
}
SCHEDULE = Schedule(SD)
SHAPE = (4, 8, 8)


def gaussian(variance):
    """Return the exact denoiser of data from N(0, variance)."""

    def predict(z, t):
        alpha, sigma = SCHEDULE.at(t)
        return alpha * variance / (alpha**2 * variance + sigma**2) * z

    return predict


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_a_teacher_that_knows_x0_is_reproduced(steps):
    x0, z = torch.randn(2, 5, *SHAPE)
    share = torch.randint(1, steps + 1, (5,)) / steps
    target = two_step_target(lambda z, t: x0, SCHEDULE, z, share, steps)
    torch.testing.assert_close(target, x0, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_one_step_of_the_target_lands_where_two_teacher_steps_do(steps):
    teacher, z = gaussian(0.25), torch.randn(steps, *SHAPE)
    share = (torch.arange(steps) + 1) / steps
    middle = ddim_step(teacher, SCHEDULE, z, share, share - 0.5 / steps)
    end = ddim_step(teacher, SCHEDULE, middle, share - 0.5 / steps, share - 1 / steps)
    target = two_step_target(teacher, SCHEDULE, z, share, steps)
    torch.testing.assert_close(
        ddim_step(lambda z, t: target, SCHEDULE, z, share, share - 1 / steps), end, atol=1e-4, rtol=1e-4
    )


def test_the_stochastic_grid_is_the_sampler_s(monkeypatch):
    """Learned are its steps from t to s = t - 2/N; noise up to k = s + 1/N leads to the next of them."""
    taken, plain = [], samplers.step
    monkeypatch.setattr(
        samplers, "step", lambda d, z, x0, now, end: taken.append((now, end)) or plain(d, z, x0, now, end)
    )
    seen = []
    exact = Denoiser(None, SCHEDULE)

    def call(self, z, t, states, **_):
        seen.append(int(t[0]))
        return gaussian(0.25)(z, t)

    exact.__class__ = type("Exact", (Denoiser,), {"__call__": call})
    SAMPLERS["meng"](exact, torch.randn(2, *SHAPE), None, trailing(4))
    t = torch.tensor([1.0, 0.75, 0.5, 0.25])
    length = 1 / steps_of("stochastic", t, 4, StepRng(0, 0, 0))
    s = t - length
    assert s.tolist() == [0.5, 0.25, 0.0, 0.0]
    assert (s + 1 / 4)[:3].tolist() == t[1:].tolist()
    begins, ends = (SCHEDULE.at_share(share)[0].tolist() for share in (t, s))
    assert seen == begins
    assert taken == list(zip(begins, ends, strict=True))[:2]  # the others end at x0 itself
    assert ends[2:] == [-1, -1]


def test_a_step_of_the_stochastic_grid_lands_where_two_teacher_steps_do():
    teacher, z, share = gaussian(0.25), torch.randn(4, *SHAPE), torch.tensor([1.0, 0.75, 0.5, 0.25])
    whole = steps_of("stochastic", share, 4, StepRng(0, 0, 0))
    ends, middles = share - 1 / whole, share - 0.5 / whole
    target = two_step_target(teacher, SCHEDULE, z, share, whole)
    far = ddim_step(teacher, SCHEDULE, ddim_step(teacher, SCHEDULE, z, share, middles), middles, ends)
    found = ddim_step(lambda z, t: target, SCHEDULE, z, share, ends)
    torch.testing.assert_close(found, far, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("grid", ["deterministic", "stochastic", "both"])
def test_stage_two_learns_the_grid_that_it_is_told(monkeypatch, grid):
    told = []
    monkeypatch.setattr(halving, "halving_loss", lambda *_, grid: told.append(grid) or torch.zeros(()))
    network = Denoiser(torch.nn.Linear(1, 1), SCHEDULE)
    network.scale_width = 256
    world = World(
        student=network, teacher=network, vae=None, null_states=torch.zeros(1, 2, 3), real=None,
        descend=lambda loss, optimizer: None,
    )  # fmt: skip
    GuidedSecond(grid=grid).learner(world, batch=2, steps=4).update(0, StepRng(0, 0, 0))
    assert told == [grid]


def test_both_grids_take_part_and_the_deterministic_one_draws_nothing():
    share = (torch.arange(400) % 4 + 1) / 4
    both, rng = steps_of("both", share, 4, StepRng(0, 0, 0)), StepRng(0, 0, 0)
    assert set(both[share == 0.25].tolist()) == {4.0}
    assert 100 < (both == 2).sum() < 200
    assert steps_of("deterministic", share, 4, rng).tolist() == [4.0] * 400
    assert torch.equal(rng.uniform(3), StepRng(0, 0, 0).uniform(3))


def test_many_ddim_steps_of_a_gaussian_follow_its_flow():
    """The flow of a Gaussian keeps z over its standard deviation; a thousand steps come close to it."""
    variance, z = 0.25, torch.randn(2, *SHAPE)
    denoiser = Denoiser(None, SCHEDULE)
    predict = gaussian(variance)
    denoiser.__class__ = type("Exact", (Denoiser,), {"__call__": lambda self, z, t, s, **_: predict(z, t)})
    alpha, sigma = SCHEDULE.alphas[999], SCHEDULE.sigmas[999]
    exact = z * (variance / (alpha**2 * variance + sigma**2)).sqrt()
    found = SAMPLERS["ddim"](denoiser, z, None, trailing(1000))
    torch.testing.assert_close(found, exact, rtol=0.03, atol=0)


@given(first=st.sampled_from([1, 2, 4, 8, 32]), steps=st.integers(7, 200))
def test_rounds_halve_and_end_at_the_last(first, steps):
    rounds = Rounds(first=first, last=1)
    seen = [rounds.at(step, steps) for step in range(steps)]
    counts = [count for count, _ in seen]
    assert counts[0] == first
    assert counts[-1] == 1
    assert [new for _, new in seen][1:] == [a != b for a, b in itertools.pairwise(counts)]


@pytest.mark.parametrize(("first", "last"), [(6, 1), (8, 3)])
def test_rounds_that_do_not_halve_are_refused(first, last):
    with pytest.raises(ValueError, match="power of two"):
        Rounds(first=first, last=last)


@pytest.mark.parametrize("width", [256, 257])
def test_the_embedding_of_a_scale_is_diffusers(width):
    scales = torch.tensor([1.0, 1.5, 7.5])
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scales - 1, width)
    torch.testing.assert_close(embed_scale(scales, width), theirs)


def test_scales_are_drawn_within_their_range():
    drawn = ScaleRange(low=2, high=3).draw(500, StepRng(0, 0, 0))
    assert drawn.min() >= 2
    assert drawn.max() <= 3
    assert drawn.std() > 0.2
    with pytest.raises(ValueError, match="low <= high"):
        ScaleRange(low=3, high=2)


@pytest.fixture
def unet(tiny_sd):
    from flashbulb.distill.checkpoint import Checkpoint

    return Checkpoint.open(tiny_sd).load("unet")


def test_the_scale_input_changes_nothing_at_first_and_something_once_trained(unet):
    schedule = Schedule(SD | {"prediction_type": "epsilon"})
    wider = with_scale_input(unet)
    z, t = torch.randn(2, *SHAPE), torch.tensor([10, 900])
    states = torch.randn(2, 77, 32)
    plain, told = Denoiser(unet, schedule), Denoiser(wider, schedule)
    torch.testing.assert_close(told(z, t, states, guidance=3.0), plain(z, t, states))
    torch.nn.init.normal_(wider.time_embedding.cond_proj.weight)
    low, high = (told(z, t, states, guidance=g) for g in (1.0, 3.0))
    assert not torch.allclose(low, high)
    assert with_scale_input(wider) is wider


class Affine(torch.nn.Module):
    """Predicts ``a z + b`` with one trained a and b for each of a few timesteps, and none for text."""

    def __init__(self, known):
        super().__init__()
        self.known = known
        self.a = torch.nn.Parameter(torch.zeros(len(known)))

    def forward(self, z, t, states):
        index = torch.tensor([self.known.index(int(i)) for i in t])
        return type("Out", (), {"sample": self.a[index].view(-1, 1, 1, 1) * z})


class Exact(torch.nn.Module):
    """The exact denoiser of N(0, variance) as a network; ``load_state_dict`` of it would be an error."""

    def __init__(self, variance):
        super().__init__()
        self.predict = gaussian(variance)

    def forward(self, z, t, states):
        return type("Out", (), {"sample": self.predict(z, t)})


def test_a_trained_round_reaches_the_analytic_target():
    """One round at four steps of a Gaussian teacher: the best a is the target's own, which is linear in z."""
    variance, steps = 0.25, 4
    known = [249, 499, 749, 999]
    student = Denoiser(Affine(known), SCHEDULE)

    def real(count, rng):
        latents = variance**0.5 * torch.randn(count, *SHAPE, generator=rng.torch)
        states = torch.zeros(count, 1, 1)
        return Batch(latents=latents, states=states, pooled=states[:, 0])

    world = World(
        student=student,
        teacher=Denoiser(Exact(variance), SCHEDULE),
        vae=None,
        null_states=torch.zeros(1, 1, 1),
        real=real,
    )
    objective = Progressive(rounds=Rounds(first=steps, last=steps), guidance=1.0, learning_rate=0.02)
    learner = objective.learner(world, batch=32, steps=400)
    for step in range(400):
        stats = learner.update(step, StepRng(0, step, 0))
    assert stats["student_steps"] == steps
    one = torch.ones(steps, 1, 1, 1)
    share = (torch.arange(steps) + 1) / steps
    best = two_step_target(gaussian(variance), SCHEDULE, one, share, steps).flatten()
    torch.testing.assert_close(student.unet.a.detach(), best, atol=0.01, rtol=0.02)


def test_stage_two_wants_stage_one_first(unet):
    schedule = Schedule(SD)
    world = World(
        student=Denoiser(unet, schedule), teacher=Denoiser(unet, schedule), vae=None,
        null_states=torch.zeros(1, 77, 32), real=None,
    )  # fmt: skip
    with pytest.raises(ValueError, match="guided-1 first"):
        GuidedSecond().learner(world, batch=2, steps=4)


def test_stage_one_has_no_loss_when_the_student_is_the_guided_teacher():
    class Told(torch.nn.Module):
        """Knows the guided answer of the teacher below."""

        config = {"time_cond_proj_dim": 256}

        def forward(self, z, t, states, timestep_cond=None):
            return type("Out", (), {"sample": self.answer(z, states)})

        def answer(self, z, states):
            return 0.3 * z + states.mean((1, 2)).view(-1, 1, 1, 1)

    class Plain(torch.nn.Module):
        def forward(self, z, t, states):
            return type("Out", (), {"sample": 0.3 * z + states.mean((1, 2)).view(-1, 1, 1, 1)})

    def real(count, rng):
        states = torch.ones(count, 2, 3)
        return Batch(
            latents=torch.randn(count, *SHAPE, generator=rng.torch), states=states, pooled=states[:, 0]
        )

    world = World(
        student=Denoiser(Told(), SCHEDULE), teacher=Denoiser(Plain(), SCHEDULE), vae=None,
        null_states=torch.ones(1, 2, 3), real=real,
    )  # fmt: skip
    # With the empty prompt equal to the prompt, guidance of any scale changes nothing.
    assert GuidedFirst().loss(world, 8, StepRng(0, 0, 0)) < 1e-3
    world = World(
        student=world.student, teacher=world.teacher, vae=None, null_states=torch.zeros(1, 2, 3), real=real
    )
    assert GuidedFirst().loss(world, 8, StepRng(0, 0, 0)) > 0.1
