"""Embedding: the student is assembled from what differs; nothing of the trainer's machine comes along."""

import json

import pytest

from flashbulb.distill.checkpoint import Checkpoint, CheckpointError, embedded
from flashbulb.distill.teacher.embed import embed


@pytest.fixture
def pair(tiny_sticker, tmp_path):
    teacher = Checkpoint.open(tiny_sticker).derive(
        tmp_path / "t", stage="teach", config={"out": str(tmp_path)}
    )
    unet = teacher.load("unet")
    unet.conv_out.weight.mul_(2)
    student = teacher.derive(
        tmp_path / "s", stage="distill", config={"teacher": str(teacher.path)}, replace={"unet": unet}
    )
    return teacher, student


def test_shared_parts_are_stored_once(pair, tmp_path):
    teacher, student = pair
    embed(teacher.path, student.path, tmp_path / "assets")
    assert not (tmp_path / "assets" / "student" / "vae").exists()
    assert json.loads((tmp_path / "assets" / "student" / "shared.json").read_text())["from"] == "teacher"
    for file in (tmp_path / "assets").rglob("*.json"):
        assert str(tmp_path) not in file.read_text(), file


def test_a_student_with_another_decoder_is_refused(pair, tmp_path):
    teacher, student = pair
    vae = student.load("vae")
    vae.post_quant_conv.bias.add_(1)
    other = student.derive(tmp_path / "other", stage="test", config={}, replace={"vae": vae})
    with pytest.raises(CheckpointError, match="vae"):
        embed(teacher.path, other.path, tmp_path / "assets")


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_the_shipped_checkpoints_open_in_diffusers_and_draw(name, tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from flashbulb.distill import checkpoint

    checkpoint._assemble.cache_clear()
    opened = embedded(name)
    assert opened.image_size == 64
    pipeline = opened.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        "a glossy red apple on a white background", num_inference_steps=1, guidance_scale=1.0
    ).images[0]
    pixels = np.asarray(picture).astype(float)
    assert picture.size == (64, 64)
    assert pixels[:3].mean() > 235  # the white background
    red, green, blue = pixels[24:44, 24:44].mean((0, 1))
    assert red > green + 40 and red > blue + 40  # the apple
    checkpoint._assemble.cache_clear()
