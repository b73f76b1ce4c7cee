"""Programs of another student, timestep or step: right in form, wrong in their numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flashbulb.distill.schedule import OneStep
from mutants.constants import Open, planted
from mutants.fault import Planter
from mutants.view import Array, View

Pairs = list[tuple[Array, Array]]
OTHER_STEP = 499
"""Timestep that a wrong export may have folded in."""
NEAR = 2e-3
"""Largest relative distance of a bias in half precision from the same in float32."""


def student_faults(planter: Planter, open_: Open, view: View, step: OneStep, folded: Pairs) -> None:
    """Add what an export of another checkpoint, timestep or schedule would have written."""
    planter.add(
        "other-student", "every tensor up to 1 % off, as after a few more steps", planted(open_, _drift)
    )
    if planter.component == "generator":
        _sigma(planter, open_, view, step)
    if planter.component in ("unet", "generator") and any(True for _ in _places(view, folded)):
        planter.add("timestep", f"time embedding of step {OTHER_STEP}", planted(open_, _retimed(folded)))


def _drift(view: View) -> None:
    """Multiply every weight, or its table or steps, by a factor of its own."""
    rng = random.Random(0)
    for const in view.consts.values():
        if const.size < 16:
            continue
        store = const.parts.get("lut") or const.parts.get("scale") or const.values
        if store.read().dtype.kind == "f":
            factor = 1 + rng.uniform(-0.01, 0.01)
            store.change(lambda a, f=factor: (a * f).astype(a.dtype))  # type: ignore[misc]


def _sigma(planter: Planter, open_: Open, view: View, step: OneStep) -> None:
    """Change the factors of the one step, where they stand in the program as they are."""
    for wanted, word in zip(step.coefficients(), ("noise", "output"), strict=True):
        names = [
            n for n, c in view.consts.items() if c.size == 1 and not c.parts and _is(c.values.read(), wanted)
        ]

        def change(view: View, names: tuple[str, ...] = tuple(names)) -> None:
            for name in names:
                view.consts[name].values.change(lambda a: (a * 1.05).astype(a.dtype))

        if names:
            planter.add("sigma", f"{word} coefficient {wanted:.4f} times 1.05", planted(open_, change))


def _is(held: Array, wanted: float) -> bool:
    return held.dtype.kind == "f" and bool(
        np.isclose(abs(float(held.reshape(-1)[0])), abs(wanted), rtol=NEAR)
    )


def _places(view: View, folded: Pairs) -> Iterator[tuple[str, Array]]:
    """Yield the biases that hold a time embedding, each with its values at the other step."""
    for name, const in view.consts.items():
        if len(const.shape) == 1 and not const.parts and const.size >= 8:
            held = const.values.read().astype(np.float32)
            for old, new in folded:
                if old.shape == held.shape and np.abs(old - held).max() <= NEAR * np.abs(old).max():
                    yield name, new


def _retimed(folded: Pairs) -> Callable[[View], None]:
    def change(view: View) -> None:
        for name, new in list(_places(view, folded)):
            view.consts[name].values.change(lambda a, n=new: n.astype(a.dtype))  # type: ignore[misc]

    return change


def embeddings(checkpoint: Any, timestep: int) -> Pairs:
    """Return each first bias of a block as it is folded at a timestep, and at the other one.

    Args:
        checkpoint: an open `Checkpoint` of Stable Diffusion's shape; one of SDXL's gives nothing.
        timestep: the timestep of the bundle.
    """
    import torch

    if checkpoint.is_sdxl:
        return []
    unet: Any = checkpoint.load("unet")
    found: Pairs = []
    with torch.no_grad():
        times = [unet.time_embedding(unet.time_proj(torch.tensor([t]))) for t in (timestep, OTHER_STEP)]
        for module in unet.modules():
            if hasattr(module, "time_emb_proj") and hasattr(module, "conv1"):
                shifts = [module.time_emb_proj(module.nonlinearity(t))[0] for t in times]
                old, new = (np.asarray((module.conv1.bias + s).numpy()) for s in shifts)
                found.append((old, new))
    return found
