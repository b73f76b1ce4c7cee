"""The schedule against diffusers' own schedulers, and the one-step constants."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from flashbulb.distill.denoiser import Denoiser, Schedule
from flashbulb.distill.samplers import ddim, renoise, trailing
from flashbulb.distill.schedule import OneStep, alphas_cumprod, ending_at, one_step

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


@pytest.mark.parametrize("kind", ["scaled_linear", "linear"])
def test_alphas_equal_diffusers(kind):
    theirs = DDIMScheduler(**SD | {"beta_schedule": kind}).alphas_cumprod.numpy()
    assert np.allclose(alphas_cumprod(SD | {"beta_schedule": kind}), theirs, rtol=1e-5)


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="squaredcos"):
        alphas_cumprod(SD | {"beta_schedule": "squaredcos_cap_v2"})


@pytest.mark.parametrize("listed", [False, True])
def test_betas_rescaled_to_zero_terminal_snr_equal_diffusers(listed):
    plain = SD | ({"trained_betas": np.linspace(1e-3, 0.02, 300).tolist()} if listed else {})
    config = plain | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    theirs = DDIMScheduler(**config).alphas_cumprod.numpy()
    ours = alphas_cumprod(config)
    assert ours[-1] == theirs[-1] == 0
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-7)
    assert not np.allclose(ours, alphas_cumprod(plain), rtol=1e-2)
    cut = ending_at(config, 199)
    np.testing.assert_allclose(alphas_cumprod(cut), ours[:200])
    np.testing.assert_allclose(DDIMScheduler(**cut).alphas_cumprod.numpy(), ours[:200], rtol=1e-3)
    with pytest.raises(ValueError, match="at least two betas"):
        alphas_cumprod(config | {"trained_betas": [0.1]})


def test_a_student_of_zero_terminal_snr_draws_what_diffusers_draws():
    config = SD | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    denoiser, noise, states = (
        Denoiser(Linear(), Schedule(config)),
        torch.randn(3, 4, 8, 8),
        torch.randn(3, 5, 6),
    )
    scheduler = DDIMScheduler(**config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(4)
    z = noise
    for t in scheduler.timesteps:
        z = scheduler.step(denoiser.unet(z, t.expand(3), states).sample, t, z).prev_sample
    torch.testing.assert_close(ddim(denoiser, noise, states, trailing(4)), z, rtol=1e-3, atol=1e-3)
    one = one_step(config, {})
    assert (one.alpha, one.sigma, one.coefficients()) == (0, 1, (0, -1))


@pytest.mark.parametrize("wrong", ["flow_prediction", "v-prediction", "eps", None, ["epsilon"]])
def test_a_prediction_type_that_is_none_of_ours_is_named(wrong):
    for reading in (Schedule, lambda config: one_step(config, {})):
        with pytest.raises(ValueError, match=r"wanted prediction_type in .*epsilon.*got"):
            reading(SD | {"prediction_type": wrong})


def test_predicted_noise_at_zero_terminal_snr_is_refused():
    for reading in (Schedule, lambda config: one_step(config, {})):
        with pytest.raises(ValueError, match="set rescale_betas_zero_snr to false"):
            reading(SD | {"rescale_betas_zero_snr": True})


def test_terminal_constants_of_stable_diffusion():
    one = one_step(SD | {"prediction_type": "epsilon"}, {"scaling_factor": 0.18215})
    assert one.timestep == 999
    assert one.alpha == pytest.approx(0.0683, abs=1e-4)
    cz, cm = one.coefficients()
    assert (cz, -cm) == (pytest.approx(14.6488, abs=1e-4), pytest.approx(14.6146, abs=1e-4))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_coefficients_recover_x0(prediction):
    rng = np.random.default_rng(0)
    x0, eps = rng.standard_normal((2, 4, 8, 8))
    one = OneStep(timestep=1, alpha=0.6, sigma=0.8, prediction_type=prediction, latent_scale=1.0)
    out = {"epsilon": eps, "v_prediction": 0.6 * eps - 0.8 * x0, "sample": x0}[prediction]
    cz, cm = one.coefficients()
    assert np.allclose(cz * (0.6 * x0 + 0.8 * eps) + cm * out, x0)


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_timestep_outside_the_schedule(timestep):
    with pytest.raises(ValueError, match=r"0\.\.999"):
        one_step(SD, {}, timestep=timestep)


def test_zero_snr_input_is_exactly_noise_while_x0_stays_finite():
    schedule = Schedule(SD | {"prediction_type": "epsilon"})
    x0, eps = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    t = torch.tensor([999, 998])
    noisy = schedule.add_noise(x0, eps, t, zero_snr=True)
    assert torch.equal(noisy[0], eps[0])
    assert not torch.equal(noisy[1], eps[1])
    assert schedule.alphas[999] > 0
    assert schedule.to_x0(noisy, torch.randn_like(eps), t).isfinite().all()


@pytest.mark.parametrize("steps", [1, 2, 4, 10, 25])
def test_trailing_timesteps_equal_diffusers(steps):
    scheduler = EulerDiscreteScheduler(**SD, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert trailing(steps) == scheduler.timesteps.long().tolist()


class Linear(torch.nn.Module):
    """A UNet stand-in: the model output is a fixed linear map of its input, plus a shift by time and text."""

    def forward(self, z, t, states):
        shift = t.view(-1, 1, 1, 1) / 1000 + states.mean((1, 2)).view(-1, 1, 1, 1)
        return type("Out", (), {"sample": 0.3 * z + shift})


def fixture(prediction="v_prediction"):
    denoiser = Denoiser(Linear(), Schedule(SD | {"prediction_type": prediction}))
    return denoiser, torch.randn(3, 4, 8, 8), torch.randn(3, 5, 6)


def test_ddim_equals_diffusers():
    denoiser, noise, states = fixture()
    scheduler = DDIMScheduler(
        **SD,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(4)
    z = noise
    for t in scheduler.timesteps:
        out = denoiser.unet(z, t.expand(3), states).sample
        z = scheduler.step(out, t, z).prev_sample
    assert torch.allclose(ddim(denoiser, noise, states, trailing(4)), z, atol=1e-4)


def test_samplers_agree_at_one_step():
    denoiser, noise, states = fixture("epsilon")
    assert torch.equal(ddim(denoiser, noise, states, [999]), renoise(denoiser, noise, states, [999]))


def test_guidance_of_one_is_no_guidance_and_two_extrapolates():
    denoiser, noise, states = fixture("sample")
    t, null = torch.full((3,), 500), torch.zeros(1, 5, 6)
    plain = denoiser(noise, t, states)
    unconditional = denoiser(noise, t, null.expand(3, -1, -1))
    guided = denoiser(noise, t, states, guidance=2.0, null_states=null)
    assert torch.allclose(guided, 2 * plain - unconditional, atol=1e-5)


def test_guidance_without_the_empty_prompt_is_refused():
    denoiser, noise, states = fixture()
    with pytest.raises(ValueError, match="empty prompt"):
        denoiser(noise, torch.full((3,), 500), states, guidance=2.0)
