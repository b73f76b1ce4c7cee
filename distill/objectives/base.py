"""What an objective gets and gives: a world of frozen and trained networks in, one update function out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import msgspec

from flashbulb.distill.descent import Descent
from flashbulb.distill.precision import autocast

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

    from flashbulb.distill.denoiser import Denoiser
    from flashbulb.distill.loop import StepRng


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Real data of one step: latents (b, c, h, w), text states (b, n, d), pooled text (b, d)."""

    latents: torch.Tensor
    states: torch.Tensor
    pooled: torch.Tensor


class Pairs(msgspec.Struct, frozen=True, kw_only=True):
    """Noise and the teacher's own multi-step picture of it, with the text that went in."""

    noise: torch.Tensor
    endpoint: torch.Tensor
    states: torch.Tensor


class PairSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Teacher pictures to cache: how many, in how many DDIM steps, with which guidance."""

    count: int
    steps: int
    guidance: float

    @property
    def evaluations(self) -> int:
        """Pictures that the teacher looks at for all pairs."""
        return self.count * self.steps * (1 if self.guidance == 1 else 2)


def overflows_fp16(vae: torch.nn.Module) -> bool:
    """Tell whether an autoencoder is marked as one whose activations float16 cannot hold, as SDXL's is."""
    return bool(cast("AutoencoderKL", vae).config.get("force_upcast", False))


def plain_descent() -> Descent:
    """Return the descent of one process, whose batch is whole."""
    from flashbulb.distill.loop import LoopConfig

    return Descent(LoopConfig())


class World(msgspec.Struct, frozen=True, kw_only=True):
    """The networks that a distillation sees and its sources of data."""

    student: Denoiser
    teacher: Denoiser
    vae: AutoencoderKL
    null_states: torch.Tensor
    real: Callable[[int, StepRng], Batch]
    """``real(count, rng)`` draws captioned latents."""
    negative_states: torch.Tensor | None = None
    """States of the negative prompt (1, n, d), when the objective asks for one."""
    pairs: Callable[[int, StepRng], Pairs] | None = None
    """``pairs(count, rng)`` draws cached teacher pictures, when the objective asks for them."""
    descend: Descent = msgspec.field(default_factory=plain_descent)
    """``descend(loss, optimizer)`` steps down a loss."""

    decode_batch: int = 0
    """Pictures decoded at a time; 0 decodes all at once."""

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.null_states.device

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return pictures (b, 3, h, w), about [-1, 1], of unscaled-space latents; differentiable."""
        import torch

        with autocast(latents.device, wide=overflows_fp16(self.vae)):
            if not self.decode_batch:
                return self._decode(latents)
            return torch.cat([self._decode_again(few) for few in latents.split(self.decode_batch)])

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latents / self.vae.config["scaling_factor"]).sample.float()

    def _decode_again(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode, keep nothing for the backward pass, and decode again there."""
        from torch.utils.checkpoint import checkpoint

        return checkpoint(self._decode, latents, use_reentrant=False, preserve_rng_state=False)


class Learner(msgspec.Struct, frozen=True, kw_only=True):
    """The trained state of an objective and its update."""

    modules: dict[str, torch.nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    update: Callable[[int, StepRng], dict[str, float]]


class Objective(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A way to turn a teacher into a student."""

    def check(self) -> None:
        """Refuse, by a ValueError, what is not to be had here; called before anything is written."""

    def prepare(self, unet: torch.nn.Module) -> torch.nn.Module:
        """Return the network that the student starts from; most objectives leave it as it is."""
        return unet

    def learner(self, world: World, *, batch: int, steps: int) -> Learner:
        """Return the learner for micro-batches of ``batch`` pictures on this process."""
        raise NotImplementedError

    @property
    def wanted_pairs(self) -> PairSpec | None:
        """What to cache of the teacher before the training, if anything."""
        return None

    @property
    def negative_prompt(self) -> str | None:
        """A prompt for what pictures shall not be, when the objective wants its states."""
        return None

    @property
    def last_timestep(self) -> int | None:
        """The timestep that the student is told for pure noise; None is the last of its schedule."""
        return None


def untrained(unet: torch.nn.Module) -> torch.nn.Module:
    """Return a network of the same architecture with random weights (seeded by torch's global seed)."""
    made: torch.nn.Module = type(unet).from_config(unet.config)  # type: ignore[attr-defined]
    return made.eval()


def simple_learner(
    world: World,
    learning_rate: float,
    loss: Callable[[StepRng, int], tuple[torch.Tensor, dict[str, float]]],
    *,
    also: dict[str, torch.nn.Module] | None = None,
    after: Callable[[], None] | None = None,
) -> Learner:
    """Return the learner of an objective with one loss and one optimizer.

    Args:
        world: its student is trained with AdamW.
        learning_rate: peak rate.
        loss: ``loss(rng, step)`` -> (loss, statistics).
        also: further modules that a resumed run needs.
        after: called after each optimizer step.
    """
    import torch

    student = world.student.unet
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )

    def update(step: int, rng: StepRng) -> dict[str, float]:
        value, stats = loss(rng, step)
        stepped = world.descend(value, optimizer) is not None
        if stepped and after is not None:
            after()
        return stats | {"loss": value.item()}

    modules = {"student": student} | (also or {})
    return Learner(modules=modules, optimizers={"student": optimizer}, update=update)
