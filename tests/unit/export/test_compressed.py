"""What compress made is exported as what it computes: fewer channels, and a guidance scale folded in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flashbulb.compress.methods.channels import ChannelPrune
from flashbulb.compress.stage import CompressConfig
from flashbulb.compress.stage import run as compress
from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.guidance import EMBEDDING_WIDTH, with_scale_input
from flashbulb.export.backends import Ort
from flashbulb.export.bundle import Bundle, read_bundle
from flashbulb.export.rewrites import UnsupportedModel
from flashbulb.export.stage import ExportConfig, run
from flashbulb.runtimes.stage import CheckConfig, check

runtime = pytest.importorskip("onnxruntime")


def shrink(source: Path, out: Path, **options: Any) -> Path:
    return compress(CompressConfig(checkpoint=str(source), out=str(out), default=None, **options))


def export(checkpoint: Path, out: Path) -> Bundle:
    """Export for ONNX Runtime, and pass `flashbulb check`."""
    backend = Ort(ort_format=False, optimum=False)
    bundle = read_bundle(run(ExportConfig(checkpoint=str(checkpoint), out=str(out), backends=(backend,))))
    report = check(CheckConfig(bundle=str(out), engine="ort", threads=1))
    assert report.ok, report.failures
    return bundle


def exported_unet(bundle: Bundle, case: dict[str, Any]) -> Any:
    artifact = next(a for a in bundle.manifest.artifacts if a.component == "unet")
    session = runtime.InferenceSession(str(bundle.path(artifact)), providers=["CPUExecutionProvider"])
    return session.run(None, {s.name: case[s.name] for s in artifact.inputs})[0]


def eager_unet(unet: Any, case: dict[str, Any], **told: Any) -> Any:
    with torch.no_grad():
        return unet(
            torch.from_numpy(case["sample"]), 999, torch.from_numpy(case["hidden"]), **told
        ).sample.numpy()


def snr_db(wanted: Any, got: Any) -> float:
    error = float(((wanted.astype(np.float64) - got) ** 2).sum())
    return (
        float("inf") if error == 0 else float(10 * np.log10((wanted.astype(np.float64) ** 2).sum() / error))
    )


def test_a_pruned_checkpoint(tiny_sticker: Path, tmp_path: Path) -> None:
    pruned = shrink(tiny_sticker, tmp_path / "pruned", prune=ChannelPrune(widths=(8, 16)))
    unet = Checkpoint.open(pruned).load("unet")
    assert tuple(unet.config["block_out_channels"]) == (8, 16)  # type: ignore[index]
    bundle = export(pruned, tmp_path / "bundle")
    whole = Checkpoint.open(tiny_sticker).load("unet")
    for case in bundle.golden()[:2]:
        wanted, got = eager_unet(unet, case), exported_unet(bundle, case)
        assert snr_db(wanted, got) > 100
        assert snr_db(wanted, eager_unet(whole, case)) < 60


def test_a_guided_student(tiny_sticker: Path, tmp_path: Path) -> None:
    from diffusers import LatentConsistencyModelPipeline

    parent = Checkpoint.open(tiny_sticker)
    unet = with_scale_input(parent.load("unet"))
    torch.nn.init.normal_(unet.time_embedding.cond_proj.weight, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr, arg-type]
    guided = parent.derive(tmp_path / "guided", stage="test", config={}, replace={"unet": unet}).path

    with pytest.raises(UnsupportedModel, match="flashbulb compress --guidance"):
        export(guided, tmp_path / "refused")
    with pytest.raises(ValueError, match=r"such as guidance: 3\.0"):
        shrink(guided, tmp_path / "refused")
    with pytest.raises(ValueError, match="got an input 0 wide"):
        shrink(tiny_sticker, tmp_path / "refused", guidance=3.0)

    bundle = export(shrink(guided, tmp_path / "folded", guidance=3.0), tmp_path / "bundle")
    scale = torch.tensor([2.0])  # diffusers embeds g - 1
    told = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scale, EMBEDDING_WIDTH)
    for case in bundle.golden()[:2]:
        wanted, got = eager_unet(unet, case, timestep_cond=told), exported_unet(bundle, case)
        assert snr_db(wanted, got) > 100
        assert snr_db(wanted, eager_unet(unet, case)) < 60
