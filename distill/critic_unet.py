"""A critic made of a denoiser's own encoder: it looks at noised latents, as in diffusion GANs.

UFOGen (arXiv 2311.09257) and latent adversarial distillation (LADD, arXiv 2403.12015) start their critics
from the teacher, which has already learned what matters at every noise level.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from flashbulb.distill.precision import autocast
from flashbulb.distill.text import added_width, split_states

if TYPE_CHECKING:
    from torch import Tensor


class UnetCritic(nn.Module):
    """The down path and middle of a UNet, trained, with a head on the middle's map: logits (b, n)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        source: Any = copy.deepcopy(unet)
        self.time_proj, self.time_embedding = source.time_proj, source.time_embedding
        self.added_width = added_width(source.config)
        self.add_time_proj = getattr(source, "add_time_proj", None)
        self.add_embedding = getattr(source, "add_embedding", None)
        self.conv_in, self.down_blocks, self.mid_block = source.conv_in, source.down_blocks, source.mid_block
        width = int(source.config["block_out_channels"][-1])
        groups = int(source.config["norm_num_groups"])
        self.head = nn.Sequential(
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 1),
            nn.SiLU(),
            nn.Conv2d(width, 1, 1),
        )
        self.requires_grad_(True)

    def forward(self, z: Tensor, t: Tensor, states: Tensor) -> Tensor:
        """Return the logits of noised latents (b, c, h, w) at timesteps (b,) with text states (b, n, d)."""
        with autocast(z.device):
            states, added = split_states(states, self.added_width)
            emb = self.time_embedding(self.time_proj(t).to(z.dtype))
            if self.add_embedding is not None and self.add_time_proj is not None:
                sizes = self.add_time_proj(added["time_ids"].flatten()).view(len(z), -1)
                emb = emb + self.add_embedding(torch.cat([added["text_embeds"], sizes], 1))
            hidden = self.conv_in(z)
            for block in self.down_blocks:
                attends = getattr(block, "has_cross_attention", False)
                hidden, _ = block(hidden, emb, **({"encoder_hidden_states": states} if attends else {}))
            hidden = self.mid_block(hidden, emb, encoder_hidden_states=states)
            logits: Tensor = self.head(hidden)
        return logits.float().flatten(1)
