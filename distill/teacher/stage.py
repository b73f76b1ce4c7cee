"""``flashbulb teach``: train the embedded teacher from the embedded data, resumable and multi-process."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import msgspec

from flashbulb.distill.checkpoint import Checkpoint, CheckpointError, replace_folder
from flashbulb.distill.lineage import Lineage, LineageEntry, tool_versions, write_lineage
from flashbulb.distill.loop import OnStep, Rank
from flashbulb.distill.teacher.autoencoder import AutoencoderConfig
from flashbulb.distill.teacher.decoder import DecoderConfig
from flashbulb.distill.teacher.denoiser import SCHEDULER, DenoiserConfig
from flashbulb.distill.teacher.text_encoder import TextConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

log = logging.getLogger(__name__)

ATTRIBUTION = (
    "Trained on emoji drawings of Noto Emoji (Apache-2.0, Google), Fluent Emoji (MIT, Microsoft), "
    "Twemoji (CC BY 4.0, Twitter and contributors), FxEmojis (Apache-2.0, Mozilla) and "
    "EmojiTwo / EmojiOne 2 (CC BY 4.0)."
)


class TeachConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Train the embedded text-to-sticker teacher."""

    out: str = "runs/teacher"
    """Run folder; the checkpoint is written to ``OUT/checkpoint``."""
    data: str = ""
    """Stickers: a file of ``flashbulb.distill.data.build``; default: the embedded ones."""
    processes: Annotated[int, msgspec.Meta(gt=0)] = 2
    """Data-parallel processes on this machine."""
    reuse: str = ""
    """A checkpoint that keeps its autoencoder, tokenizer and text encoder and trains its UNet further."""
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    """Pictures <-> latents."""
    text: TextConfig = TextConfig()
    """Prompt -> states."""
    denoiser: DenoiserConfig = DenoiserConfig()
    """Noise -> latents."""
    decoder: DecoderConfig | None = DecoderConfig()
    """Latents -> pictures, trained further once the latents are settled; null leaves it as it is."""


def run(config: TeachConfig, *, on_step: OnStep | None = None) -> Path:
    """Train all parts in turn and return the folder of the checkpoint; a killed run continues.

    Raises:
        ValueError: for a setting of a loop that its part does not know.
    """
    from flashbulb.distill.distributed import launch

    _refuse_unknown(config)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_bytes(msgspec.json.format(msgspec.json.encode(config)))
    launch(_worker, config.processes, config, on_step if config.processes == 1 else None)
    return out / "checkpoint"


def _refuse_unknown(config: TeachConfig) -> None:
    """Refuse what only distillations do; the denoiser alone knows checkpointing."""
    loops = {name: getattr(config, name).loop for name in ("autoencoder", "text", "denoiser")}
    loops |= {"decoder": config.decoder.loop} if config.decoder else {}
    for name, loop in loops.items():
        usual: dict[str, Any] = {"sharding": "none", "decode_batch": 0}
        usual |= {} if name == "denoiser" else {"checkpointing": False}
        for field, value in usual.items():
            if (got := getattr(loop, field)) != value:
                raise ValueError(
                    f"wanted {name}.loop.{field} {value!r}, got {got!r}; distill knows it, teach does not"
                )


def _worker(config: TeachConfig, on_step: OnStep | None) -> None:
    from flashbulb.distill.data.stickers import Stickers
    from flashbulb.distill.distributed import join
    from flashbulb.distill.teacher import autoencoder, decoder, denoiser, text_encoder

    join()
    out, start = Path(config.out), None
    data = Stickers(Path(config.data)) if config.data else Stickers()
    if config.reuse:
        parent = Checkpoint.open(config.reuse)
        vae, text, tokenizer = parent.load("vae"), parent.load("text_encoder"), parent.tokenizer()
        start = parent.load("unet").state_dict()
    else:
        tokenizer = text_encoder.make_tokenizer(
            config.text, sorted({s.concept for s in data.items}), out / f"tokenizer-{Rank.current().index}"
        )
        vae = autoencoder.train(config.autoencoder, data, out / "autoencoder", on_step=on_step)
        text = text_encoder.train(config.text, tokenizer, data, out / "text", on_step=on_step)
    latents = denoiser.all_latents(vae, data, out / "latents.safetensors")
    if config.decoder is not None:
        decoder.train(config.decoder, vae, latents, data, out / "decoder", on_step=on_step)
    unet = denoiser.train(
        config.denoiser,
        (latents, text, tokenizer),
        data,
        out / "denoiser",
        on_step=on_step,
        start=start,
    )
    if Rank.current().index == 0:
        modules = {"vae": vae, "text_encoder": text, "unet": unet}
        write_checkpoint(
            out / "checkpoint", modules, tokenizer, stage="teach", config=msgspec.to_builtins(config)
        )


def write_checkpoint(
    out: Path,
    modules: Mapping[str, torch.nn.Module],
    tokenizer: Any,
    *,
    stage: str,
    config: dict[str, Any],
    dtype: str = "float16",
) -> Checkpoint:
    """Write a new Stable Diffusion folder from its modules; atomic.

    Raises:
        CheckpointError: when a module is missing.
    """
    import copy

    import torch
    from diffusers import DDIMScheduler

    if missing := {"vae", "text_encoder", "unet"} - set(modules):
        raise CheckpointError(f"wanted vae, text_encoder and unet, got no {sorted(missing)}")
    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    for folder, module in modules.items():
        stored = copy.deepcopy(module).to(getattr(torch, dtype))
        cast(Any, stored).save_pretrained(temporary / folder, safe_serialization=True)
    tokenizer.save_pretrained(temporary / "tokenizer")
    DDIMScheduler(**SCHEDULER).save_pretrained(temporary / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", type(modules["vae"]).__name__],
    }
    (temporary / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (temporary / "ATTRIBUTION.txt").write_text(ATTRIBUTION + "\n")
    entry = LineageEntry(stage=stage, config=config, versions=tool_versions())
    write_lineage(temporary, Lineage(entries=(entry,)))
    replace_folder(temporary, out)
    return Checkpoint.open(out)
