"""The rewritten graphs compute what diffusers' own modules compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.schedule import one_step
from flashbulb.export.golden import Reference
from flashbulb.export.graph import Graph, VaeDecoder, build
from flashbulb.export.noise import gaussian
from flashbulb.export.rewrites import (
    BroadcastUpsample,
    FlatGroupNorm,
    FlatLayerNorm,
    Rewrite,
    SplitGeglu,
    UnsupportedModel,
    apply,
)

FLOOR_DB = 115.0
FORMS = {
    "native": Rewrite(),
    "primitive": Rewrite(norms="primitive", broadcast_upsample=True),
    "guarded": Rewrite(norms="guarded"),
}


def snr_db(wanted: Any, got: Any) -> float:
    a, b = (np.asarray(x, dtype=np.float64) for x in (wanted, got))
    error = float(((a - b) ** 2).sum())
    return float("inf") if error == 0 else float(10 * np.log10((a**2).sum() / error))


def graphs_and_reference(folder: Path, form: str) -> tuple[dict[str, Graph], dict[str, Any]]:
    checkpoint = Checkpoint.open(folder)
    step = one_step(checkpoint.config("scheduler"), checkpoint.config("vae"))
    graphs = {str(g.component): g for g in build(checkpoint, step, FORMS[form])}
    reference = Reference(checkpoint, step)
    ids = reference.token_ids("a smiling cat with a small hat")
    return graphs, reference.draw(ids, gaussian(5, (1, *checkpoint.latent_shape)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["tiny_sd", "tiny_sticker", "tiny_sdxl"])
def test_every_component_equals_diffusers(kind: str, form: str, request: pytest.FixtureRequest) -> None:
    graphs, wanted = graphs_and_reference(request.getfixturevalue(kind), form)
    for graph in graphs.values():
        given = [torch.from_numpy(wanted[s.name]) for s in graph.inputs]
        with torch.no_grad():
            got = graph.module(*given)
        got = got if isinstance(got, tuple) else (got,)
        for spec, tensor in zip(graph.outputs, got, strict=True):
            assert tuple(tensor.shape) == spec.shape
            found = snr_db(wanted[spec.name], tensor)
            assert found >= FLOOR_DB, f"{graph.component}.{spec.name} at {found:.1f} dB"


def test_the_timestep_is_no_input_and_no_weight(tiny_sticker: Path) -> None:
    graphs, _ = graphs_and_reference(tiny_sticker, "native")
    unet = graphs["unet"]
    assert [s.name for s in unet.inputs] == ["sample", "hidden"]
    assert not [n for n, _ in unet.module.named_parameters() if "time_emb" in n]


def test_tiny_decoder_equals_diffusers() -> None:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    vae = AutoencoderTiny(**widths, **blocks).eval()
    latent = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        wanted = (vae.decode(latent, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
        got = VaeDecoder(apply(vae, FORMS["primitive"]))(latent)
    assert snr_db(wanted, got) >= FLOOR_DB


def test_origins_name_every_weight_of_the_checkpoint(tiny_sticker: Path) -> None:
    graphs, _ = graphs_and_reference(tiny_sticker, "native")
    state = Checkpoint.open(tiny_sticker).load("unet").state_dict()
    values = dict(graphs["unet"].module.named_parameters())
    for name, (component, piece) in graphs["unet"].origins.items():
        assert component == "unet"
        if name.endswith("bias"):
            continue
        rows, columns = slice(*(piece.rows or (None,))), slice(*(piece.columns or (None,)))
        whole = state[piece.weight]
        wanted = whole[rows] if piece.columns is None else whole[rows, columns]
        assert torch.equal(values[name], wanted), name


def test_group_norm_in_half_survives_large_values() -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 16)
    x = torch.randn(1, 16, 8, 8) * 3000
    wanted = norm(x)
    guarded = FlatGroupNorm(norm, guarded=True).half()(x.half())
    naive = FlatGroupNorm(norm.half(), guarded=False)(x.half())
    assert snr_db(wanted.detach(), guarded.float().detach()) > 55
    assert not snr_db(wanted.detach(), naive.float().nan_to_num().detach()) > 20


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 1e3])
@pytest.mark.parametrize("guarded", [False, True])
def test_norms_equal_torch_at_every_scale(scale: float, guarded: bool) -> None:
    torch.manual_seed(0)
    group, layer = nn.GroupNorm(4, 16), nn.LayerNorm(16)
    image, rows = torch.randn(1, 16, 5, 7) * scale, torch.randn(1, 9, 16) * scale
    with torch.no_grad():
        assert snr_db(group(image), FlatGroupNorm(group, guarded)(image)) > 110
        assert snr_db(layer(rows), FlatLayerNorm(layer, guarded)(rows)) > 110


def test_broadcast_upsample_equals_interpolate() -> None:
    x = torch.randn(1, 3, 4, 5)
    assert torch.equal(BroadcastUpsample()(x), nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))


def test_geglu_halves_remember_their_rows() -> None:
    from diffusers.models.activations import GEGLU

    geglu = GEGLU(6, 10)
    split, x = SplitGeglu(geglu), torch.randn(1, 3, 6)
    assert snr_db(geglu(x).detach(), split(x).detach()) > FLOOR_DB
    assert vars(split.gate)["flashbulb_piece"].rows == (10, 20)


def test_unknown_conditioning_is_refused(tiny_sticker: Path) -> None:
    from flashbulb.export.graph import OneTimestepUnet

    unet = Checkpoint.open(tiny_sticker).load("unet")
    unet.register_to_config(class_embed_type="timestep")  # type: ignore[operator]
    with pytest.raises(UnsupportedModel, match="wanted class_embed_type"):
        OneTimestepUnet(unet, 999, 64)
