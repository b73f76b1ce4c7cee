"""A student that does not read what its teacher reads is refused before anything is written."""

import pytest

from flashbulb.distill.checkpoint import Checkpoint, CheckpointError
from flashbulb.distill.likeness import must_read_alike
from flashbulb.distill.stage import DistillConfig, run


@pytest.mark.parametrize(
    ("teacher", "student", "said"),
    [
        ("tiny_sdxl", "tiny_sd", "cross_attention_dim 32, where the teacher has 64; pooled text .* 0, .* 32"),
        ("tiny_sd", "tiny_sdxl", "cross_attention_dim 64, where the teacher has 32; pooled text .* 32, .* 0"),
        ("tiny_sd", "tiny_sticker", "in_channels 16, where the teacher has 4"),
    ],
)
def test_a_mismatched_student_is_one_sentence(request, tmp_path, teacher, student, said):
    teacher, student = (str(request.getfixturevalue(name)) for name in (teacher, student))
    with pytest.raises(CheckpointError, match=said):
        run(DistillConfig(teacher=teacher, student=student, out=str(tmp_path / "run"), processes=1))
    assert not (tmp_path / "run").exists()


def test_a_smaller_student_of_another_prediction_reads_alike(tiny_sd, tiny_sd_v, tmp_path):
    from diffusers import UNet2DConditionModel

    parent = Checkpoint.open(tiny_sd)
    narrow = {**parent.load("unet").config, "block_out_channels": (8, 16), "attention_head_dim": 4}
    small = UNet2DConditionModel.from_config(narrow)
    must_read_alike(
        parent, parent.derive(tmp_path / "small", stage="test", config={}, replace={"unet": small})
    )
    must_read_alike(parent, Checkpoint.open(tiny_sd_v))
