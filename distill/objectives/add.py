"""Adversarial Diffusion Distillation (arXiv 2311.17042): a critic and a frozen teacher, one step."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from flashbulb.distill.critic import CriticConfig
from flashbulb.distill.objectives.base import Batch, Learner, Objective, PairSpec, World, untrained
from flashbulb.distill.targets import Weighting, nfsd_x0, teacher_x0, time_weight

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.augment import Changes
    from flashbulb.distill.critic import Critic
    from flashbulb.distill.loop import StepRng

log = logging.getLogger(__name__)

Weight = Annotated[float, msgspec.Meta(ge=0)]
UNWANTED = (
    "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"
)


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What a critic compares in one step."""

    real: torch.Tensor
    """Real pictures (b, 3, h, w)."""
    fake: list[torch.Tensor]
    """Features of the student's pictures."""
    condition: torch.Tensor
    """What the logits are projected on, (b, d)."""
    changes: Changes | None
    """The augmentation that the student's pictures went through, and the real ones shall."""


class Nfsd(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What noise-free score distillation takes besides the text (arXiv 2310.17590)."""

    scale: Weight = 7.5
    """Factor s of the direction that the text gives; it stands in for ``teacher_guidance``."""
    threshold: Annotated[int, msgspec.Meta(ge=0)] = 200
    """Teacher timestep from which the negative prompt is asked; below it the empty one says enough."""
    negative_prompt: str = UNWANTED
    """What pictures shall not be."""


class Add(Objective, frozen=True, tag="add"):
    """ADD: hinge critic on frozen features plus score distillation in pixel space, N = 4 student timesteps.

    Beside the paper's two terms a third keeps small students from collapsing onto few pictures: regression of
    the one-step output onto the teacher's own multi-step picture of the same noise (``anchor``); 0 switches
    it off.
    """

    adv: Weight = 0.1
    """Weight of the adversarial term; 0 is the control without a critic."""
    distill: Weight = 2.5
    """Weight lambda of the score distillation (eq. 1)."""
    anchor: Weight = 1.0
    """Weight of the regression onto cached teacher pictures, in latent space."""
    anchor_share: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    """Pairs drawn for the anchor, as a multiple of the batch; they need no decoding and are cheap."""
    warmup: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.6
    """First share of the steps that trains the anchor alone."""
    start: Literal["pretrained", "random"] = "pretrained"
    """What the student starts from: the checkpoint's weights, or none (the paper's table 1 c)."""
    timesteps: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)] = (249, 499, 749, 999)
    """Student timesteps, in any order; the last one gets pure noise (zero terminal SNR)."""
    conditioning_timestep: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Timestep that the student is told for pure noise instead, for instance 399, where an error of the noise
    weighs 1.2 in x0 and not 14.6 as at 999. Its schedule ends there; later ``timesteps`` fall away, with a
    warning."""
    terminal_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    """Share of the batch at the last timestep, the one that a one-step generator uses."""
    teacher_range: tuple[float, float] = (0.02, 0.98)
    """Range of the teacher's timestep, as shares of the schedule."""
    teacher_guidance: Annotated[float, msgspec.Meta(ge=1)] = 2.0
    """Classifier-free guidance of the distillation target."""
    teacher_steps: Annotated[int, msgspec.Meta(ge=1)] = 1
    """DDIM steps from the teacher's timestep to its x0."""
    weighting: Weighting = "exp"
    """c(t) of the distillation: ``exp`` is alpha_t; ``sds`` makes its gradient that of DreamFusion; ``nfsd``,
    which the paper's final models use, puts a residual without drawn noise in its place."""
    nfsd: Nfsd = Nfsd()
    """What ``weighting: nfsd`` takes."""
    space: Literal["pixel", "latent"] = "pixel"
    """Where the distillation compares student and teacher."""
    r1: Weight = 1e-5
    """Weight gamma of R1 at the head inputs."""
    mismatch: Weight = 0.5
    """Weight of real pictures with another picture's condition as fakes; 0 in the paper."""
    critic: CriticConfig = CriticConfig()
    """What the critic looks through, and what it is told."""
    critic_steps: Annotated[int, msgspec.Meta(ge=1)] = 1
    """Critic steps for each student step, on pictures of their own after the first."""
    critic_every: Annotated[int, msgspec.Meta(ge=1)] = 1
    """Student steps for each turn of the critic, which then takes its ``critic_steps``."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 4e-4
    """Peak learning rate of the student's AdamW."""
    critic_rate: Annotated[float, msgspec.Meta(gt=0)] = 2.5e-4
    """Peak learning rate of the critic's Adam."""
    pairs: Annotated[int, msgspec.Meta(ge=0)] = 4096
    """Teacher pictures cached for the anchor."""
    pair_steps: Annotated[int, msgspec.Meta(gt=0)] = 12
    """DDIM steps of a cached teacher picture."""
    pair_guidance: Annotated[float, msgspec.Meta(ge=1)] = 3.0
    """Guidance of a cached teacher picture."""

    def __post_init__(self) -> None:
        if self.weighting == "nfsd" and self.teacher_steps != 1:
            raise ValueError(f"weighting nfsd takes one teacher step, got teacher_steps {self.teacher_steps}")
        low, high = self.teacher_range
        if not 0 <= low < high <= 1:
            raise ValueError(f"wanted a teacher_range of 0 <= low < high <= 1, got {low} and {high}")
        if min(self.timesteps) < 0:
            raise ValueError(f"wanted timesteps of 0 and more, got {list(self.timesteps)}")
        msgspec.structs.force_setattr(self, "timesteps", tuple(sorted(self.timesteps)))

    @property
    def negative_prompt(self) -> str | None:
        """The negative prompt of nfsd."""
        return self.nfsd.negative_prompt if self.distill and self.weighting == "nfsd" else None

    @property
    def last_timestep(self) -> int:
        """The timestep of pure noise: the student's schedule ends there."""
        return self.timesteps[-1] if self.conditioning_timestep is None else self.conditioning_timestep

    def check(self) -> None:
        """Refuse features of the critic that are not here."""
        from flashbulb.distill.critic_features import check_features

        if self.adv:
            check_features(self.critic.features)
            if self.critic.image_features and self.critic.condition in ("image", "both"):
                check_features(self.critic.image_features)

    def prepare(self, unet: torch.nn.Module) -> torch.nn.Module:
        """Return the network that the student starts from."""
        return unet if self.start == "pretrained" else untrained(unet)

    @property
    def wanted_pairs(self) -> PairSpec | None:
        """The teacher pictures of the anchor."""
        if not self.anchor:
            return None
        return PairSpec(count=self.pairs, steps=self.pair_steps, guidance=self.pair_guidance)

    def learner(self, world: World, *, batch: int, steps: int) -> Learner:
        """Return the learner: student and critic, their optimizers, and the alternating update."""
        import torch

        from flashbulb.distill.critic import Critic

        if dropped := [t for t in self.timesteps if t > self.last_timestep]:
            log.warning("the schedule ends at %d: timesteps %s fall away", self.last_timestep, dropped)
        critic = Critic(world.null_states.shape[-1], self.critic).to(world.device) if self.adv else None
        student = world.student.unet
        modules: dict[str, torch.nn.Module] = {"student": student}
        optimizers: dict[str, torch.optim.Optimizer] = {
            "student": torch.optim.AdamW(
                student.parameters(), lr=self.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
            )
        }
        if critic is not None:
            modules["critic"] = critic.heads
            optimizers["critic"] = torch.optim.Adam(
                critic.heads.parameters(), lr=self.critic_rate, betas=(0.0, 0.99)
            )

        def update(step: int, rng: StepRng) -> dict[str, float]:
            if self.anchor and step < self.warmup * steps:
                loss, stats = self.anchor_loss(world, batch, rng)
                world.descend(loss, optimizers["student"])
                return stats | {"loss": loss.item()}
            turns = 0 if step % self.critic_every else self.critic_steps
            return self._both(world, critic, optimizers, batch, turns, rng)

        return Learner(modules=modules, optimizers=optimizers, update=update)

    def _both(
        self,
        world: World,
        critic: Critic | None,
        optimizers: dict[str, torch.optim.Optimizer],
        batch: int,
        turns: int,
        rng: StepRng,
    ) -> dict[str, float]:
        import torch

        real = world.real(batch, rng)

        # Student step: adversarial + distillation + anchor; the critic is only read.
        latents, t = self.student_output(world, real, rng)
        looked = critic is not None or (self.distill and self.space == "pixel")
        pictures = world.decode(latents) if looked else latents  # where nobody looks, none are decoded
        loss, stats = torch.zeros((), device=world.device), dict[str, float]()
        if self.distill:
            distill, stats = self.distill_loss(world, latents, pictures, real, rng)
            loss = self.distill * distill
        if critic is not None:
            seen = self.look(world, critic, real, pictures, t, rng)
            adversarial = self.adversarial_loss(critic, seen)
            loss = loss + self.adv * adversarial
            stats["adv"] = adversarial.item()
        if self.anchor:
            anchor, more = self.anchor_loss(world, batch, rng)
            loss, stats = loss + anchor, stats | more
        world.descend(loss, optimizers["student"])

        # Critic steps: hinge on real (as the decoder draws it), fake and mismatched pairs, and R1.
        if critic is not None:
            for turn in range(turns):
                if turn:
                    seen = self._another(world, critic, batch, rng)
                stats |= self._critic_step(world, critic, seen, optimizers["critic"])
        return stats | {"loss": loss.item()}

    def _another(self, world: World, critic: Critic, batch: int, rng: StepRng) -> Seen:
        """Return what the critic compares on further pictures; the student only draws them."""
        import torch

        real = world.real(batch, rng)
        with torch.no_grad():
            latents, t = self.student_output(world, real, rng)
            return self.look(world, critic, real, world.decode(latents), t, rng)

    def _critic_step(
        self, world: World, critic: Critic, seen: Seen, optimizer: torch.optim.Optimizer
    ) -> dict[str, float]:
        loss, stats = self.critic_loss(critic, seen)
        world.descend(loss, optimizer)
        return stats

    def look(
        self,
        world: World,
        critic: Critic,
        real: Batch,
        pictures: torch.Tensor,
        t: torch.Tensor,
        rng: StepRng,
    ) -> Seen:
        """Return what the critic compares: the real pictures, the fakes' features and their condition.

        Real pictures are the decoder's own, so that its fingerprint tells nothing.
        """
        import torch

        with torch.no_grad():
            genuine = world.decode(real.latents)
        changes = critic.draw_changes(len(pictures), rng)
        return Seen(
            real=genuine,
            fake=critic.features(pictures, changes),
            condition=critic.condition(real.pooled, genuine, t == world.student.schedule.terminal),
            changes=changes,
        )

    def adversarial_loss(self, critic: Critic, seen: Seen) -> torch.Tensor:
        """Return L_adv^G (eq. 2): minus the logits of the student's pictures; the critic is only read."""
        with critic.only_read():
            return critic.reduce(-part for part in critic.logits(seen.fake, seen.condition))

    def student_output(self, world: World, real: Batch, rng: StepRng) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise real latents to the student's timesteps, pure noise at the last; return x0 and timesteps."""
        import torch

        count, last = len(real.latents), self.last_timestep
        earlier = [t for t in self.timesteps if t < last] or [last]
        choice = torch.tensor(earlier, device=real.latents.device)[rng.integers(0, len(earlier), count)]
        terminal = rng.uniform(count) < self.terminal_share
        t = torch.where(terminal, last, choice)
        eps = rng.normal(real.latents.shape)
        noisy = world.student.schedule.add_noise(real.latents, eps, t, zero_snr=True)
        return world.student(noisy, t, real.states), t

    def distill_loss(
        self, world: World, latents: torch.Tensor, pictures: torch.Tensor, real: Batch, rng: StepRng
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return L_distill (eq. 4): c(t) |x_student - x_teacher(sg(z_t))|^2.

        The mean over pictures, channels and places: lambda is for that, whatever the size of the pictures.
        """
        import torch

        schedule = world.teacher.schedule
        low, high = (round(share * schedule.terminal) for share in self.teacher_range)
        t = rng.integers(low, high + 1, len(latents))
        eps = rng.normal(latents.shape)
        with torch.no_grad():
            noisy = schedule.add_noise(latents.detach(), eps, t, zero_snr=False)
            target = self.target(world, noisy, t, latents, real)
            wanted = world.decode(target) if self.space == "pixel" else target
        drawn = pictures if self.space == "pixel" else latents
        loss = (time_weight(self.weighting, *schedule.at(t)) * (drawn - wanted).square()).mean()
        return loss, {"distill": loss.item()}

    def target(
        self, world: World, noisy: torch.Tensor, t: torch.Tensor, latents: torch.Tensor, real: Batch
    ) -> torch.Tensor:
        """Return the latents (b, c, h, w) that the teacher wants instead of the student's.

        Raises:
            ValueError: for nfsd without the states of its negative prompt.
        """
        if self.weighting == "nfsd":
            if world.negative_states is None:
                raise ValueError("weighting nfsd wants the states of its negative prompt, got none")
            states = (real.states, world.null_states, world.negative_states)
            scale, threshold = self.nfsd.scale, self.nfsd.threshold
            return nfsd_x0(world.teacher, noisy, t, latents, states, scale=scale, threshold=threshold)
        told = {"guidance": self.teacher_guidance, "null_states": world.null_states}
        return teacher_x0(world.teacher, noisy, t, real.states, self.teacher_steps, told)

    def anchor_loss(self, world: World, batch: int, rng: StepRng) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the regression of the one-step output onto the teacher's picture of the same noise."""
        import torch

        if world.pairs is None:
            raise ValueError(
                "the anchor wants cached teacher pictures, got none; set anchor to 0 or cache pairs"
            )
        drawn = world.pairs(max(1, round(batch * self.anchor_share)), rng)
        t = torch.full((len(drawn.noise),), self.last_timestep, device=drawn.noise.device)
        error = (world.student(drawn.noise, t, drawn.states) - drawn.endpoint).square().mean()
        return self.anchor * error, {"anchor": error.item()}

    def critic_loss(self, critic: Critic, seen: Seen) -> tuple[torch.Tensor, dict[str, float]]:
        """Return L_adv^D (eq. 3): hinge on real and fake logits, mismatched pairs as fakes, gamma R1."""
        import torch

        from flashbulb.distill.critic import hinge, mismatched, r1

        pixels, at_pixels = seen.real.detach(), bool(self.r1) and critic.config.r1 == "pixel"
        with torch.set_grad_enabled(at_pixels):
            features = critic.features(pixels.requires_grad_(at_pixels), seen.changes)
        if not at_pixels:
            features = [f.requires_grad_() for f in features]
        read = critic.read(features)
        other, wrong = mismatched(seen.condition)
        on_real, on_other = (critic.project(read, c) for c in (seen.condition, other))
        on_fake = critic.logits([f.detach() for f in seen.fake], seen.condition)
        penalty = r1(on_real, [pixels] if at_pixels else features) if self.r1 else pixels.new_zeros(())
        loss = critic.reduce(hinge(on_real, 1)) + critic.reduce(hinge(on_fake, -1)) + self.r1 * penalty
        if self.mismatch:
            loss = loss + self.mismatch * critic.reduce(wrong * part for part in hinge(on_other, -1))
        return loss, {
            "critic": loss.item(),
            "real_logit": torch.cat(on_real, 1).mean().item(),
            "fake_logit": torch.cat(on_fake, 1).mean().item(),
            "r1": penalty.item(),
        }
