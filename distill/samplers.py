"""Samplers with one signature: ``sampler(denoiser, noise, states, timesteps, ...) -> x0``.

All start from pure noise (scale 1) at the first timestep, so they are equal at one step. Between steps they
differ in how much of the old noise they keep: all of it (``ddim``, ``dpm_solver``, ``flow_euler``: see
`ode_samplers`), some (``euler_ancestral``, ``meng``) or none (``renoise``).

diffusers' Euler schedulers begin elsewhere with trailing timesteps: at ``sigma_max`` instead of
``sqrt(1 + sigma_max^2)`` in units of sigma / alpha, which is ``sigma_T`` (0.9977) times our noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from flashbulb.distill.ode_samplers import at, ddim, dpm_solver, flow_euler, fresh_noise, pairs, step
from flashbulb.distill.timesteps import sgm, trailing

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.denoiser import Denoiser

__all__ = [
    "SAMPLERS",
    "Sampler",
    "SamplerName",
    "ddim",
    "dpm_solver",
    "euler_ancestral",
    "flow_euler",
    "meng",
    "renoise",
    "sgm",
    "trailing",
]

SamplerName = Literal["ddim", "euler", "dpm_solver", "flow_euler", "euler_ancestral", "renoise", "meng"]


class Sampler(Protocol):
    """What every sampler looks like."""

    def __call__(
        self,
        denoiser: Denoiser,
        noise: torch.Tensor,
        states: torch.Tensor,
        timesteps: list[int],
        *,
        guidance: float = 1.0,
        null_states: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Return x0 (b, c, h, w) from noise (b, c, h, w) and text states (b, n, d)."""
        ...


def euler_ancestral(
    denoiser: Denoiser,
    noise: torch.Tensor,
    states: torch.Tensor,
    timesteps: list[int],
    *,
    guidance: float = 1.0,
    null_states: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Sample with ancestral Euler steps, eta = 1 (the sampler of SDXL-Turbo).

    With s = sigma / alpha, a step from s to s' keeps noise of ``s' s' / s`` and draws the rest anew, so that
    the total is s' again.
    """
    z = x0 = noise
    for now, following in pairs(timesteps):
        x0 = denoiser(z, at(z, now), states, guidance=guidance, null_states=null_states)
        if following is not None:
            eps = denoiser.schedule.to_eps(z, x0, at(z, now))
            alpha, sigma = denoiser.schedule.at(at(z, now))
            next_alpha, next_sigma = denoiser.schedule.at(at(z, following))
            old, new = sigma / alpha, next_sigma / next_alpha
            down, up = new * new / old, new * (1 - (new / old) ** 2).sqrt()
            z = next_alpha * (x0 + down * eps + up * fresh_noise(z, generator))
    return x0


def renoise(
    denoiser: Denoiser,
    noise: torch.Tensor,
    states: torch.Tensor,
    timesteps: list[int],
    *,
    guidance: float = 1.0,
    null_states: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Sample by predicting x0 and noising it anew (consistency sampling, arXiv 2303.01469, algorithm 1)."""
    z = x0 = noise
    for now, following in pairs(timesteps):
        x0 = denoiser(z, at(z, now), states, guidance=guidance, null_states=null_states)
        if following is not None:
            alpha, sigma = denoiser.schedule.at(at(z, following))
            z = alpha * x0 + sigma * fresh_noise(z, generator)
    return x0


def meng(
    denoiser: Denoiser,
    noise: torch.Tensor,
    states: torch.Tensor,
    timesteps: list[int],
    *,
    guidance: float = 1.0,
    null_states: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Sample with the stochastic sampler of guided distillation (arXiv 2210.03142, section 4).

    Each step is a DDIM step of twice the length, followed by noise back up to the next timestep; the last one
    goes to x0.
    """
    z = x0 = noise
    ends = [*timesteps[2:], None, None]
    for (now, following), end in zip(pairs(timesteps), ends[: len(timesteps)], strict=True):
        x0 = denoiser(z, at(z, now), states, guidance=guidance, null_states=null_states)
        if following is None:
            break
        alpha, sigma = denoiser.schedule.at(at(z, following))
        low = x0 if end is None else step(denoiser, z, x0, now, end)
        low_alpha, low_sigma = (1.0, 0.0) if end is None else denoiser.schedule.at(at(z, end))
        ratio = alpha / low_alpha
        spread = (sigma**2 - ratio**2 * low_sigma**2).sqrt()
        z = ratio * low + spread * fresh_noise(z, generator)
    return x0


SAMPLERS: dict[SamplerName, Sampler] = {
    "ddim": ddim,
    "euler": ddim,
    "dpm_solver": dpm_solver,
    "flow_euler": flow_euler,
    "euler_ancestral": euler_ancestral,
    "renoise": renoise,
    "meng": meng,
}
