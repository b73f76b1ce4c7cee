"""What compress stores is held to what it was given: a wrong code, centre or step is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from flashbulb.compress.encoding import EncodedTensor, read_encoded, write_plan
from flashbulb.compress.methods import Palettize, QuantizeInt8
from flashbulb.compress.methods.channels import ChannelPrune
from flashbulb.compress.stage import CompressConfig, run
from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.runtimes.codes import code_gate
from flashbulb.runtimes.records import SanityRecord

Edit = Callable[[EncodedTensor], EncodedTensor]
PALETTE = "text_encoder/text_model.encoder.layers.0.mlp.fc1.weight"
INT8 = "unet/up_blocks.0.resnets.0.conv2.weight"


def compressed(parent: Path, out: Path, **options: Any) -> Path:
    config: dict[str, Any] = {
        "default": None,
        "by_kind": {"text_encoder": Palettize(bits=4), "unet": QuantizeInt8()},
        "min_weights": 512,
        "floor_psnr_db": None,
    }
    return run(CompressConfig(checkpoint=str(parent), out=str(out), **{**config, **options}))


@pytest.fixture(scope="module")
def small(tiny_sticker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compressed(tiny_sticker, tmp_path_factory.mktemp("codes") / "small")


def judged(folder: Path) -> SanityRecord:
    return code_gate(Checkpoint.open(folder))


def planted(small: Path, out: Path, key: str, edit: Edit) -> SanityRecord:
    """Judge a copy in which one weight is encoded otherwise."""
    shutil.copytree(small, out)
    encoded = read_encoded(out)
    write_plan(out, encoded | {key: edit(encoded[key])})
    return judged(out)


def test_codes_of_compress_pass(small: Path) -> None:
    record = judged(small)
    assert record.verdict == "pass", record.sentence
    assert (record.gate, record.value, record.threshold) == ("codes", 0.0, 0.0)
    assert record.sentence == f"{len(read_encoded(small))} weights are encoded as their codes promise"


def other_code(weight: EncodedTensor) -> EncodedTensor:
    codes = weight.codes.copy()
    codes.flat[7] += 1 if codes.flat[7] < 8 else -1
    return msgspec.structs.replace(weight, codes=codes)


def other_centre(weight: EncodedTensor) -> EncodedTensor:
    """Move one entry by a third of the way to the next, and every value to what is then nearest."""
    assert weight.lut is not None
    lut = weight.lut.copy()
    lut[5] += (lut[6] - lut[5]) / 3
    codes = np.abs(weight.decode()[..., None] - lut).argmin(-1).astype(np.uint8)
    return msgspec.structs.replace(weight, lut=lut, codes=codes)


def other_step(weight: EncodedTensor) -> EncodedTensor:
    assert weight.scale is not None
    scale = weight.scale.copy()
    scale[3] *= 1.25
    return msgspec.structs.replace(weight, scale=scale)


def coarse_step(weight: EncodedTensor) -> EncodedTensor:
    """Twice the step, and the codes that are nearest by it."""
    assert weight.scale is not None
    scale, codes = weight.scale.copy(), weight.codes.copy()
    scale[3] *= 2
    codes[3] = np.rint(codes[3] / 2)
    return msgspec.structs.replace(weight, scale=scale, codes=codes)


@pytest.mark.parametrize(
    ("key", "edit", "least", "words"),
    [
        (PALETTE, other_code, 1, "1 of 2048 values are not at the nearest of the table"),
        (PALETTE, other_centre, 1, "of the table"),
        (INT8, other_code, 1, "1 of 9216 values are more than half a step away"),
        (INT8, other_step, 10, "values are more than half a step away"),
        (INT8, coarse_step, 1, "step"),
    ],
)
def test_a_wrong_code_centre_or_step_fails(
    small: Path, tmp_path: Path, key: str, edit: Edit, least: int, words: str
) -> None:
    record = planted(small, tmp_path / "copy", key, edit)
    assert record.verdict == "fail"
    assert record.value is not None
    assert record.value >= least
    assert record.sentence.startswith(f"{key}: ")
    assert words in record.sentence


def test_what_cannot_be_held_to_a_parent_is_not_judged(tiny_sticker: Path, tmp_path: Path) -> None:
    parent = Path(shutil.copytree(tiny_sticker, tmp_path / "parent"))
    small = compressed(parent, tmp_path / "small")
    (parent / "notes.txt").write_text("changed")
    assert "has changed since it was compressed" in judged(small).sentence
    shutil.rmtree(parent)
    record = judged(small)
    assert record.verdict == "skip"
    assert record.sentence.endswith("parent is not on this machine")
    assert judged(tiny_sticker).verdict == "pass"
    assert "no codes" in judged(tiny_sticker).sentence


def test_a_pruned_unet_is_not_judged_the_rest_is(tiny_sticker: Path, tmp_path: Path) -> None:
    record = judged(compressed(tiny_sticker, tmp_path / "small", prune=ChannelPrune(widths=(8, 16))))
    assert record.verdict == "pass"
    assert "the UNet, whose channels were removed before, is not judged" in record.sentence
