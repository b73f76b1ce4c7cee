"""Fixtures that every test may use: tiny random-weight checkpoints in the shapes that users bring."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizerFast

    from flashbulb.export.bundle import Bundle

CAPTIONS = (
    "a glossy red apple on a pink background",
    "a flat blue whale on a white background",
    "an outlined green frog on a yellow background",
    "a smiling cat with a small hat",
    "two penguins and a house in the snow",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files from this run")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether the run shall rewrite golden files instead of comparing with them."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Path]], Path]:
    """Make something big once for all workers: the first makes it, in an empty folder; the others wait."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], Path]) -> Path:
        folder, answer = base / f"once-{name}", base / f"once-{name}.path"
        with FileLock(base / f"once-{name}.lock"):
            if not answer.is_file():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                answer.write_text(str(make(folder)))
        return Path(answer.read_text())

    return made


@pytest.fixture(scope="session")
def sticker_bundle(tiny_sticker: Path, once: Callable[[str, Callable[[Path], Path]], Path]) -> Path:
    """Components and the fused generator for both runtimes."""
    from flashbulb.export import stage
    from flashbulb.export.backends import Executorch, Ort

    def make(folder: Path) -> Path:
        backends, out = (Ort(), Executorch()), folder / "bundle"
        return stage.run(stage.ExportConfig(checkpoint=str(tiny_sticker), out=str(out), backends=backends))

    return once("sticker-bundle", make)


@pytest.fixture(scope="session")
def programs(tiny_sticker: Path, once: Callable[[str, Callable[[Path], Path]], Path]) -> Path:
    """A real bundle for all three runtimes, of a checkpoint whose text encoder and UNet are encoded."""
    return once("programs", lambda folder: export_encoded(tiny_sticker, folder))


def export_encoded(checkpoint: Path, folder: Path) -> Path:
    """Compress a checkpoint, and export it for all three runtimes."""
    from flashbulb.compress.methods import Palettize, QuantizeInt8
    from flashbulb.compress.stage import CompressConfig
    from flashbulb.compress.stage import run as compress
    from flashbulb.export import stage
    from flashbulb.export.backends import Coreml, Executorch, Ort

    source = compress(
        CompressConfig(
            checkpoint=str(checkpoint),
            out=str(folder / "checkpoint"),
            default=None,
            by_kind={"text_encoder": Palettize(bits=6), "unet": QuantizeInt8()},
            min_weights=512,
            floor_psnr_db=None,
        )
    )
    backends = (
        Ort(generator=False),
        Executorch(generator=False, allow_dequantized=True),
        Coreml(generator=False),
    )
    return stage.run(
        stage.ExportConfig(checkpoint=str(source), out=str(folder / "bundle"), backends=backends)
    )


@pytest.fixture
def resign() -> Callable[[Path], Bundle]:
    """Make all hashes of a changed bundle right again."""
    from msgspec.structs import replace

    from flashbulb.export.artifact import digest, record, records
    from flashbulb.export.bundle import read_bundle, write_manifest

    def again(root: Path) -> Bundle:
        bundle = read_bundle(root)
        artifacts = []
        for artifact in bundle.manifest.artifacts:
            files = records(bundle.path(artifact), root)
            size = sum(f.size_bytes for f in files)
            artifacts.append(replace(artifact, files=files, sha256=digest(files), size_bytes=size))
        others = tuple(record(root / f.path, root) for f in bundle.manifest.files)
        write_manifest(replace(bundle.manifest, artifacts=tuple(artifacts), files=others), root)
        return read_bundle(root)

    return again


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 2.1 shape: 77 tokens, 4x8x8 latents, 64 pixels, epsilon prediction."""
    return write_sd(tmp_path_factory.mktemp("tiny") / "sd", prediction_type="epsilon")


@pytest.fixture(scope="session")
def tiny_sd_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_sd`, but predicting v."""
    return write_sd(tmp_path_factory.mktemp("tiny") / "sd_v", prediction_type="v_prediction")


@pytest.fixture(scope="session")
def tiny_sticker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape of the embedded checkpoints: 24 tokens, 16x8x8 latents, 64 pixels, v prediction."""
    return write_sd(
        tmp_path_factory.mktemp("tiny") / "sticker", prediction_type="v_prediction", channels=16, tokens=24
    )


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion XL shape: two text encoders, added text and time embeddings."""
    return write_sdxl(tmp_path_factory.mktemp("tiny") / "sdxl")


def write_sd(out: Path, *, prediction_type: str, channels: int = 4, tokens: int = 77, seed: int = 0) -> Path:
    """Write a random StableDiffusionPipeline folder of about a hundred thousand weights."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer(out.parent / f".{out.name}.bpe", tokens)
        pipeline = StableDiffusionPipeline(
            vae=build_vae(channels),
            text_encoder=build_text_encoder(tokenizer, tokens),
            tokenizer=tokenizer,
            unet=build_unet(channels, cross_attention_dim=32),
            scheduler=DDIMScheduler(**scheduler_config(prediction_type)),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(out, safe_serialization=True)
    return out


def write_sdxl(out: Path, seed: int = 0) -> Path:
    """Write a random StableDiffusionXLPipeline folder."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer(out.parent / f".{out.name}.bpe", 77)
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 32,
        }
        pipeline = StableDiffusionXLPipeline(
            vae=build_vae(4),
            text_encoder=build_text_encoder(tokenizer, 77),
            text_encoder_2=build_text_encoder(tokenizer, 77, projection=True),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=build_unet(4, cross_attention_dim=64, **added),
            scheduler=EulerDiscreteScheduler(
                **{
                    k: v
                    for k, v in scheduler_config("epsilon").items()
                    if k not in {"clip_sample", "set_alpha_to_one"}
                }
            ),
            add_watermarker=False,
        )
        pipeline.save_pretrained(out, safe_serialization=True)
    return out


def scheduler_config(prediction_type: str) -> dict[str, Any]:
    """Return the scaled-linear thousand steps of Stable Diffusion."""
    return {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction_type,
        "timestep_spacing": "trailing",
        "clip_sample": False,
        "set_alpha_to_one": False,
    }


def build_vae(channels: int) -> AutoencoderKL:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.5,
    )


def build_unet(channels: int, **options: Any) -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=8,
        **options,
    )


def build_text_encoder(
    tokenizer: CLIPTokenizerFast, tokens: int, *, projection: bool = False
) -> CLIPTextModel | torch.nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def build_tokenizer(folder: Path, tokens: int) -> CLIPTokenizerFast:
    """Train a CLIP-format byte-pair tokenizer on a few captions."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizerFast

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.train_from_iterator(CAPTIONS, trainers.BpeTrainer(vocab_size=600, show_progress=False))
    learned = json.loads(bpe.to_str())["model"]["merges"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in learned]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), *(m.replace(" ", "") for m in merges)]
    words = [*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizerFast(
        vocab_file=str(folder / "vocab.json"),
        merges_file=str(folder / "merges.txt"),
        pad_token="<|endoftext|>",
        model_max_length=tokens,
    )
