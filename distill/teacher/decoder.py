"""Train a finished autoencoder's decoder further: its latents, and every denoiser of them, stay valid."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from flashbulb.distill.data.words import BACKGROUNDS
from flashbulb.distill.loop import LoopConfig, OnStep, Rank, State, StepRng, run_loop
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

    from flashbulb.distill.distributed import average_gradients
    from flashbulb.distill.features import efficientnet

    rank, pool, names = Rank.current(), data.select("train"), list(BACKGROUNDS)
    features = efficientnet("lite0") if config.feature_weight else None
    trained = torch.nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
    trained.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(
        trained.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    state = State({"decoder": trained}, {"decoder": optimizer}, averaged=("decoder",))

    def update(step: int, rng: StepRng) -> dict[str, float]:
        count = config.loop.batch // rank.count
        stickers = rng.python.choices(pool, k=count)
        grounds = rng.python.choices(range(len(names)), k=count)
        pictures = data.composite(stickers, [names[g] for g in grounds])
        z = latents[grounds, [s.index for s in stickers]].float()
        z = z + config.latent_noise * torch.randn(z.shape, generator=rng.torch)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = vae.decode(z).sample.float()
        parts = reconstruction(decoded, pictures, config.feature_weight, features)
        optimizer.zero_grad()
        parts["loss"].backward()
        average_gradients(trained.parameters())
        norm = torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        if torch.isfinite(norm):
            optimizer.step()
        return {k: v.item() for k, v in parts.items()}

    run_loop(config.loop, state, update, out, on_step=on_step)
    state.use_ema()
    trained.eval().requires_grad_(False)
