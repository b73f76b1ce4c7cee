"""Classifier-free guidance under one convention, and its embedding for networks that take it as an input.

Two conventions are in use. diffusers and Imagen (arXiv 2205.11487) write ``null + g (cond - null)``; Meng et
al. (arXiv 2210.03142) and LCM (arXiv 2310.04378) write ``cond + w (cond - null)``. They name the same thing
with ``g = 1 + w``. Here a *scale* is always g; w appears inside the embedding only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, cast

import msgspec

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel

    from flashbulb.distill.loop import StepRng

EMBEDDING_WIDTH = 256
"""Width of the embedding that guided students take, as in diffusers' LCM checkpoints."""


class ScaleRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Guidance scales g that a student is trained for; drawn evenly."""

    low: Annotated[float, msgspec.Meta(ge=1)] = 1.0
    high: Annotated[float, msgspec.Meta(ge=1)] = 5.0

    def __post_init__(self) -> None:
        if self.high < self.low:
            raise ValueError(f"wanted low <= high, got {self.low} and {self.high}")

    def draw(self, count: int, rng: StepRng) -> torch.Tensor:
        """Return scales (b,)."""
        return self.low + (self.high - self.low) * rng.uniform(count)


def embed_scale(scale: torch.Tensor, width: int) -> torch.Tensor:
    """Return the embedding (b, width) of scales g (b,): sines and cosines of ``1000 w``, with ``w = g - 1``.

    Equal to diffusers' ``get_guidance_scale_embedding(g - 1, width)``.
    """
    import torch

    half = width // 2
    frequencies = torch.exp(-torch.arange(half, device=scale.device) * (math.log(10000.0) / (half - 1)))
    angles = 1000 * (scale.float() - 1)[:, None] * frequencies
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, width % 2))


def with_scale_input(unet: torch.nn.Module) -> torch.nn.Module:
    """Return the UNet with an input for the guidance scale that, at first, changes nothing."""
    import torch
    from diffusers import UNet2DConditionModel

    settings = cast("UNet2DConditionModel", unet).config
    if settings["time_cond_proj_dim"] is not None:
        return unet
    config = {k: v for k, v in settings.items() if not k.startswith("_")}
    wider = UNet2DConditionModel.from_config(config | {"time_cond_proj_dim": EMBEDDING_WIDTH})
    missing, unexpected = wider.load_state_dict(unet.state_dict(), strict=False)
    if unexpected or set(missing) != {"time_embedding.cond_proj.weight"}:
        raise ValueError(f"wanted the UNet's own weights and one more, got {missing} and {unexpected}")
    torch.nn.init.zeros_(wider.time_embedding.cond_proj.weight)
    return wider.requires_grad_(next(unet.parameters()).requires_grad)


def fold_scale(unet: torch.nn.Module, scale: float) -> torch.nn.Module:
    """Return the UNet without its input for the guidance scale, which is g from now on; the given one stays.

    The embedding e of the scale enters the time embedding's first layer as ``W (t + C e) + b``, so a fixed
    one is a constant of its bias: ``W t + (W C e + b)``.

    Raises:
        ValueError: for a network without that input, or a scale below 1.
    """
    import torch

    settings = cast("UNet2DConditionModel", unet).config
    width = int(settings["time_cond_proj_dim"] or 0)
    if not width or scale < 1:
        raise ValueError(
            "wanted a network with an input for the guidance scale (time_cond_proj_dim, as guided-1 or lcm "
            f"make it) and a scale of at least 1; got an input {width} wide and the scale {scale}"
        )
    config = {k: v for k, v in settings.items() if not k.startswith("_")}
    state = dict(unet.state_dict())
    inward = state.pop("time_embedding.cond_proj.weight").double()
    first, bias = (state[f"time_embedding.linear_1.{name}"] for name in ("weight", "bias"))
    shift = first.double() @ (inward @ embed_scale(torch.tensor([scale]), width)[0].double())
    state["time_embedding.linear_1.bias"] = (bias.double() + shift).to(bias.dtype)
    folded = type(unet).from_config(config | {"time_cond_proj_dim": None})  # type: ignore[attr-defined]
    folded.load_state_dict(state)
    made: torch.nn.Module = folded.to(bias.dtype).train(unet.training)
    return made.requires_grad_(next(unet.parameters()).requires_grad)
