"""What a denoiser is told: prompts of any checkpoint, encoded into one tensor of text states.

Stable Diffusion 1 and 2 have one text encoder, and its last states are all. Stable Diffusion XL (arXiv
2307.01952) has two: its states are both encoders' penultimate ones side by side, and its time embedding also
takes the second encoder's projection and six sizes. These ride along as one row more, so that whoever
repeats, mixes or caches states need not know of them; `split_states` takes them off in front of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from flashbulb.distill.checkpoint import CheckpointError

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.checkpoint import Checkpoint

    Encode = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    """``encode(ids) -> (states (b, n, d), pooled (b, d))``."""

SIZES = 6
"""Height and width of the original, top and left of the crop, height and width of the picture."""


def token_ids(checkpoint: Checkpoint, prompts: list[str]) -> torch.Tensor:
    """Return the padded token ids (b, n) of prompts; those of a second tokenizer follow, (b, 2 n)."""
    import torch

    names = ("tokenizer", "tokenizer_2") if checkpoint.is_sdxl else ("tokenizer",)
    tokens = [
        checkpoint.tokenizer(name)(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=checkpoint.text_length,
            return_tensors="pt",
        ).input_ids
        for name in names
    ]
    return torch.cat(tokens, 1)


def text_function(checkpoint: Checkpoint, device: torch.device | str = "cpu") -> Encode:
    """Return ``encode(ids) -> (states (b, n, d), pooled (b, d))`` over text encoders, frozen on ``device``.

    An SDXL checkpoint's states have one row more than tokens, and its pooled text ends in zeros.

    Raises:
        CheckpointError: for an SDXL checkpoint whose states are too narrow for that row.
    """
    import torch

    first = checkpoint.load("text_encoder").to(device)
    if not checkpoint.is_sdxl:

        def encode(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.no_grad():
                out = first(ids.to(device))
            return out.last_hidden_state, out.pooler_output

        return encode

    _check_widths(checkpoint)
    second, size = checkpoint.load("text_encoder_2").to(device), checkpoint.image_size

    def encode_both(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        own, other = ids.to(device).chunk(2, 1)
        with torch.no_grad():
            one, two = first(own, output_hidden_states=True), second(other, output_hidden_states=True)
        hidden, pooled = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], 2), two.text_embeds
        sizes = pooled.new_tensor([size, size, 0, 0, size, size]).expand(len(pooled), -1)
        row = _widen(torch.cat([pooled, sizes], 1), hidden.shape[2])
        return torch.cat([hidden, row[:, None]], 1), _widen(pooled, hidden.shape[2])

    return encode_both


def null_states(checkpoint: Checkpoint, encode: Encode) -> torch.Tensor:
    """Return the states (1, n, d) of no prompt, which guidance leads away from.

    They are the empty prompt's; SDXL checkpoints that say ``force_zeros_for_empty_prompt``, as most do, have
    zeros instead, and the sizes stay.
    """
    states: torch.Tensor = encode(token_ids(checkpoint, [""]))[0].clone()
    if checkpoint.is_sdxl and checkpoint.index.get("force_zeros_for_empty_prompt", True):
        pooled = added_width(checkpoint.config("unet"))
        states[:, :-1], states[:, -1, :pooled] = 0, 0
    return states


def added_width(config: Mapping[str, Any]) -> int:
    """Return the width of the pooled text that a UNet of this configuration adds to its time; 0 for none."""
    if config.get("addition_embed_type") != "text_time":
        return 0
    sizes = SIZES * int(config["addition_time_embed_dim"])
    return int(config["projection_class_embeddings_input_dim"]) - sizes


def split_states(states: torch.Tensor, pooled: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return (text states (b, tokens, d), ``added_cond_kwargs``); the latter is empty where nothing rides.

    Args:
        states: what `text_function` encodes.
        pooled: `added_width` of the UNet.
    """
    if not pooled:
        return states, {}
    row = states[:, -1]
    return states[:, :-1], {"text_embeds": row[:, :pooled], "time_ids": row[:, pooled : pooled + SIZES]}


def _widen(rows: torch.Tensor, width: int) -> torch.Tensor:
    """Pad rows (b, w) with zeros to (b, width)."""
    import torch

    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]))


def _check_widths(checkpoint: Checkpoint) -> None:
    encoders = [checkpoint.config(name) for name in ("text_encoder", "text_encoder_2")]
    width, pooled = sum(int(e["hidden_size"]) for e in encoders), int(encoders[1]["projection_dim"])
    told = added_width(checkpoint.config("unet"))
    if told != pooled or pooled + SIZES > width:
        raise CheckpointError(
            f"wanted a UNet that adds the second text encoder's projection ({pooled} wide) and {SIZES} sizes "
            f"to its time, both within the {width} of the text states; got a UNet that takes {told}"
        )
