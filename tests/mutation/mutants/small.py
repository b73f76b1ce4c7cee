"""Small bundles of random weights: every encoding, seed, parametrisation and kind, within a minute each."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal, NamedTuple

CONFTEST = Path(__file__).parents[2] / "conftest.py"
Target = Literal["iOS16", "iOS17", "iOS18"]
Encoding = Literal["fp32", "fp16", "palette", "int8", "mixed"]
ENCODINGS: tuple[Encoding, ...] = ("fp32", "fp16", "palette", "int8", "mixed")


Kind = Literal["sd", "guided", "sdxl"]
GUIDANCE = 3.0
"""Scale that is folded into a guided network."""


class Recipe(NamedTuple):
    """One small bundle."""

    encoding: Encoding
    """`fp32` and `fp16` are Core ML's arithmetic; the rest say how weights are stored, in fp16 arithmetic."""
    prediction: str = "v_prediction"
    seed: int = 0
    generator: bool = True
    kind: Kind = "sd"
    """Shape of the checkpoint; `guided` takes the guidance scale, which is folded in before the export."""
    target: Target = "iOS16"
    """Oldest system for Core ML: each has its own form of tables and codes."""

    @property
    def name(self) -> str:
        """A folder's name."""
        kind = "" if self.kind == "sd" else f"-{self.kind}"
        target = "" if self.target == "iOS16" else f"-{self.target}"
        return f"{self.encoding}-{self.prediction.partition('_')[0]}-{self.seed}{kind}{target}"


def builders() -> Any:
    """Return the module that writes the random checkpoints of all tests."""
    spec = importlib.util.spec_from_file_location("flashbulb_tests_conftest", CONFTEST)
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def write_least(out: Path, seed: int = 0) -> Path:
    """Write the smallest checkpoint with every kind of part: one block of each, 16 x 16 pixels."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    known = builders()
    torch.manual_seed(seed)
    tokenizer = known.build_tokenizer(out.with_name(f".{out.name}.bpe"), 24)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(16, 16),
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=16,
            scaling_factor=0.5,
        ),
        text_encoder=known.build_text_encoder(tokenizer, 24),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            mid_block_type=None,
            block_out_channels=(32,),
            layers_per_block=1,
            attention_head_dim=2,
            norm_num_groups=8,
            cross_attention_dim=32,
        ),
        scheduler=DDIMScheduler(**known.scheduler_config("v_prediction")),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    return out


def make(recipe: Recipe, folder: Path) -> Path:
    """Write a checkpoint, compress it, export it for all three backends, and return the bundle."""
    out = folder / recipe.name
    if (out / "manifest.json").is_file():
        return out
    plain = _plain(recipe, folder / f".{recipe.name}.checkpoint")
    guidance = GUIDANCE if recipe.kind == "guided" else None
    return export(compressed(plain, recipe.encoding, guidance), out, recipe)


def _plain(recipe: Recipe, out: Path) -> Path:
    """Write the checkpoint of a recipe, in floats."""
    if recipe.kind == "sdxl":
        return Path(builders().write_sdxl(out, seed=recipe.seed))
    sticker = recipe.prediction == "v_prediction"
    sizes: dict[str, Any] = {"channels": 16, "tokens": 24} if sticker else {}
    builders().write_sd(out, prediction_type=recipe.prediction, seed=recipe.seed, **sizes)
    return _guided(out, recipe.seed) if recipe.kind == "guided" else out


def _guided(checkpoint: Path, seed: int) -> Path:
    """Give a checkpoint's UNet an input for the guidance scale, with random weights."""
    import torch

    from flashbulb.distill.checkpoint import Checkpoint
    from flashbulb.distill.guidance import with_scale_input

    unet: Any = with_scale_input(Checkpoint.open(str(checkpoint)).load("unet"))
    chance = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(unet.time_embedding.cond_proj.weight, std=0.1, generator=chance)
    unet.save_pretrained(checkpoint / "unet", safe_serialization=True)
    return checkpoint


def compressed(checkpoint: Path, encoding: Encoding, guidance: float | None = None) -> Path:
    """Compress a checkpoint; with floats it stays as it is, unless a guidance scale is to be folded in."""
    floats = encoding in ("fp32", "fp16")
    if floats and guidance is None:
        return checkpoint
    from flashbulb.compress.methods import Palettize, QuantizeInt8
    from flashbulb.compress.stage import CompressConfig, run

    palette, int8 = Palettize(bits=6, max_rounds=20), QuantizeInt8()
    config = CompressConfig(
        checkpoint=str(checkpoint),
        out=str(checkpoint.with_name(checkpoint.name + ".small")),
        default=None if floats else int8 if encoding == "int8" else palette,
        guidance=guidance,
        by_kind={"text_encoder": int8, "vae_decoder": int8} if encoding == "mixed" else {},
        min_weights=256,
        floor_psnr_db=None,
        prompts=("a glossy red apple on a pink background",),
    )
    return run(config)


def export(checkpoint: Path, out: Path, recipe: Recipe, **options: Any) -> Path:
    """Export for all three backends."""
    from flashbulb.export.backends import Coreml, Executorch, Ort
    from flashbulb.export.stage import ExportConfig, run

    precision: Any = "float32" if recipe.encoding == "fp32" else "float16"
    backends = (
        Ort(generator=recipe.generator, allow_dequantized=True),
        Coreml(generator=recipe.generator, precision=precision, target=recipe.target),
        Executorch(generator=recipe.generator, allow_dequantized=True),
    )
    return run(ExportConfig(checkpoint=str(checkpoint), out=str(out), backends=backends, **options))
