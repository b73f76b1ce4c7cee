"""Write a checkpoint of the embedded architecture with random weights: for tests and for trying exporters."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.data.stickers import Stickers
from flashbulb.distill.teacher import autoencoder, denoiser, stage, text_encoder


def write(out: Path, *, seed: int = 0) -> Checkpoint:
    """Write the random checkpoint and return it."""
    import torch

    torch.manual_seed(seed)
    config, data = stage.TeachConfig(), Stickers()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = text_encoder.make_tokenizer(
            config.text, sorted({s.concept for s in data.items}), Path(folder)
        )
        vae = autoencoder.build(config.autoencoder, data.size)
        text = text_encoder.build(config.text, tokenizer)
        depth = len(config.autoencoder.channels) - 1
        unet = denoiser.build(
            config.denoiser,
            latent_channels=config.autoencoder.latent_channels,
            latent_size=data.size >> depth,
            text_width=config.text.width,
        )
        modules = {"vae": vae, "text_encoder": text, "unet": unet}
        return stage.write_checkpoint(out, modules, tokenizer, stage="random", config={"seed": seed})


if __name__ == "__main__":
    write(Path(sys.argv[1]))
