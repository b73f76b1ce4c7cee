"""InstaFlow (Liu et al., arXiv 2309.06380): straighten the teacher's flow, then distil it into one step.

A rectified flow moves along ``X = s x1 + (1 - s) x0`` from noise x0 to picture x1. Divided by its length, X
is ``alpha x1 + sigma x0`` of the usual schedule with ``alpha / sigma = s / (1 - s)``, and the velocity is
``x1 - x0``, the difference of the two predictions that any denoiser makes (arXiv 2410.07303). So network and
checkpoint keep their form, an Euler step of the flow is a DDIM step, and diffusers opens the student.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from flashbulb.distill.objectives.base import Learner, Objective, Pairs, PairSpec, World, simple_learner

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.denoiser import Schedule
    from flashbulb.distill.loop import StepRng

Weight = Annotated[float, msgspec.Meta(ge=0)]


class _Paired(Objective, frozen=True):
    """What both stages share: cached pairs of noise and the picture that the teacher's flow makes of it."""

    pairs: Annotated[int, msgspec.Meta(gt=0)] = 4096
    """Teacher pictures to cache."""
    pair_steps: Annotated[int, msgspec.Meta(gt=0)] = 25
    """DDIM steps of a cached picture; the paper takes as many of DPM-Solver."""
    pair_guidance: Annotated[float, msgspec.Meta(ge=1)] = 3.0
    """Guidance of a cached picture; 1 for a straightened teacher, which has it in its weights."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 2e-4
    """Peak learning rate of AdamW."""

    @property
    def wanted_pairs(self) -> PairSpec | None:
        """The pairs of the reflow."""
        return PairSpec(count=self.pairs, steps=self.pair_steps, guidance=self.pair_guidance)


class Reflow(_Paired, frozen=True, tag="reflow"):
    """InstaFlow, first stage: learn the straight line between each noise and its picture."""

    def learner(self, world: World, *, batch: int, steps: int) -> Learner:
        """Return the learner."""
        return simple_learner(world, self.learning_rate, lambda rng, step: (self.loss(world, batch, rng), {}))

    def loss(self, world: World, batch: int, rng: StepRng) -> torch.Tensor:
        """Return the squared error of the velocity at an even time (eq. 2)."""
        import torch

        schedule, drawn = world.student.schedule, draw(world, batch, rng)
        t = even_times(schedule, batch, rng)
        alpha, sigma = schedule.at(t)
        z = schedule.add_noise(drawn.endpoint, drawn.noise, t, zero_snr=True)
        error = world.student(z, t, drawn.states) - drawn.endpoint
        # At a known z the error of x1 - x0 is (1 + alpha / sigma) times the error of x1.
        weight = torch.where((t == schedule.terminal).view(-1, 1, 1, 1), 1.0, 1 + alpha / sigma)
        return (weight * error).square().mean()


class InstaFlow(_Paired, frozen=True, tag="instaflow"):
    """InstaFlow, second stage: one step from noise to the picture of the straightened teacher."""

    conditioning_timestep: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Timestep that the student is told for pure noise; default: the last. Its schedule ends there."""
    perceptual: Weight = 0.2
    """Weight of the distance of frozen features of decoded pictures, in the second half of the training."""

    @property
    def last_timestep(self) -> int | None:
        """The timestep of pure noise."""
        return self.conditioning_timestep

    def learner(self, world: World, *, batch: int, steps: int) -> Learner:
        """Return the learner."""
        from flashbulb.distill.features import efficientnet

        network = efficientnet("lite0").to(world.device) if self.perceptual else None

        def loss(rng: StepRng, step: int) -> tuple[torch.Tensor, dict[str, float]]:
            return self.loss(world, batch, rng, network if 2 * step >= steps else None)

        return simple_learner(world, self.learning_rate, loss)

    def loss(
        self, world: World, batch: int, rng: StepRng, network: torch.nn.Module | None
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the squared error of the one-step picture, then also its perceptual distance (eq. 6)."""
        import torch

        from flashbulb.distill.features import distance

        drawn = draw(world, batch, rng)
        t = torch.full((batch,), world.student.schedule.terminal, device=drawn.noise.device)
        latents = world.student(drawn.noise, t, drawn.states)
        squared = (latents - drawn.endpoint).square().mean()
        if network is None:
            return squared, {"squared": squared.item()}
        with torch.no_grad():
            wanted = world.decode(drawn.endpoint)
        perceptual = distance(network, world.decode(latents), wanted)
        stats = {"squared": squared.item(), "perceptual": perceptual.item()}
        return squared + self.perceptual * perceptual, stats


def draw(world: World, batch: int, rng: StepRng) -> Pairs:
    """Draw cached pairs.

    Raises:
        ValueError: when none were cached.
    """
    if world.pairs is None:
        raise ValueError("wanted cached teacher pictures, got none")
    return world.pairs(batch, rng)


def even_times(schedule: Schedule, count: int, rng: StepRng) -> torch.Tensor:
    """Return timesteps (b,) whose flow times ``alpha / (alpha + sigma)`` are even in 0..1."""
    import torch

    times = schedule.alphas / (schedule.alphas + schedule.sigmas)  # falls with t
    return (len(times) - torch.searchsorted(times.flip(0), rng.uniform(count)) - 1).clamp(
        0, schedule.terminal
    )
