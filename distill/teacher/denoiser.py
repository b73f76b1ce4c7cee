"""Train the teacher's denoiser: a latent diffusion UNet with v-prediction (arXiv 2202.00512, 2112.10752).

Latents of every training sticker on every background are computed once; text states on the fly, because
captions vary. A tenth of the captions is dropped for classifier-free guidance (arXiv 2207.12598).
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from flashbulb.distill.data.words import BACKGROUNDS
from flashbulb.distill.denoiser import suit_attention
from flashbulb.distill.loop import LoopConfig, OnStep, Rank, State, StepRng, run_loop
from flashbulb.distill.precision import autocast
from flashbulb.distill.schedule import alphas_cumprod
from flashbulb.distill.teacher.autoencoder import encode_all

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizerFast

    from flashbulb.distill.data.stickers import Stickers

SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}
"""Stable Diffusion's schedule, with v-prediction."""


class DenoiserConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Architecture and training of the UNet."""

    channels: tuple[int, ...] = (96, 128, 160)
    """Width of each resolution; each has self- and cross-attention."""
    layers: int = 1
    """ResNet blocks of each resolution."""
    head_width: int = 32
    """Channels of one attention head."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1.2e-3
    """Peak learning rate of AdamW."""
    drop_caption: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.1
    """Share of captions replaced by the empty one."""
    iconic_weight: Annotated[float, msgspec.Meta(ge=1)] = 3.0
    """How much more often a sticker of an iconic concept is drawn."""
    loop: LoopConfig = LoopConfig(steps=12000, batch=64, ema=0.999, warmup=200)
    """Length and bookkeeping."""


def build(
    config: DenoiserConfig, *, latent_channels: int, latent_size: int, text_width: int
) -> UNet2DConditionModel:
    """Make an untrained UNet."""
    from diffusers import UNet2DConditionModel

    depth = len(config.channels)
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * depth,
        up_block_types=("CrossAttnUpBlock2D",) * depth,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        cross_attention_dim=text_width,
        attention_head_dim=tuple(c // config.head_width for c in config.channels),
        norm_num_groups=32,
    )


def all_latents(vae: AutoencoderKL, data: Stickers, file: Path) -> torch.Tensor:
    """Return the latents (backgrounds, n, c, h, w), fp16, of every sticker; cached in ``file``."""
    import torch
    from safetensors.torch import load_file, save_file

    if not file.is_file():
        if Rank.current().index == 0:
            rows = [encode_all(vae, data, data.items, background) for background in BACKGROUNDS]
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({"latents": torch.stack(rows).half()}, file.with_suffix(".partial"))
            file.with_suffix(".partial").rename(file)
        if Rank.current().count > 1:
            torch.distributed.barrier()
    return load_file(file)["latents"]


def train(
    config: DenoiserConfig,
    parts: tuple[torch.Tensor, CLIPTextModel, CLIPTokenizerFast],
    data: Stickers,
    out: Path,
    *,
    on_step: OnStep | None = None,
    start: dict[str, torch.Tensor] | None = None,
) -> UNet2DConditionModel:
    """Train (or go on training) in ``out`` and return the UNet with averaged weights.

    Args:
        config: architecture and training.
        parts: the latents of :func:`all_latents`, the frozen text encoder and its tokenizer.
        data: the stickers; only their train split is used.
        out: run folder.
        on_step: progress callback.
        start: weights to start from instead of random ones.
    """
    import torch

    from flashbulb.distill.descent import Descent

    latents, text, _ = parts
    descend = Descent(config.loop)
    torch.manual_seed(config.loop.seed)
    model = build(
        config,
        latent_channels=latents.shape[2],
        latent_size=latents.shape[-1],
        text_width=text.config.hidden_size,
    )
    if start is not None:
        model.load_state_dict(start)
    text.to(descend.device)
    model.to(descend.device)
    suit_attention(model)
    if config.loop.checkpointing:
        model.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    state = State({"unet": model}, {"unet": optimizer}, averaged=("unet",))
    draw = Draw(config, parts, data)
    products = torch.from_numpy(alphas_cumprod(SCHEDULER)).float().to(descend.device)

    def update(step: int, rng: StepRng) -> dict[str, float]:
        loss = v_loss(model, *draw(descend.batch, rng), products, rng)
        norm = descend(loss, optimizer)
        return {"loss": loss.item()} | ({} if norm is None else {"grad_norm": norm})

    run_loop(config.loop, state, update, out, descend, on_step=on_step)
    state.use_ema()
    return model.eval().requires_grad_(False)


class Draw:
    """Draws captioned latents: stickers of iconic concepts more often, a share of the captions empty."""

    def __init__(
        self,
        config: DenoiserConfig,
        parts: tuple[torch.Tensor, CLIPTextModel, CLIPTokenizerFast],
        data: Stickers,
    ) -> None:
        self.latents, self.text, self.tokenizer = parts
        self.data, self.drop_caption = data, config.drop_caption
        self.pool = data.select("train")
        iconic = {s.index for s in data.select("train", iconic=True)}
        weights = (config.iconic_weight if s.index in iconic else 1.0 for s in self.pool)
        self.weights = list(itertools.accumulate(weights))

    def __call__(self, count: int, rng: StepRng) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents (b, c, h, w) and text states (b, n, d)."""
        import torch

        rows = [self._row(own) for own in rng.each(count)]
        captions, grounds, stickers = (list(column) for column in zip(*rows, strict=True))
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        with torch.no_grad(), autocast(self.text.device):
            states = self.text(tokens.input_ids.to(self.text.device)).last_hidden_state
        return self.latents[grounds, stickers].float().to(states.device), states

    def _row(self, rng: random.Random) -> tuple[str, int, int]:
        """Draw one caption, the number of its background and that of its sticker."""
        ground, names = rng.randrange(len(BACKGROUNDS)), list(BACKGROUNDS)
        (sticker,) = rng.choices(self.pool, cum_weights=self.weights)
        (caption,) = self.data.captions([sticker], [names[ground]], rng)
        return "" if rng.random() < self.drop_caption else caption, ground, sticker.index


def v_loss(
    model: UNet2DConditionModel,
    x0: torch.Tensor,
    states: torch.Tensor,
    products: torch.Tensor,
    rng: StepRng,
) -> torch.Tensor:
    """Return the mean squared error of v (arXiv 2202.00512, app. D) for latents x0 (b, c, h, w).

    Timesteps are stratified over the batch, which lowers the variance of the gradient.
    """
    t = (rng.stratified(len(x0)) * len(products)).long()
    alpha, sigma = (f[t].sqrt().view(-1, 1, 1, 1) for f in (products, 1 - products))
    noise = rng.normal(x0.shape)
    with autocast(x0.device):
        v = model(alpha * x0 + sigma * noise, t, states).sample.float()
    return (v - (alpha * noise - sigma * x0)).square().mean()
