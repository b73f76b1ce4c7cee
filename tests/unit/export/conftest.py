"""One exported bundle for all tests that only read it, and an encoded checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashbulb.compress.encoding import EncodedTensor, Encoding, layer_key, write_plan
from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.schedule import one_step
from flashbulb.export.bundle import Bundle, read_bundle
from flashbulb.export.graph import Graph, build


@pytest.fixture(scope="session")
def ort_bundle(tiny_sticker: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of `tiny_sticker` for ONNX Runtime, with optimum's layout."""
    pytest.importorskip("onnxruntime")
    from flashbulb.export.backends import Ort
    from flashbulb.export.stage import ExportConfig, run

    out = tmp_path_factory.mktemp("export") / "bundle"
    return read_bundle(run(ExportConfig(checkpoint=str(tiny_sticker), out=str(out), backends=(Ort(),))))


def graphs_of(folder: Path, backend: Any) -> dict[str, Graph]:
    checkpoint = Checkpoint.open(folder)
    step = one_step(checkpoint.config("scheduler"), checkpoint.config("vae"))
    return {str(g.component): g for g in build(checkpoint, step, backend.rewrite())}


@pytest.fixture(scope="session")
def encoded_checkpoint(tiny_sticker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_sticker` with a palettized UNet and int8 text encoder and decoder."""
    out = tmp_path_factory.mktemp("encoded") / "checkpoint"
    shutil.copytree(tiny_sticker, out)
    encoded: dict[str, EncodedTensor] = {}
    for component, folder in (("text_encoder", "text_encoder"), ("unet", "unet"), ("vae_decoder", "vae")):
        encoded |= _encode_folder(out / folder, component)
    write_plan(out, encoded)
    return out


def _encode_folder(folder: Path, component: str) -> dict[str, EncodedTensor]:
    from safetensors.numpy import load_file, save_file

    path = next(folder.glob("*.safetensors"))
    weights, found = load_file(path), {}
    for name, values in weights.items():
        skip = ("time_emb", "position", "encoder.down", "encoder.mid", "encoder.conv", "quant_conv")
        if (
            values.ndim < 2
            or values.size < 256
            or any(name.startswith(s) or "time_emb" in name for s in skip)
        ):
            continue
        if "position" in name:
            continue
        found[layer_key(component, name)] = palette(values) if component == "unet" else int8(values)
        weights[name] = found[layer_key(component, name)].decode()
    save_file(weights, path, metadata={"format": "pt"})
    return found


def palette(values: np.ndarray[Any, Any]) -> EncodedTensor:
    lut = np.linspace(values.min(), values.max(), 64).astype(np.float16).astype(np.float32)
    codes = np.abs(values[..., None] - lut).argmin(-1).astype(np.uint8)
    encoding = Encoding(kind="palettize", bits=6, granularity="per_tensor", shape=values.shape)
    return EncodedTensor(encoding=encoding, codes=codes, lut=lut)


def int8(values: np.ndarray[Any, Any]) -> EncodedTensor:
    rows = np.abs(values.reshape(values.shape[0], -1)).max(1) / 127
    scale = np.maximum(rows, 1e-4).astype(np.float16).astype(np.float32)
    codes = np.round(values / scale.reshape(-1, *[1] * (values.ndim - 1))).clip(-127, 127).astype(np.int8)
    encoding = Encoding(
        kind="int8_weight_only", bits=8, granularity="per_channel", axis=0, shape=values.shape
    )
    return EncodedTensor(encoding=encoding, codes=codes, scale=scale)
