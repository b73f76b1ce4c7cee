"""The samplers against diffusers' schedulers, each other and the marginals that they keep."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)

from flashbulb.distill.denoiser import Denoiser, Schedule
from flashbulb.distill.samplers import (
    SAMPLERS,
    ddim,
    dpm_solver,
    euler_ancestral,
    flow_euler,
    sgm,
    trailing,
)
from flashbulb.distill.timesteps import choose_timesteps, flow

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
DETERMINISTIC = ("ddim", "euler", "dpm_solver", "flow_euler")


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
    if not isinstance(scheduler, DDIMScheduler | DPMSolverMultistepScheduler):
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
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.std())


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
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.std())


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_renoise_equals_diffusers_lcm_scheduler(steps):
    """Far from the clean end its boundary condition is the identity to six digits."""
    denoiser, noise, states = fixture("epsilon")
    scheduler = LCMScheduler(**SD, prediction_type="epsilon", original_inference_steps=50)
    scheduler.set_timesteps(steps)
    z, drawn = noise, torch.Generator().manual_seed(5)
    for t in scheduler.timesteps:
        out = denoiser.unet(z, torch.full((3,), int(t)), states).sample
        z, theirs = scheduler.step(out, t, z, generator=drawn, return_dict=False)
    ours = SAMPLERS["renoise"](
        denoiser, noise, states, scheduler.timesteps.tolist(), generator=torch.Generator().manual_seed(5)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.std())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 25])
def test_dpm_solver_equals_diffusers(prediction, steps):
    denoiser, noise, states = fixture(prediction)
    scheduler = DPMSolverMultistepScheduler(**SD, prediction_type=prediction, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    theirs = by_diffusers(scheduler, denoiser, noise, states, scheduler.timesteps)
    ours = dpm_solver(denoiser, noise, states, trailing(steps))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.std())


def test_dpm_solver_is_of_second_order():
    """On a Gaussian, whose trajectories are known, twice the steps quarter the error and halve DDIM's."""
    spread = 0.5

    class Gaussian(torch.nn.Module):
        def forward(self, z, t, states):
            alpha, sigma = schedule.at(t)
            return type("Out", (), {"sample": alpha * spread**2 / (alpha**2 * spread**2 + sigma**2) * z})

    schedule = Schedule(SD | {"prediction_type": "sample"})
    denoiser, z = Denoiser(Gaussian(), schedule), torch.ones(1, 1, 1, 1)

    def error(sampler, steps):
        grid = [round(t) for t in torch.linspace(900, 100, steps + 1).tolist()]
        (first_alpha, first_sigma), (alpha, sigma) = (schedule.at(torch.tensor([t])) for t in grid[::steps])
        scale = ((alpha * spread) ** 2 + sigma**2).sqrt() / (
            (first_alpha * spread) ** 2 + first_sigma**2
        ).sqrt()
        exact = denoiser(scale * z, torch.tensor([grid[-1]]), None)
        return float((sampler(denoiser, z, None, grid) - exact).abs())

    assert error(dpm_solver, 8) > 3 * error(dpm_solver, 16)
    assert 1.5 < error(ddim, 8) / error(ddim, 16) < 2.7
    assert error(dpm_solver, 16) < error(ddim, 16) / 5


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 4, 10])
def test_flow_euler_equals_diffusers_flow_match(prediction, steps):
    denoiser, noise, states = fixture(prediction)
    schedule, grid = denoiser.schedule, flow(steps, Schedule(SD))
    lengths = (schedule.alphas + schedule.sigmas)[grid]
    times = [0.0, *(schedule.alphas[grid] / lengths)[1:].tolist()]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=[1 - time for time in times])
    point = noise
    for i, t in enumerate(grid):
        now = torch.full((3,), t)
        z = point if i == 0 else point * lengths[i]
        x0 = denoiser(z, now, states)
        velocity = (z if i == 0 else schedule.to_eps(z, x0, now)) - x0
        point = scheduler.step(velocity, scheduler.timesteps[i], point).prev_sample
    ours = flow_euler(denoiser, noise, states, grid)
    torch.testing.assert_close(ours, point, rtol=1e-4, atol=1e-5 * point.std())


def test_flow_euler_is_ddim_where_the_start_is_not_pure_noise():
    denoiser, noise, states = fixture()
    grid = [900, 600, 250, 30]
    torch.testing.assert_close(
        flow_euler(denoiser, noise, states, grid), ddim(denoiser, noise, states, grid), rtol=1e-4, atol=1e-5
    )


def test_a_straight_flow_is_exact_in_any_number_of_steps():
    """When each noise has one picture and the line between them is straight, steps add nothing."""
    _, noise, states = fixture()
    picture = torch.full_like(noise, 0.7)

    class Straight(torch.nn.Module):
        def forward(self, z, t, states):
            return type("Out", (), {"sample": picture})

    denoiser = Denoiser(Straight(), Schedule(SD | {"prediction_type": "sample"}))
    seen = []
    for steps in (1, 2, 4):
        z = []
        grid = flow(steps, denoiser.schedule)

        def watching(z_t, t, states, *, guidance, null_states, z=z):
            z.append((int(t[0]), z_t))
            return denoiser(z_t, t, states)

        watching.schedule = denoiser.schedule
        seen.append(flow_euler(watching, noise, states, grid))
        for t, z_t in z[1:]:
            alpha, sigma = denoiser.schedule.at(torch.tensor([t]))
            torch.testing.assert_close(z_t, alpha * picture + sigma * noise, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(x0, picture) for x0 in seen)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [2, 3, 4])
def test_euler_ancestral_equals_diffusers_at_the_demo_s_timesteps(prediction, steps):
    denoiser, noise, states = fixture(prediction)
    scheduler = EulerAncestralDiscreteScheduler(**SD, prediction_type=prediction)
    scheduler.set_timesteps(steps)
    sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    scheduler.timesteps = torch.tensor(sgm(steps), dtype=torch.float32)
    scheduler.sigmas = torch.cat([sigmas[sgm(steps)], torch.zeros(1)])
    theirs = by_diffusers(
        scheduler, denoiser, noise, states, scheduler.timesteps, torch.Generator().manual_seed(5)
    )
    ours = euler_ancestral(denoiser, noise, states, sgm(steps), generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.std())


def test_the_start_scale_of_diffusers_euler_is_the_last_sigma_of_ours():
    scheduler = EulerDiscreteScheduler(**SD, timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    start = scheduler.init_noise_sigma / (scheduler.sigmas[0] ** 2 + 1) ** 0.5
    assert float(start) == pytest.approx(float(Schedule(SD).sigmas[999]), rel=1e-6)
    for kind in (DDIMScheduler, DPMSolverMultistepScheduler):
        assert float(kind(**SD, timestep_spacing="trailing").init_noise_sigma) == 1.0


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
@pytest.mark.parametrize("timesteps", [trailing(4), sgm(4), trailing(8), flow(4, Schedule(SD))])
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
        assert torch.equal(first, second) == (name in DETERMINISTIC), name


def test_sgm_timesteps_are_the_demo_s():
    assert sgm(4) == [999, 899, 799, 699]
    with pytest.raises(ValueError, match="1 to 4"):
        sgm(5)


def test_sets_of_timesteps_go_by_name():
    schedule = Schedule(SD)
    assert choose_timesteps("trailing", 4, schedule) == [999, 749, 499, 249]
    assert choose_timesteps("sgm", 4, schedule) == [999, 899, 799, 699]
    times = schedule.alphas / (schedule.alphas + schedule.sigmas)
    assert choose_timesteps("flow", 1, schedule) == [999]
    grid = choose_timesteps("flow", 4, schedule)
    assert grid[0] == 999
    assert times[grid[1:]].tolist() == pytest.approx([0.25, 0.5, 0.75], abs=1e-3)
    with pytest.raises(ValueError, match="fewer steps"):
        choose_timesteps("flow", 500, schedule)
