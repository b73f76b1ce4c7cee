"""Lay ONNX components out so that optimum's pipelines open them: diffusers' contracts, one folder each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from flashbulb.distill.components import DType, TensorSpec
from flashbulb.export.encodings import of_graph
from flashbulb.export.graph import Graph, TextEncoder, UnetBody, VaeDecoder, origins
from flashbulb.export.onnx_weights import apply_encodings
from flashbulb.export.rewrites import UnsupportedModel, apply
from flashbulb.export.structure import OPTIMUM, OPTIMUM_PROGRAMS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flashbulb.compress.encoding import EncodedTensor
    from flashbulb.distill.checkpoint import Checkpoint
    from flashbulb.export.backends.ort import Ort

COPIED = ("tokenizer", "scheduler")


class TimedUnet(UnetBody):
    """A UNet that takes its timestep, as diffusers calls it."""

    def __init__(self, unet: Any) -> None:
        super().__init__(unet)
        self.time_embedding = unet.time_embedding
        half = int(unet.config.block_out_channels[0]) // 2
        position = torch.arange(half, dtype=torch.float32)
        shift = float(unet.config.freq_shift)
        log_step = torch.log(torch.tensor(10000.0)) / (half - shift)
        self.register_buffer("frequencies", torch.exp(-log_step * position)[None], persistent=False)
        self.flip = bool(unet.config.flip_sin_to_cos)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Predict from [1, c, h, w], a scalar timestep and text states [1, t, d]."""
        angle = timestep.reshape(1, 1).to(torch.float32) * cast(Tensor, self.frequencies)
        sin, cos = torch.sin(angle), torch.cos(angle)
        emb = self.time_embedding(torch.cat([cos, sin] if self.flip else [sin, cos], dim=-1))
        return self.body(sample, encoder_hidden_states, emb)


class RawDecoder(VaeDecoder):
    """A decoder whose image is in [-1, 1], as diffusers has it."""

    def forward(self, latent_sample: Tensor) -> Tensor:
        """Decode [1, c, h, w]."""
        z = latent_sample if self.post_quant_conv is None else self.post_quant_conv(latent_sample)
        return cast(Tensor, self.decoder(z))


def write(checkpoint: Checkpoint, backend: Ort, encoded: Mapping[str, EncodedTensor], root: Path) -> Path:
    """Write `optimum/` for a checkpoint with one text encoder.

    Raises:
        UnsupportedModel: for SDXL, whose pipelines want every hidden state.
    """
    from flashbulb.export.backends.ort import to_onnx

    if checkpoint.is_sdxl:
        raise UnsupportedModel("wanted a checkpoint with one text encoder for optimum's layout, got SDXL")
    out = root / OPTIMUM
    for component, graph in graphs(checkpoint, backend).items():
        model = to_onnx(graph, backend.opset)
        apply_encodings(model, graph, of_graph(graph, dict(encoded)))
        backend.save(model, root / OPTIMUM_PROGRAMS[component])
    for name, data in settings(checkpoint).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    return out


def settings(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return every file beside the programs, by its path in the layout.

    Tokenizer and scheduler are the checkpoint's own; the index names the parts as optimum's export does.
    """
    files = [p for name in COPIED for p in sorted((checkpoint.path / name).rglob("*")) if p.is_file()]
    found = {p.relative_to(checkpoint.path).as_posix(): p.read_bytes() for p in files}
    for folder in OPTIMUM_PROGRAMS:
        config = checkpoint.config("vae" if folder == "vae_decoder" else folder)
        found[f"{folder}/config.json"] = _json(config)
    index = {k: v for k, v in checkpoint.index.items() if not k.startswith("_name_or_path")}
    index |= {"vae": ["diffusers", "OnnxRuntimeModel"], "unet": ["diffusers", "OnnxRuntimeModel"]}
    index["text_encoder"] = ["diffusers", "OnnxRuntimeModel"]
    index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    return found | {"model_index.json": _json(index)}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def graphs(checkpoint: Checkpoint, backend: Ort) -> dict[str, Graph]:
    """Build the three components with diffusers' names and contracts."""
    rewrite, latent, size = backend.rewrite(), checkpoint.latent_shape, checkpoint.image_size
    length = checkpoint.text_length
    width = int(checkpoint.config("text_encoder")["hidden_size"])

    def spec(name: str, *shape: int, dtype: DType = "float32") -> TensorSpec:
        return TensorSpec(name=name, dtype=dtype, shape=shape)

    def graph(component: Any, module: nn.Module, inputs: list[TensorSpec], output: TensorSpec) -> Graph:
        module = module.eval().requires_grad_(False)
        found = origins(module, component)
        return Graph(
            component=component, module=module, inputs=tuple(inputs), outputs=(output,), origins=found
        )

    with torch.no_grad():
        text = TextEncoder(
            apply(checkpoint.load("text_encoder"), rewrite), length, penultimate=False, pooled=False
        )
        unet = TimedUnet(apply(checkpoint.load("unet"), rewrite))
        vae = RawDecoder(apply(checkpoint.load("vae"), rewrite))
    states = (1, length, width)
    return {
        "text_encoder": graph(
            "text_encoder",
            text,
            [spec("input_ids", 1, length, dtype="int32")],
            spec("last_hidden_state", *states),
        ),
        "unet": graph(
            "unet",
            unet,
            [
                spec("sample", 1, *latent),
                spec("timestep", dtype="int64"),
                spec("encoder_hidden_states", *states),
            ],
            spec("out_sample", 1, *latent),
        ),
        "vae_decoder": graph(
            "vae_decoder", vae, [spec("latent_sample", 1, *latent)], spec("sample", 1, 3, size, size)
        ),
    }
