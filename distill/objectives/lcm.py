"""Latent consistency distillation (LCM, Luo et al., arXiv 2310.04378)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from flashbulb.distill.guidance import ScaleRange, with_scale_input
from flashbulb.distill.objectives.base import Learner, Objective, World, simple_learner
from flashbulb.distill.sharding import whole_state
from flashbulb.distill.targets import ddim_step, told

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.denoiser import Denoiser, Schedule
    from flashbulb.distill.loop import StepRng

DATA_SPREAD, TIMESTEP_SCALE = 0.5, 10.0


class Lcm(Objective, frozen=True, tag="lcm"):
    """LCM: all points of a guided trajectory map to its start; the averaged student is the target."""

    grid: Annotated[int, msgspec.Meta(ge=2)] = 50
    """Timesteps of the trajectory; the teacher's DDIM step leads from one to the next."""
    scales: ScaleRange = ScaleRange()
    """Guidance scales; the student takes the scale as an input."""
    target_ema: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.95
    """Decay of the averaged student that makes the targets."""
    distance: Literal["huber", "l2"] = "huber"
    """How student and target are compared: pseudo-Huber ``sqrt(d^2 + c^2) - c``, or the squared error."""
    huber: Annotated[float, msgspec.Meta(gt=0)] = 0.001
    """Width c of the pseudo-Huber distance."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 2e-4
    """Peak learning rate of AdamW."""

    def prepare(self, unet: torch.nn.Module) -> torch.nn.Module:
        """Give the student an input for the guidance scale."""
        return with_scale_input(unet)

    def learner(self, world: World, *, batch: int, steps: int) -> Learner:
        """Return the learner; the averaged student is part of its state."""
        import copy

        import torch

        from flashbulb.distill.denoiser import Denoiser

        target = Denoiser(copy.deepcopy(world.student.unet).requires_grad_(False), world.student.schedule)

        def averaged() -> None:
            with torch.no_grad():
                ours, theirs = target.unet.state_dict(), whole_state(world.student.unet)
                torch._foreach_lerp_(list(ours.values()), list(theirs.values()), 1 - self.target_ema)

        return simple_learner(
            world,
            self.learning_rate,
            lambda rng, step: (self.loss(world, target, batch, rng), {}),
            also={"target": target.unet},
            after=averaged,
        )

    def loss(self, world: World, target: Denoiser, batch: int, rng: StepRng) -> torch.Tensor:
        """Return the consistency loss (eq. 13 to 15)."""
        import torch

        schedule, real = world.student.schedule, world.real(batch, rng)
        share = (rng.integers(0, self.grid, batch) + 1) / self.grid
        before = share - 1 / self.grid
        t, _, _ = schedule.at_share(share)
        scale, eps = self.scales.draw(batch, rng), rng.normal(real.latents.shape)
        z = schedule.add_noise(real.latents, eps, t, zero_snr=True)
        with torch.no_grad():
            guided = {"guidance": scale, "null_states": world.null_states}
            earlier = ddim_step(told(world.teacher, real.states, guided), schedule, z, share, before)
            goal = consistency(target, earlier, before, real.states, scale)
        error = (consistency(world.student, z, share, real.states, scale) - goal).square()
        if self.distance == "l2":
            return error.mean()
        return ((error + self.huber**2).sqrt() - self.huber).mean()


def consistency(
    denoiser: Denoiser, z: torch.Tensor, share: torch.Tensor, states: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Return f(z, t), the start (b, c, h, w) of the trajectory; it is z itself at the clean end (eq. 9)."""
    t, _, _ = denoiser.schedule.at_share(share)
    skip, out = boundary(denoiser.schedule, t)
    return skip * z + out * denoiser(z, t.clamp(min=0), states, guidance=scale)


def boundary(schedule: Schedule, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (c_skip, c_out), each (b, 1, 1, 1), for timesteps (b,); (1, 0) at the clean end, t = -1."""
    scaled = TIMESTEP_SCALE * (t + 1).clamp(min=0).float().view(-1, 1, 1, 1)
    total = scaled**2 + DATA_SPREAD**2
    return DATA_SPREAD**2 / total, scaled / total.sqrt()
