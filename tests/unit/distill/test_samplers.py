"""The samplers against diffusers' schedulers, each other and the marginals that they keep."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

from flashbulb.distill.denoiser import Denoiser, Schedule
from flashbulb.distill.samplers import SAMPLERS, ddim, euler_ancestral, sgm, trailing

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


class Linear(torch.nn.Module):
    """A UNet stand-in: the model output is a fixed linear map of its input, plus a shift by time and text."""

    def forward(self, z, t, states):
        shift = t.view(-1, 1, 1, 1) / 1000 + states.mean((1, 2)).view(-1, 1, 1, 1)
        return type("Out", (), {"sample": 0.3 * z + shift})


def fixture(prediction="v_prediction", unet=None):
    denoiser = Denoiser(unet or Linear(), Schedule(SD | {"prediction_type": prediction}))
    generator = torch.Generator().manual_seed(0)
    return denoiser, torch.randn(3, 4, 8, 8, generator=generator), torch.randn(3, 5, 6, generator=generator)


def by_diffusers(scheduler, denoiser, noise, states, timesteps, generator=None):
    """Step a diffusers scheduler from the same start: scale-1 noise at the first timestep."""
    z = noise
    if not isinstance(scheduler, DDIMScheduler):
        z = noise * (scheduler.sigmas[0] ** 2 + 1).sqrt()
    keywords = {"generator": generator} if isinstance(scheduler, EulerAncestralDiscreteScheduler) else {}
    for t in timesteps:
        scaled = scheduler.scale_model_input(z, t)
        out = denoiser.unet(scaled, torch.full((3,), int(t)), states).sample
        z = scheduler.step(out, t, z, **keywords).prev_sample
    return z


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 4, 25])
def test_euler_equals_diffusers_euler_and_our_ddim(prediction, steps):
    denoiser, noise, states = fixture(prediction)
    scheduler = EulerDiscreteScheduler(**SD, prediction_type=prediction, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    theirs = by_diffusers(scheduler, denoiser, noise, states, scheduler.timesteps)
    ours = SAMPLERS["euler"](denoiser, noise, states, trailing(steps))
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3 * theirs.std())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_euler_ancestral_equals_diffusers(prediction, steps):
    denoiser, noise, states = fixture(prediction)
    scheduler = EulerAncestralDiscreteScheduler(**SD, prediction_type=prediction, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    theirs = by_diffusers(
        scheduler, denoiser, noise, states, scheduler.timesteps, torch.Generator().manual_seed(5)
    )
    ours = euler_ancestral(
        denoiser, noise, states, trailing(steps), generator=torch.Generator().manual_seed(5)
    )
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3 * theirs.std())


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_all_are_one_at_one_step(name, prediction):
    denoiser, noise, states = fixture(prediction)
    assert torch.equal(SAMPLERS[name](denoiser, noise, states, [999]), ddim(denoiser, noise, states, [999]))


class Zero(torch.nn.Module):
    """Knows that x0 is zero, and remembers the inputs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, z, t, states):
        self.seen.append((int(t[0]), z))
        return type("Out", (), {"sample": torch.zeros_like(z)})


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("timesteps", [trailing(4), sgm(4), trailing(8)])
def test_every_step_sees_the_noise_of_its_timestep(name, timesteps):
    """With the true x0 known, z at timestep t has standard deviation sigma_t, whatever the sampler drew."""
    unet = Zero()
    denoiser, _, states = fixture("sample", unet)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, 4, 200, 200, generator=generator)
    SAMPLERS[name](denoiser, noise, states[:1], timesteps, generator=generator)
    assert [t for t, _ in unet.seen] == timesteps
    for t, z in unet.seen[1:]:
        assert float(z.std()) == pytest.approx(float(denoiser.schedule.sigmas[t]), rel=0.01)


def test_the_stochastic_ones_draw_and_the_others_do_not():
    denoiser, noise, states = fixture()
    for name, sampler in SAMPLERS.items():
        first, second = (
            sampler(denoiser, noise, states, trailing(4), generator=torch.Generator().manual_seed(seed))
            for seed in (0, 1)
        )
        assert torch.equal(first, second) == (name in ("ddim", "euler")), name


def test_sgm_timesteps_are_the_demo_s():
    assert sgm(4) == [999, 899, 799, 699]
    with pytest.raises(ValueError, match="1 to 4"):
        sgm(5)
