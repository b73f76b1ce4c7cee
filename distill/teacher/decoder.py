"""Train a finished autoencoder's decoder further: its latents, and every denoiser of them, stay valid."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from flashbulb.distill.data.words import BACKGROUNDS
from flashbulb.distill.loop import LoopConfig, OnStep, State, StepRng, run_loop
from flashbulb.distill.precision import autocast
from flashbulb.distill.teacher.autoencoder import reconstruction

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

    from flashbulb.distill.data.stickers import Stickers


class DecoderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Further training of the decoder alone."""

    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    """Peak learning rate of AdamW."""
    latent_noise: Annotated[float, msgspec.Meta(ge=0)] = 0.1
    """Standard deviation of the noise on the latents: the decoder learns to forgive a denoiser's errors."""
    feature_weight: Annotated[float, msgspec.Meta(ge=0)] = 0.4
    """Weight of the distance of frozen features; 0 trains without them."""
    loop: LoopConfig = LoopConfig(steps=3000, batch=32, ema=0.998)
    """Length and bookkeeping."""


def train(
    config: DecoderConfig,
    vae: AutoencoderKL,
    latents: torch.Tensor,
    data: Stickers,
    out: Path,
    *,
    on_step: OnStep | None = None,
) -> None:
    """Train (or go on training) ``vae``'s decoder in place, with ``out`` as the run folder.

    Args:
        config: length and weights of the loss.
        vae: the autoencoder; its encoder is left alone.
        latents: (backgrounds, n, c, h, w), as ``denoiser.all_latents`` returns them.
        data: the stickers; only their train split is used.
        out: run folder.
        on_step: progress callback.
    """
    import torch

    from flashbulb.distill.data.stickers import draw_each
    from flashbulb.distill.descent import Descent
    from flashbulb.distill.features import efficientnet

    descend, pool, names = Descent(config.loop), data.select("train"), list(BACKGROUNDS)
    vae.to(descend.device)
    features = efficientnet("lite0").to(descend.device) if config.feature_weight else None
    trained = torch.nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
    trained.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(
        trained.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    state = State({"decoder": trained}, {"decoder": optimizer}, averaged=("decoder",))

    def update(step: int, rng: StepRng) -> dict[str, float]:
        stickers, backgrounds = draw_each(pool, rng.each(descend.batch))
        pictures = data.composite(stickers, backgrounds).to(descend.device)
        grounds = [names.index(b) for b in backgrounds]
        z = latents[grounds, [s.index for s in stickers]].float().to(descend.device)
        z = z + config.latent_noise * rng.normal(z.shape)
        with autocast(z.device):
            decoded = vae.decode(z).sample.float()
        parts = reconstruction(decoded, pictures, config.feature_weight, features)
        descend(parts["loss"], optimizer)
        return {k: v.item() for k, v in parts.items()}

    run_loop(config.loop, state, update, out, descend, on_step=on_step)
    state.use_ema()
    trained.eval().requires_grad_(False)
