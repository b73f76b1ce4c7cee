"""Denoisers behind one face: whatever the network predicts (eps, v, x0), outside all is x0.

Conversions follow ``z_t = alpha_t x0 + sigma_t eps`` and ``v = alpha_t eps - sigma_t x0`` (arXiv 2202.00512,
app. D).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashbulb.distill.guidance import embed_scale
from flashbulb.distill.precision import autocast
from flashbulb.distill.schedule import alphas_cumprod, prediction_of
from flashbulb.distill.text import added_width, split_states

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel


class Schedule:
    """Alphas and sigmas of a checkpoint as float32 tensors of shape (T,)."""

    def __init__(self, scheduler_config: dict[str, Any], device: torch.device | str = "cpu") -> None:
        import torch

        products = torch.from_numpy(alphas_cumprod(scheduler_config))
        self.alphas = products.sqrt().float().to(device)
        self.sigmas = (1 - products).sqrt().float().to(device)
        self.prediction = prediction_of(scheduler_config)

    @property
    def terminal(self) -> int:
        """The last timestep, T - 1."""
        return len(self.alphas) - 1

    def at(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (alpha_t, sigma_t), each (b, 1, 1, 1), for timesteps (b,)."""
        return self.alphas[t].view(-1, 1, 1, 1), self.sigmas[t].view(-1, 1, 1, 1)

    def at_share(self, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (t, alpha, sigma) at shares (b,) of the whole schedule: 1 is its last timestep, 0 is clean.

        The clean end has t = -1, alpha = 1 and sigma = 0.
        """
        import torch

        t = (share * len(self.alphas)).round().long() - 1
        alphas = torch.cat([self.alphas, self.alphas.new_ones(1)])
        sigmas = torch.cat([self.sigmas, self.sigmas.new_zeros(1)])
        return t, alphas[t].view(-1, 1, 1, 1), sigmas[t].view(-1, 1, 1, 1)

    def add_noise(
        self, x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor, *, zero_snr: bool
    ) -> torch.Tensor:
        """Return z_t; with ``zero_snr`` it is exactly ``eps`` at the terminal timestep (arXiv 2305.08891)."""
        import torch

        alpha, sigma = self.at(t)
        if zero_snr:
            last = (t == self.terminal).view(-1, 1, 1, 1)
            alpha, sigma = torch.where(last, 0.0, alpha), torch.where(last, 1.0, sigma)
        return alpha * x0 + sigma * eps

    def to_x0(self, z: torch.Tensor, out: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return x0 from the network's output; alpha stays finite even where the input had none."""
        alpha, sigma = self.at(t)
        if self.prediction == "epsilon":
            return (z - sigma * out) / alpha
        if self.prediction == "v_prediction":
            return alpha * z - sigma * out
        return out

    def to_eps(self, z: torch.Tensor, x0: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the noise that ``z`` holds besides ``x0``."""
        alpha, sigma = self.at(t)
        return (z - alpha * x0) / sigma


SMALL_LATENT = 16


def suit_attention(unet: UNet2DConditionModel) -> None:
    """Give a small UNet plain attention on a CPU, where the fused kernel's backward is a fifth of a step.

    Large latents keep the fused kernel, whose memory grows linearly with their positions.
    """
    from diffusers.models.attention_processor import AttnProcessor

    if unet.device.type == "cpu" and int(unet.config["sample_size"]) <= SMALL_LATENT:
        unet.set_attn_processor(AttnProcessor())


class Denoiser:
    """A UNet that returns x0: ``denoiser(z, t, states)``, with classifier-free guidance on request."""

    def __init__(self, unet: torch.nn.Module, schedule: Schedule) -> None:
        self.unet, self.schedule = unet, schedule
        config = getattr(unet, "config", {})
        self.scale_width = int(config.get("time_cond_proj_dim") or 0)
        self.added_width = added_width(config)

    def __call__(
        self,
        z: torch.Tensor,
        t: torch.Tensor,
        states: torch.Tensor,
        *,
        guidance: float | torch.Tensor = 1.0,
        null_states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict x0 (b, c, h, w) from z (b, c, h, w), t (b,), text states (b, tokens, width).

        A network with an input for the guidance scale (``time_cond_proj_dim``) is told it and runs once; any
        other one runs with and without the text.

        Args:
            z: noisy latents.
            t: timesteps.
            states: text states.
            guidance: diffusers' scale g, one or (b,): ``null + g (cond - null)``; 1 is no guidance.
            null_states: states of the empty prompt, (1, tokens, width); needed when g is not 1 and the
                network has no input for it.
        """
        import torch

        with autocast(z.device):
            if self.scale_width:
                scale = torch.as_tensor(guidance, dtype=torch.float32, device=z.device).expand(len(z))
                embedding = embed_scale(scale, self.scale_width)
                out = self._run(z, t, states, timestep_cond=embedding)
                return self.schedule.to_x0(z, out, t)
            if not isinstance(guidance, torch.Tensor) and guidance == 1.0:
                return self.schedule.to_x0(z, self._run(z, t, states), t)
            if null_states is None:
                raise ValueError(f"guidance {guidance} wants the states of the empty prompt, got none")
            both = torch.cat([states, null_states.expand_as(states)])
            out = self._run(torch.cat([z, z]), torch.cat([t, t]), both)
        conditional, null = out.chunk(2)
        scale = torch.as_tensor(guidance, dtype=torch.float32, device=z.device).view(-1, 1, 1, 1)
        return self.schedule.to_x0(z, null + scale * (conditional - null), t)

    def _run(self, z: torch.Tensor, t: torch.Tensor, states: torch.Tensor, **told: Any) -> torch.Tensor:
        """Run the network once: the text where it attends, what rides along where it is added to the time."""
        hidden, added = split_states(states, self.added_width)
        if added:
            told["added_cond_kwargs"] = added
        out: torch.Tensor = self.unet(z, t, hidden, **told).sample.float()
        return out
