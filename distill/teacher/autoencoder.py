"""Train the autoencoder of the embedded world: 64 px pictures <-> 8 x 8 x 16 latents.

A standard diffusers ``AutoencoderKL`` (no patches, so no block edges). Loss: L1 + squared error + a little
distance of frozen ImageNet features; latents are perturbed in training, so that the decoder forgives small
errors of the denoiser, and whitened at the end, which folds exactly into the 1 x 1 (post-)quantization
convolutions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from flashbulb.distill.loop import LoopConfig, OnStep, State, StepRng, run_loop
from flashbulb.distill.precision import autocast

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

    from flashbulb.distill.data.stickers import Sticker, Stickers


class AutoencoderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Architecture and training of the autoencoder."""

    channels: tuple[int, ...] = (16, 32, 64, 128)
    """Width of each resolution, from pixels to latents."""
    latent_channels: int = 16
    """Channels of the latent."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1.5e-3
    """Peak learning rate of Adam."""
    latent_noise: float = 0.08
    """Standard deviation of the noise added to unit-variance latents in training."""
    prior_weight: float = 1e-2
    """Weight of the pull of the latents' mean and variance towards 0 and 1."""
    feature_weight: float = 0.2
    """Weight of the distance of frozen features; 0 trains without them."""
    loop: LoopConfig = LoopConfig(steps=2400, batch=32, ema=0.995)
    """Length and bookkeeping."""


def build(config: AutoencoderConfig, size: int) -> AutoencoderKL:
    """Make an untrained autoencoder."""
    from diffusers import AutoencoderKL

    depth = len(config.channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        sample_size=size,
        block_out_channels=config.channels,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def train(
    config: AutoencoderConfig, data: Stickers, out: Path, *, on_step: OnStep | None = None
) -> AutoencoderKL:
    """Train (or go on training) in ``out`` and return the whitened autoencoder with averaged weights."""
    import torch

    from flashbulb.distill.data.stickers import draw_each
    from flashbulb.distill.descent import Descent
    from flashbulb.distill.features import efficientnet

    torch.manual_seed(config.loop.seed)
    descend = Descent(config.loop)
    model = build(config, data.size).to(descend.device)
    features = efficientnet("lite0").to(descend.device) if config.feature_weight else None
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.01
    )
    state = State({"vae": model}, {"vae": optimizer}, averaged=("vae",))
    pool = data.select("train")

    def update(step: int, rng: StepRng) -> dict[str, float]:
        pictures = data.composite(*draw_each(pool, rng.each(descend.batch))).to(descend.device)
        parts = losses(model, pictures, config, rng, features)
        descend(parts["loss"], optimizer)
        return {k: v.item() for k, v in parts.items()}

    run_loop(config.loop, state, update, out, descend, on_step=on_step)
    state.use_ema()
    whiten(model, data)
    return model.eval().requires_grad_(False)


def losses(
    model: AutoencoderKL,
    pictures: torch.Tensor,
    config: AutoencoderConfig,
    rng: StepRng,
    features: torch.nn.Module | None,
) -> dict[str, torch.Tensor]:
    """Return the loss and its parts for pictures (b, 3, h, w) in [-1, 1]."""
    with autocast(pictures.device):
        latents = model.encode(pictures).latent_dist.mean
        noise = rng.normal(latents.shape)
        decoded = model.decode(latents + config.latent_noise * noise).sample.float()
    latents = latents.float()
    prior = latents.mean((0, 2, 3)).square().mean() + (latents.std((0, 2, 3)) - 1).square().mean()
    parts = reconstruction(decoded, pictures, config.feature_weight, features) | {"prior": prior}
    return parts | {"loss": parts["loss"] + config.prior_weight * prior}


def reconstruction(
    decoded: torch.Tensor, pictures: torch.Tensor, feature_weight: float, features: torch.nn.Module | None
) -> dict[str, torch.Tensor]:
    """Return the loss of decoded against real pictures (b, 3, h, w) in [-1, 1], and its parts."""
    from flashbulb.distill.features import distance

    error = decoded - pictures
    parts = {"l1": error.abs().mean(), "mse": error.square().mean()}
    loss = parts["l1"] + parts["mse"]
    if features is not None:
        parts["features"] = distance(features, decoded, pictures)
        loss = loss + feature_weight * parts["features"]
    return parts | {"loss": loss}


def whiten(model: AutoencoderKL, data: Stickers) -> None:
    """Give every latent channel mean 0 and variance 1; the decoder undoes it exactly."""
    import torch

    latents = encode_all(model, data, data.select("train"), "white")
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    with torch.no_grad():
        half = model.config["latent_channels"]
        model.quant_conv.weight[:half] /= std[:, None, None, None]
        model.quant_conv.bias[:half] = (model.quant_conv.bias[:half] - mean) / std
        model.post_quant_conv.bias += model.post_quant_conv.weight[:, :, 0, 0] @ mean
        model.post_quant_conv.weight *= std[None, :, None, None]


def encode_all(
    model: AutoencoderKL, data: Stickers, stickers: list[Sticker], background: str
) -> torch.Tensor:
    """Return the latents (n, c, h, w) of stickers on one background."""
    import torch

    batches = [stickers[i : i + 64] for i in range(0, len(stickers), 64)]
    with torch.inference_mode():
        pictures = (data.composite(batch, [background] * len(batch)) for batch in batches)
        return torch.cat([model.encode(p.to(model.device)).latent_dist.mean for p in pictures])
