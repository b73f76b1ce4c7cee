"""CFG-aware step distillation (SnapFusion, Li et al., arXiv 2306.00980, section 4.2).

One student step learns two teacher steps; with some probability both sides are guided, so that the student
keeps its quality under classifier-free guidance, which it still pays for when it draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from flashbulb.distill.guidance import ScaleRange
from flashbulb.distill.objectives.base import Learner, Objective, World, simple_learner
from flashbulb.distill.targets import told, two_step_target

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.loop import StepRng


class CfgAware(Objective, frozen=True, tag="cfg-aware"):
    """SnapFusion: guided and plain step distillation in turn, and a denoising loss of equal size."""

    student_steps: Annotated[int, msgspec.Meta(ge=1)] = 8
    """Steps that the student will draw with; the teacher takes twice as many."""
    probability: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    """Share of optimizer steps with guidance on both sides."""
    scales: ScaleRange = ScaleRange(low=2.0, high=5.0)
    """Guidance scales of those."""
    denoise: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    """Size of the denoising loss relative to the distillation loss (the paper's dynamic gamma)."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-4
    """Peak learning rate of AdamW."""

    def learner(self, world: World, *, batch: int, steps: int) -> Learner:
        """Return the learner."""
        return simple_learner(world, self.learning_rate, lambda rng, step: self.loss(world, batch, rng))

    def loss(self, world: World, batch: int, rng: StepRng) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of v (eq. 8 to 11) and its parts."""
        import torch

        schedule, real = world.student.schedule, world.real(batch, rng)
        share = (rng.integers(0, self.student_steps, batch) + 1) / self.student_steps
        t, _, sigma = schedule.at_share(share)
        eps = rng.normal(real.latents.shape)
        z = schedule.add_noise(real.latents, eps, t, zero_snr=True)
        options: dict[str, Any] = {}
        if rng.shared.random() < self.probability:
            options = {"guidance": self.scales.draw(batch, rng), "null_states": world.null_states}
        with torch.no_grad():
            target = two_step_target(
                told(world.teacher, real.states, options), schedule, z, share, self.student_steps
            )
        # An error of x0 at a known z is sigma times the error of v.
        drawn = world.student(z, t, real.states, **options)
        distill = ((drawn - target) / sigma).square().mean()
        plain = world.student(z, t, real.states) if options else drawn
        denoise = ((plain - real.latents) / sigma).square().mean()
        gamma = self.denoise * (distill / denoise.clamp(min=1e-8)).detach()
        stats = {"distill": distill.item(), "denoise": denoise.item(), "guided": float(bool(options))}
        return distill + gamma * denoise, stats
