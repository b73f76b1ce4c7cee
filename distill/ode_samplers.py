"""Samplers without noise of their own: solvers of the probability-flow ODE, none of which needs training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.denoiser import Denoiser


def ddim(
    denoiser: Denoiser,
    noise: torch.Tensor,
    states: torch.Tensor,
    timesteps: list[int],
    *,
    guidance: float = 1.0,
    null_states: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Sample deterministically with DDIM (arXiv 2010.02502, eq. 12, eta = 0).

    An Euler step of the probability-flow ODE over sigma / alpha (arXiv 2206.00364) is the same step.
    """
    z = x0 = noise
    for now, following in pairs(timesteps):
        x0 = denoiser(z, at(z, now), states, guidance=guidance, null_states=null_states)
        if following is not None:
            z = step(denoiser, z, x0, now, following)
    return x0


def dpm_solver(
    denoiser: Denoiser,
    noise: torch.Tensor,
    states: torch.Tensor,
    timesteps: list[int],
    *,
    guidance: float = 1.0,
    null_states: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Sample with DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2), the usual training-free baseline.

    With lambda = log(alpha / sigma) and h the step in it, a step is
    ``(sigma' / sigma) z - alpha' (exp(-h) - 1) D``, where D extrapolates x0 from the last two predictions.
    The first step has only one, and the last goes to sigma = 0, where the step is x0 itself.
    """
    import torch

    z = x0 = noise
    previous: tuple[torch.Tensor, torch.Tensor] | None = None  # x0 and log(alpha / sigma) of the last step
    for now, following in pairs(timesteps):
        x0 = denoiser(z, at(z, now), states, guidance=guidance, null_states=null_states)
        if following is None:
            break
        alpha, sigma = denoiser.schedule.at(at(z, now))
        next_alpha, next_sigma = denoiser.schedule.at(at(z, following))
        place, h = (alpha / sigma).log(), (next_alpha / next_sigma).log() - (alpha / sigma).log()
        d = x0
        if previous is not None:
            d = x0 + (x0 - previous[0]) * h / (2 * (place - previous[1]))
        z = next_sigma / sigma * z - next_alpha * torch.expm1(-h) * d
        previous = (x0, place)
    return x0


def flow_euler(
    denoiser: Denoiser,
    noise: torch.Tensor,
    states: torch.Tensor,
    timesteps: list[int],
    *,
    guidance: float = 1.0,
    null_states: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Sample with Euler steps of a rectified flow (arXiv 2209.03003, eq. 1; InstaFlow, arXiv 2309.06380).

    ``X = z / (alpha + sigma)`` is ``s x0 + (1 - s) eps`` with ``s = alpha / (alpha + sigma)``, and moves with
    the velocity ``x0 - eps``. At the schedule's last timestep s is 0: z is the noise itself, as the student
    was taught; from any later start the steps are DDIM's.
    """
    schedule = denoiser.schedule
    z = x0 = noise
    for now, following in pairs(timesteps):
        x0 = denoiser(z, at(z, now), states, guidance=guidance, null_states=null_states)
        if following is None:
            break
        alpha, sigma = schedule.at(at(z, now))
        time, point, eps = alpha / (alpha + sigma), z / (alpha + sigma), z
        if now == schedule.terminal:
            time, point = 0 * time, z
        else:
            eps = schedule.to_eps(z, x0, at(z, now))
        next_alpha, next_sigma = schedule.at(at(z, following))
        next_time = next_alpha / (next_alpha + next_sigma)
        z = (point + (next_time - time) * (x0 - eps)) * (next_alpha + next_sigma)
    return x0


def pairs(timesteps: list[int]) -> Iterator[tuple[int, int | None]]:
    """Return (now, following) for each timestep; nothing follows the last."""
    return zip(timesteps, [*timesteps[1:], None], strict=True)


def at(z: torch.Tensor, timestep: int) -> torch.Tensor:
    """Return the timestep (b,) of every latent, where the latents are."""
    import torch

    return torch.full((len(z),), timestep, device=z.device)


def fresh_noise(z: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Draw noise like some latents: on the generator's device, so that it is the same on every other."""
    import torch

    device = "cpu" if generator is None else generator.device
    return torch.randn(z.shape, generator=generator, device=device).to(z)


def step(denoiser: Denoiser, z: torch.Tensor, x0: torch.Tensor, now: int, following: int) -> torch.Tensor:
    """Return z at the following timestep, with the noise that z holds now."""
    eps = denoiser.schedule.to_eps(z, x0, at(z, now))
    alpha, sigma = denoiser.schedule.at(at(z, following))
    return alpha * x0 + sigma * eps
