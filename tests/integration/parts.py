"""Trainings on toy networks, for tests that start several processes: ``python parts.py RUNS``.

RUNS is a JSON list. A run has an ``out`` folder and an ``objective``; perhaps a step to ``stop`` after as if
killed, or one to ``die`` in unless restarted by torchrun; and what of the ``loop`` is other than below.
"""

import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from flashbulb.distill.denoiser import Denoiser, Schedule
from flashbulb.distill.descent import Descent
from flashbulb.distill.loop import LoopConfig, State, run_loop
from flashbulb.distill.objectives.add import Add
from flashbulb.distill.objectives.base import Batch, Pairs, World
from flashbulb.distill.objectives.halving import Rounds
from flashbulb.distill.objectives.lcm import Lcm
from flashbulb.distill.objectives.progressive import Progressive
from flashbulb.distill.sharding import shard

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}
LOOP = {"steps": 4, "batch": 8, "ema": 0.5, "warmup": 1, "log_every": 1, "precision": "no"}
OBJECTIVES = {
    "add": Add(warmup=0.0),
    "progressive": Progressive(rounds=Rounds(first=2, last=1)),
    "lcm": Lcm(),
}


class Out(NamedTuple):
    """What networks return, in a form that torch can look into, as diffusers' is."""

    sample: torch.Tensor


class Stopped(Exception):
    """Stands for kill -9."""


class Net(torch.nn.Module):
    """Two convolutions with a UNet's signature."""

    def __init__(self, *, scaled=False):
        super().__init__()
        self.config = {"time_cond_proj_dim": 256 if scaled else None}
        self.inward = torch.nn.Conv2d(4, 15, 3, padding=1)
        self.outward = torch.nn.Conv2d(15, 4, 3, padding=1)

    def forward(self, z, t, states, timestep_cond=None):
        hidden = self.inward(z) + states.mean((1, 2)).view(-1, 1, 1, 1) + t.view(-1, 1, 1, 1) / 1000
        return Out(self.outward(hidden.tanh()))


class Vae(torch.nn.Module):
    """A decoder that mixes channels and makes eight pixels of one."""

    config = {"scaling_factor": 1.0}

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Conv2d(4, 3, 1)

    def decode(self, z):
        return Out(torch.nn.functional.interpolate(self.mix(z), scale_factor=8))


def real(count, rng):
    words = torch.tensor([[own.random() for _ in range(12)] for own in rng.each(count)], device=rng.device)
    return Batch(
        latents=rng.normal((count, 4, 8, 8)), states=words[:, None].expand(-1, 5, -1), pooled=words - 0.5
    )


def pairs(count, rng):
    noise = rng.normal((count, 4, 8, 8))
    return Pairs(noise=noise, endpoint=noise.tanh(), states=rng.normal((count, 5, 12)))


def train(run):
    out, stop, config = Path(run["out"]), run.get("stop"), LoopConfig(**(LOOP | run.get("loop", {})))
    torch.manual_seed(0)
    descend = Descent(config)
    schedule, device = Schedule(SD, descend.device), descend.device
    world = World(
        student=Denoiser(Net(scaled=run["objective"] == "lcm").to(device), schedule),
        teacher=Denoiser(Net().to(device).requires_grad_(False), schedule),
        vae=Vae().to(device).requires_grad_(False), null_states=torch.zeros(1, 5, 12, device=device),
        real=real, pairs=pairs, descend=descend,
    )  # fmt: skip
    learner = OBJECTIVES[run["objective"]].learner(world, batch=descend.batch, steps=config.steps)
    if config.sharding == "fsdp":
        shard(world.student.unet, learner.optimizers.values())
    state = State(learner.modules, learner.optimizers, averaged=("student",))

    def on_step(step, steps, stats):
        if stop is not None and step > stop:
            raise Stopped
        if step == run.get("die") and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os._exit(1)

    run_loop(config, state, learner.update, out, descend, on_step=on_step)


def main():
    for run in json.loads(sys.argv[1]):
        try:
            train(run)
        except Stopped:
            continue


if __name__ == "__main__":
    main()
