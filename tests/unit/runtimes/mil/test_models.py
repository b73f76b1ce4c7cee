"""Models that have nothing to do with diffusion: a MobileNet, a MiniLM and a Whisper encoder, all small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flashbulb.runtimes.engines.mil import Program

pytest.importorskip("coremltools")
pytestmark = pytest.mark.slow
Made = tuple[nn.Module, dict[str, torch.Tensor]]


class Inverted(nn.Module):
    """MobileNetV2's block: widen, convolve each channel, narrow (1801.04381)."""

    def __init__(self, channels: int, out: int, stride: int, wide: int) -> None:
        super().__init__()
        inner = channels * wide
        self.skip = stride == 1 and channels == out
        self.body = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.skip else self.body(x)


def mobilenet() -> Made:
    blocks = [Inverted(16, 16, 1, 2), Inverted(16, 24, 2, 4), Inverted(24, 24, 1, 4), Inverted(24, 40, 2, 4)]
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 10)
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net, {"image": torch.randn(1, 3, 64, 64)}


class First(nn.Module):
    """Return the first output of a model, as a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        return self.model(*arguments, return_dict=False)[0]


def minilm() -> Made:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=200, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        attn_implementation="eager",
    )  # fmt: skip
    mask = torch.ones(1, 12, dtype=torch.int32)
    mask[:, 9:] = 0
    ids = torch.randint(0, 200, (1, 12), dtype=torch.int32)
    return First(BertModel(config, add_pooling_layer=False)), {"ids": ids, "mask": mask}


def whisper() -> Made:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=48, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=96, num_mel_bins=16,
        max_source_positions=25, attn_implementation="eager",
    )  # fmt: skip
    return First(WhisperEncoder(config)), {"mel": torch.randn(1, 16, 50)}


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
@pytest.mark.parametrize("make", [mobilenet, minilm, whisper])
def test_a_converted_model_agrees_with_torch(
    make: Callable[[], Made], target: str, tools: SimpleNamespace, tmp_path: Path
) -> None:
    import coremltools as ct

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model, inputs = make()
        model.eval()
        wanted = model(*inputs.values()).numpy()
        traced = torch.jit.trace(model, tuple(inputs.values()), check_trace=False)
    kinds: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.int32: np.int32}
    path = tools.save_converted(
        traced,
        tmp_path / "m.mlpackage",
        target=target,
        pass_pipeline=ct.PassPipeline(),
        inputs=[ct.TensorType(name=n, shape=x.shape, dtype=kinds[x.dtype]) for n, x in inputs.items()],
        outputs=[ct.TensorType(name="y", dtype=np.float32)],
    )
    given = {n: x.numpy() for n, x in inputs.items()}
    assert tools.snr_db(Program.load(path).predict(given)["y"], wanted) > 110
    assert tools.snr_db(Program.load(path, low_memory=True).predict(given)["y"], wanted) > 110
