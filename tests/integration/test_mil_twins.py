"""Models as diffusers and transformers write them, converted without our rewrites, agree with PyTorch.

Every node of the packages is also held to coremltools itself: what it infers from the same inputs
(`value_inference`), the constants that it reads, and the weights that it decompresses.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mil_nodes import Arrays, compare_constants, constants, judge_nodes, mil_function, run
from torch import nn

ct = pytest.importorskip("coremltools")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("FLASHBULB_SLOW_TESTS") != "1",
        reason="minutes of conversions: FLASHBULB_SLOW_TESTS=1 runs them",
    ),
]
Made = tuple[nn.Module, dict[str, torch.Tensor]]


class Calls(nn.Module):
    """A module that calls a function of a model."""

    def __init__(self, model: nn.Module, call: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        return self.call(self.model, *arguments)


def unet() -> Made:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=8, norm_num_groups=8,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32,
    )  # fmt: skip
    given = {
        "z": torch.randn(1, 4, 8, 8), "t": torch.tensor([999.0]), "text": torch.randn(1, 12, 32),
    }  # fmt: skip
    return Calls(model, lambda m, z, t, text: m(z, t, text, return_dict=False)[0]), given


def kl() -> Made:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return Calls(model, lambda m, z: m.decode(z, return_dict=False)[0]), {"z": torch.randn(1, 4, 8, 8)}


def taesd() -> Made:
    from diffusers import AutoencoderTiny

    channels = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (16,) * 4)
    model = AutoencoderTiny(**channels, num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1))
    return Calls(model, lambda m, z: m.decode(z, return_dict=False)[0]), {"z": torch.randn(1, 4, 8, 8)}


def clip() -> Made:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=24, eos_token_id=199, attn_implementation="eager",
    )  # fmt: skip
    ids = torch.randint(0, 199, (1, 24), dtype=torch.int32)
    return Calls(CLIPTextModel(config), lambda m, ids: m(ids, return_dict=False)[0]), {"ids": ids}


MODELS = {"unet": unet, "kl": kl, "taesd": taesd, "clip": clip}


def convert(make: Callable[[], Made], target: str, precision: Any) -> tuple[Any, Arrays, np.ndarray]:
    """Return the Core ML model, its inputs and what PyTorch makes of them."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model, inputs = make()
        model.eval()
        wanted = model(*inputs.values()).numpy()
        traced = torch.jit.trace(model, tuple(inputs.values()), check_trace=False)
    with contextlib.redirect_stderr(io.StringIO()):
        found = ct.convert(
            traced,
            convert_to="mlprogram",
            inputs=[
                ct.TensorType(name=n, shape=x.shape, dtype=np.int32 if x.dtype == torch.int32 else np.float32)
                for n, x in inputs.items()
            ],
            outputs=[ct.TensorType(name="y", dtype=np.float32)],
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=precision,
            skip_model_load=True,
        )
    return found, {n: x.numpy() for n, x in inputs.items()}, wanted


def psnr_and_snr_db(found: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """Return decibels against the largest magnitude, and against the mean power."""
    noise = max(1e-30, float(((found.astype(np.float64) - wanted) ** 2).mean()))
    return (
        float(10 * np.log10(np.abs(wanted).max() ** 2 / noise)),
        float(10 * np.log10((wanted.astype(np.float64) ** 2).mean() / noise)),
    )


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
@pytest.mark.parametrize("name", list(MODELS))
def test_an_fp32_twin_agrees_and_so_does_each_of_its_nodes(name: str, target: str, tmp_path: Path) -> None:
    model, given, wanted = convert(MODELS[name], target, ct.precision.FLOAT32)
    model.save(str(tmp_path / "m.mlpackage"))
    outputs, seen = run(tmp_path / "m.mlpackage", given)
    assert min(psnr_and_snr_db(outputs["y"], wanted)) >= 110
    function = mil_function(model)
    judged = judge_nodes(function, seen)
    assert len(judged) >= 20
    assert max(judged.values()) < 5e-6
    changed = list(judged)[-1]
    seen[changed] = seen[changed] * np.float32(1.001)
    assert judge_nodes(function, seen)[changed] > 5e-6  # the same comparison sees a thousandth


def compressed(model: Any, how: str) -> Any:
    from coremltools.optimize import coreml as cto

    configs: dict[str, Any] = {
        "palette": cto.OpPalettizerConfig(nbits=4, weight_threshold=64),
        "int8": cto.OpLinearQuantizerConfig(weight_threshold=64),
        "sparse": cto.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=64),
    }
    configs["int4"] = cto.OpLinearQuantizerConfig(
        dtype="int4", granularity="per_block", block_size=8, weight_threshold=64
    )
    apply = {"palette": cto.palettize_weights, "sparse": cto.prune_weights}
    with contextlib.redirect_stderr(io.StringIO()):
        config = cto.OptimizationConfig(global_config=configs[how])
        return apply.get(how, cto.linear_quantize_weights)(model, config)


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
def test_every_constant_is_what_coremltools_reads_and_decompresses(target: str, tmp_path: Path) -> None:
    plain, _, _ = convert(unet, target, ct.precision.FLOAT16)
    kinds = ["palette", "int8", "sparse", *(["int4"] if target == "iOS18" else [])]
    for model in (plain, *(compressed(plain, kind) for kind in kinds)):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.mlpackage"
        model.save(str(path))
        count = compare_constants(mil_function(model), constants(path))
        assert count["const"] > 100
        assert model is plain or sum(n for kind, n in count.items() if kind != "const") > 10
