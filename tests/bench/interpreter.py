"""How fast and how large is the interpreter of Core ML programs?

``python tests/bench/interpreter.py mid`` times a random UNet of 50 million weights at 32x32 in turns with
PyTorch eager, on one thread; ``student`` does so with a picture of the embedded student, drawn by one fused
program.  ``turbo`` opens one of SD-Turbo's shape (866 million weights, 64x64) with ``low_memory`` in a
process of its own for each mode, and says that process's peak memory.  Bounds: 2.5 of eager for ``mid``,
1.5 for ``student``, and 8 GB.  For a bundle's own programs there is ``flashbulb bench BUNDLE --engine mil``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flashbulb.distill.components import TensorSpec
from flashbulb.runtimes.engines.mil import Program
from flashbulb.runtimes.ratio import LEAST_TURNS, ratio_interval
from flashbulb.runtimes.worker import peak_bytes

if TYPE_CHECKING:
    from flashbulb.export.graph import Graph

MOST_RATIO = {"mid": 2.5, "student": 1.5}
MOST_BYTES = 8_000_000_000
ATTENTION = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
SHAPES: dict[str, dict[str, Any]] = {
    "mid": {
        "sample_size": 32,
        "block_out_channels": (128, 256, 384),
        "layers_per_block": 2,
        "down_block_types": (ATTENTION[0], ATTENTION[0], "DownBlock2D"),
        "up_block_types": ("UpBlock2D", ATTENTION[1], ATTENTION[1]),
        "cross_attention_dim": 512,
        "attention_head_dim": 8,
    },
    "turbo": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "down_block_types": (*[ATTENTION[0]] * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *[ATTENTION[1]] * 3),
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
}
TIMESTEP, TOKENS = 999, 77


def graph(shape: str, precision: str) -> Graph:
    """Build the student's generator, or a UNet with random weights, as an export does."""
    if shape == "student":
        return student(precision)
    import torch
    from diffusers import UNet2DConditionModel

    from flashbulb.export.backends import Coreml
    from flashbulb.export.graph import Graph, OneTimestepUnet
    from flashbulb.export.rewrites import apply

    options, backend = SHAPES[shape], Coreml(precision=precision)  # type: ignore[arg-type]
    torch.manual_seed(0)
    size, width = options["sample_size"], options["cross_attention_dim"]
    with torch.no_grad():
        unet = apply(UNet2DConditionModel(in_channels=4, out_channels=4, **options), backend.rewrite())
        module = OneTimestepUnet(unet, TIMESTEP, 8 * size).eval().requires_grad_(False)
    sample = TensorSpec(name="sample", dtype="float32", shape=(1, 4, size, size))
    states = TensorSpec(name="hidden", dtype="float32", shape=(1, TOKENS, width))
    out = TensorSpec(name="out", dtype="float32", shape=(1, 4, size, size))
    return Graph(component="unet", module=module, inputs=(sample, states), outputs=(out,), origins={})


def student(precision: str) -> Graph:
    """Build the generator of the embedded student as an export does."""
    from flashbulb.distill.checkpoint import Checkpoint
    from flashbulb.distill.schedule import one_step
    from flashbulb.export.backends import Coreml
    from flashbulb.export.graph import build

    checkpoint, backend = Checkpoint.open("embedded:student"), Coreml(precision=precision)  # type: ignore[arg-type]
    step = one_step(checkpoint.config("scheduler"), checkpoint.config("vae"))
    return next(g for g in build(checkpoint, step, backend.rewrite()) if g.component == "generator")


def save(made: Graph, precision: str, folder: Path) -> Path:
    """Convert what was built and save its package."""
    from flashbulb.export.backends import Coreml

    backend = Coreml(precision=precision, target="iOS18")  # type: ignore[arg-type]
    return folder / backend.lower([made], {}, folder)[0].path


def inputs(shape: str) -> dict[str, np.ndarray[Any, Any]]:
    """Return random inputs of a UNet."""
    options, random = SHAPES[shape], np.random.default_rng(0)
    size, width = options["sample_size"], options["cross_attention_dim"]
    made = {
        "sample": random.normal(size=(1, 4, size, size)),
        "hidden": random.normal(size=(1, TOKENS, width)),
    }
    return {name: array.astype(np.float32) for name, array in made.items()}


def drawn(specs: Sequence[TensorSpec]) -> dict[str, np.ndarray[Any, Any]]:
    """Return random tensors; token ids are small."""
    random = np.random.default_rng(0)
    return {
        s.name: random.integers(0, 100, s.shape).astype(np.int32)
        if s.dtype == "int32"
        else random.normal(size=s.shape).astype(np.float32)
        for s in specs
    }


def speed(shape: str, folder: Path, turns: int) -> bool:
    """Time a program in turns with PyTorch, by processor time; say whether it keeps the bound."""
    import torch

    torch.set_num_threads(1)
    made = graph(shape, "float32")
    given = drawn(made.inputs)
    weights = sum(p.numel() for p in made.module.parameters())
    program = Program.load(save(made, "float32", folder), mode="fp32")
    tensors = [torch.from_numpy(array) for array in given.values()]

    def eager() -> None:
        with torch.inference_mode():
            made.module(*tensors)

    mine, theirs = [], []
    for turn in range(turns + 1):  # the first is a warm-up
        spent = [_processor_ms(work) for work in (lambda: program.predict(given), eager)]
        if turn:
            mine.append([spent[0]])
            theirs.append([spent[1]])
    found = ratio_interval(mine, theirs)
    assert found is not None  # there were enough turns
    good = found.high <= MOST_RATIO[shape]
    print(
        f"{shape}, {weights / 1e6:.0f} M weights, fp32, one thread: {np.median(theirs):.0f} ms eager, "
        f"{np.median(mine):.0f} ms here, ratio {found.low:.2f} to {found.high:.2f} with 95 % confidence; "
        f"at most {MOST_RATIO[shape]} is asked: {'kept' if good else 'BROKEN'}"
    )
    return good


def _processor_ms(work: Any) -> float:
    begun = time.process_time()
    work()
    return (time.process_time() - begun) * 1e3


def memory(shape: str, folder: Path) -> bool:
    """Run a program in each mode in a process of its own; say whether its peak keeps the bound."""
    package, kept = save(graph(shape, "float16"), "float16", folder), True
    for mode in ("fp32", "fp16"):
        words = [sys.executable, __file__, shape, "--open", str(package), "--mode", mode]
        peak = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])
        kept &= peak <= MOST_BYTES
        print(f"{shape}, {mode} mode, low memory: peak {peak / 1e9:.2f} GB; at most 8 GB is asked: ", end="")
        print("kept" if peak <= MOST_BYTES else "BROKEN")
    return kept


def main() -> int:
    """Measure what was asked for; 1 when a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shape", choices=[*SHAPES, "student"])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--open", help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=("fp32", "fp16"), default="fp32", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.open:
        Program.load(Path(chosen.open), mode=chosen.mode, low_memory=True).predict(inputs(chosen.shape))
        print(peak_bytes())
        return 0
    if chosen.turns < LEAST_TURNS:
        parser.error(f"wanted at least {LEAST_TURNS} turns, got {chosen.turns}")
    measure = memory if chosen.shape == "turbo" else partial(speed, turns=chosen.turns)
    with tempfile.TemporaryDirectory() as name:
        return 0 if measure(chosen.shape, Path(name)) else 1


if __name__ == "__main__":
    sys.exit(main())
