"""A cache on disk of teacher pictures: noise, prompt and the multi-step endpoint of the same noise.

The endpoint is drawn with DDIM. InstaFlow (arXiv 2309.06380) draws its pairs with DPM-Solver, which comes
nearer to the exact flow in as many steps.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.denoiser import Denoiser

CHUNK = 64


def cache_pairs(
    out: Path,
    count: int,
    *,
    teacher: Denoiser,
    prompts: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    null_states: torch.Tensor,
    shape: tuple[int, int, int],
    steps: int,
    guidance: float,
    rank: tuple[int, int] = (0, 1),
    on_chunk: Callable[[int, int], None] | None = None,
) -> None:
    """Sample ``count`` teacher pictures in chunks of 64 into ``out``; finished chunks are kept after a kill.

    A chunk whose prompts are others than they were, because the data's captions have changed, is drawn anew.

    Args:
        out: folder of the cache.
        count: pictures in all.
        teacher: the frozen teacher.
        prompts: ``prompts(chunk)`` -> (token ids (64, n), text states (64, n, d)), pure.
        null_states: states of the empty prompt, (1, n, d).
        shape: latent shape (c, h, w).
        steps: DDIM steps.
        guidance: classifier-free guidance.
        rank: (index, count) of this process; chunks are dealt out in turn.
        on_chunk: progress callback (done, all).
    """
    import torch
    from safetensors.torch import save_file

    from flashbulb.distill.samplers import ddim, trailing

    out.mkdir(parents=True, exist_ok=True)
    chunks = -(-count // CHUNK)
    for chunk in range(rank[0], chunks, rank[1]):
        file = out / f"pairs-{chunk:05d}.safetensors"
        ids, states = prompts(chunk)
        if not _is_of(file, ids):
            generator = torch.Generator("cpu").manual_seed(1_000_003 + chunk)
            noise = torch.randn((CHUNK, *shape), generator=generator, device="cpu").to(null_states.device)
            with torch.inference_mode():
                timesteps = trailing(steps, len(teacher.schedule.alphas))
                endpoint = ddim(teacher, noise, states, timesteps, guidance=guidance, null_states=null_states)
            partial = file.with_suffix(".partial")
            found = {"noise": noise, "ids": ids, "endpoint": endpoint.half()}
            save_file({name: value.cpu() for name, value in found.items()}, partial)
            os.replace(partial, file)
        if on_chunk is not None:
            on_chunk(chunk + 1, chunks)


def _is_of(file: Path, ids: torch.Tensor) -> bool:
    """Tell whether a chunk is there, and was drawn from prompts of these token ids."""
    from safetensors import safe_open

    if not file.is_file():
        return False
    with safe_open(file, "pt") as opened:
        return bool(opened.get_tensor("ids").equal(ids.cpu()))


def load_pairs(out: Path, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (token ids (n, t), noise (n, c, h, w), endpoints (n, c, h, w)) of a finished cache."""
    import torch
    from safetensors.torch import load_file

    parts = [load_file(out / f"pairs-{chunk:05d}.safetensors") for chunk in range(-(-count // CHUNK))]
    ids, noise, endpoint = (torch.cat([p[key] for p in parts]) for key in ("ids", "noise", "endpoint"))
    return ids, noise, endpoint.float()
