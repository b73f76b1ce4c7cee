"""Guided distillation in two stages (Meng et al., arXiv 2210.03142).

Stage one: one network learns what the teacher says with classifier-free guidance at any scale, and takes the
scale as an input. Stage two: progressive distillation of that network, for all scales at once; its teacher is
the checkpoint that stage one wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from flashbulb.distill.guidance import ScaleRange, with_scale_input
from flashbulb.distill.objectives.base import Learner, Objective, World, simple_learner
from flashbulb.distill.objectives.halving import Grid, Rounds, halving_learner
from flashbulb.distill.targets import snr_weight

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.loop import StepRng


class GuidedFirst(Objective, frozen=True, tag="guided-1"):
    """Guided distillation, stage one: match the guided teacher with one evaluation, at any scale."""

    scales: ScaleRange = ScaleRange()
    """Guidance scales to learn."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 2e-4
    """Peak learning rate of AdamW."""

    def prepare(self, unet: torch.nn.Module) -> torch.nn.Module:
        """Give the student an input for the guidance scale."""
        return with_scale_input(unet)

    def learner(self, world: World, *, batch: int, steps: int) -> Learner:
        """Return the learner of stage one."""
        return simple_learner(world, self.learning_rate, lambda rng, step: (self.loss(world, batch, rng), {}))

    def loss(self, world: World, batch: int, rng: StepRng) -> torch.Tensor:
        """Return the weighted squared error of x0 against the guided teacher (eq. 5)."""
        import torch

        schedule, real = world.student.schedule, world.real(batch, rng)
        t = rng.integers(0, schedule.terminal + 1, batch)
        scale, eps = self.scales.draw(batch, rng), rng.normal(real.latents.shape)
        z = schedule.add_noise(real.latents, eps, t, zero_snr=True)
        with torch.no_grad():
            target = world.teacher(z, t, real.states, guidance=scale, null_states=world.null_states)
        error = (world.student(z, t, real.states, guidance=scale) - target).square()
        return (snr_weight(*schedule.at(t)) * error).mean()


class GuidedSecond(Objective, frozen=True, tag="guided-2"):
    """Guided distillation, stage two: halve the steps of what stage one wrote, at all scales."""

    rounds: Rounds = Rounds()
    """Student steps of the first and last round."""
    scales: ScaleRange = ScaleRange()
    """Guidance scales to keep."""
    grid: Grid = "deterministic"
    """Steps to learn: those of ``ddim``, those of the stochastic sampler ``meng``, which are twice as long
    but for the last, or both in turn."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 2e-4
    """Peak learning rate of AdamW."""

    def learner(self, world: World, *, batch: int, steps: int) -> Learner:
        """Return the learner of all rounds.

        Raises:
            ValueError: when the teacher has no input for the guidance scale.
        """
        if not world.teacher.scale_width:
            raise ValueError(
                "guided-2 wants a teacher with an input for the guidance scale, got one without; "
                "distil it with guided-1 first, and give that student as the teacher"
            )

        def guide(first: bool, rng: StepRng) -> tuple[dict[str, Any], dict[str, Any]]:
            options = {"guidance": self.scales.draw(batch, rng)}
            return options, options

        sizes = {"batch": batch, "steps": steps}
        return halving_learner(world, self.rounds, self.learning_rate, **sizes, guide=guide, grid=self.grid)
