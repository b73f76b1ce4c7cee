"""The nouns that every stage shares: a component of a pipeline and the shape of a tensor."""

from __future__ import annotations

from typing import Literal

import msgspec

ComponentName = Literal["text_encoder", "text_encoder_2", "unet", "vae_decoder"]
"""Component names are diffusers' folder names, but for the decoder, which is half of ``vae``."""

COMPONENTS: tuple[ComponentName, ...] = ("text_encoder", "unet", "vae_decoder")
"""The components of a Stable Diffusion checkpoint; SDXL adds ``text_encoder_2``."""

DType = Literal["float32", "float16", "int64", "int32", "uint8"]


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Name, dtype and fixed shape of one input or output."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
