"""UFOGen (Xu et al., arXiv 2311.09257): a diffusion GAN whose critic looks at pictures noised a little less.

The student turns z_t into x0; real and drawn x0 are both noised to an earlier time t', and the critic, a copy
of the teacher's own encoder, tells them apart there. A reconstruction term ties x0 to the real picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from flashbulb.distill.objectives.base import Batch, Learner, Objective, World

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.critic_unet import UnetCritic
    from flashbulb.distill.loop import StepRng

Weight = Annotated[float, msgspec.Meta(ge=0)]


class UfoGen(Objective, frozen=True, tag="ufogen"):
    """UFOGen: adversarial on noised latents plus reconstruction; no teacher evaluation at all."""

    student_steps: Annotated[int, msgspec.Meta(ge=1)] = 4
    """Timesteps of the student, evenly from the last; t' is one of them earlier."""
    conditioning_timestep: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Timestep that the student is told for pure noise; default: the last. Its schedule ends there."""
    reconstruction: Weight = 1.0
    """Weight of the squared error of x0."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-4
    """Peak learning rate of the student's AdamW."""
    critic_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-4
    """Peak learning rate of the critic's Adam."""

    @property
    def last_timestep(self) -> int | None:
        """The timestep of pure noise."""
        return self.conditioning_timestep

    def learner(self, world: World, *, batch: int, steps: int) -> Learner:
        """Return the learner: student and critic, stepped in turn."""
        import torch

        from flashbulb.distill.critic_unet import UnetCritic

        critic, student = UnetCritic(world.teacher.unet).to(world.device), world.student.unet
        optimizers: dict[str, torch.optim.Optimizer] = {
            "student": torch.optim.AdamW(
                student.parameters(), lr=self.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
            ),
            "critic": torch.optim.Adam(critic.parameters(), lr=self.critic_rate, betas=(0.0, 0.99)),
        }

        def update(step: int, rng: StepRng) -> dict[str, float]:
            real = world.real(batch, rng)
            share, drawn = self.draw(world, real, rng)
            loss, stats = self.student_loss(world, critic, real, share, drawn, rng)
            world.descend(loss, optimizers["student"])
            critic_loss, more = self.critic_loss(world, critic, real, share, drawn.detach(), rng)
            world.descend(critic_loss, optimizers["critic"])
            return stats | more | {"loss": loss.item()}

        return Learner(modules={"student": student, "critic": critic}, optimizers=optimizers, update=update)

    def draw(self, world: World, real: Batch, rng: StepRng) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the times (b,), as shares of the schedule, and the student's x0 (b, c, h, w) there."""
        count = len(real.latents)
        share = (rng.integers(0, self.student_steps, count) + 1) / self.student_steps
        t, _, _ = world.student.schedule.at_share(share)
        eps = rng.normal(real.latents.shape)
        z = world.student.schedule.add_noise(real.latents, eps, t, zero_snr=True)
        return share, world.student(z, t, real.states)

    def student_loss(
        self,
        world: World,
        critic: UnetCritic,
        real: Batch,
        share: torch.Tensor,
        drawn: torch.Tensor,
        rng: StepRng,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the non-saturating loss plus reconstruction; the critic is only read."""
        import torch

        critic.requires_grad_(False)
        logits = critic(*self.earlier(world, drawn, share, rng), real.states)
        critic.requires_grad_(True)
        adversarial = torch.nn.functional.softplus(-logits).mean()
        squared = (drawn - real.latents).square().mean()
        stats = {"adv": adversarial.item(), "squared": squared.item()}
        return adversarial + self.reconstruction * squared, stats

    def critic_loss(
        self,
        world: World,
        critic: UnetCritic,
        real: Batch,
        share: torch.Tensor,
        drawn: torch.Tensor,
        rng: StepRng,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the logistic loss of real and drawn latents, both noised to the earlier time."""
        from torch.nn.functional import softplus

        on_real = critic(*self.earlier(world, real.latents, share, rng), real.states)
        on_fake = critic(*self.earlier(world, drawn, share, rng), real.states)
        loss = softplus(-on_real).mean() + softplus(on_fake).mean()
        stats = {"real_logit": on_real.mean().item(), "fake_logit": on_fake.mean().item()}
        return loss, stats | {"critic": loss.item()}

    def earlier(
        self, world: World, x0: torch.Tensor, share: torch.Tensor, rng: StepRng
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x0 noised to one student step before ``share``, and that timestep (0 when clean)."""
        t, alpha, sigma = world.student.schedule.at_share(share - 1 / self.student_steps)
        return alpha * x0 + sigma * rng.normal(x0.shape), t.clamp(min=0)
