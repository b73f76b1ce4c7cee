"""What the halving methods share: rounds in which a student learns two steps of its teacher in one.

Progressive distillation (arXiv 2202.00512) and the second stage of guided distillation (arXiv 2210.03142)
differ in nothing but the guidance that the networks are told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from flashbulb.distill.objectives.base import Learner, World
from flashbulb.distill.sharding import copy_whole
from flashbulb.distill.targets import snr_weight, told, two_step_target

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from flashbulb.distill.loop import StepRng
    from flashbulb.distill.targets import Options

    Guide = Callable[[bool, StepRng], tuple[Options, Options]]
    """``guide(first round, rng)`` -> what the teacher and the student are told of guidance."""


Grid = Literal["deterministic", "stochastic", "both"]
"""How far a student step reaches: to the next of its timesteps, or to the one behind it, as the stochastic
sampler steps; ``both`` draws one of the two for each picture."""


class Rounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Student steps of the first and the last round; each round has half of those before it."""

    first: Annotated[int, msgspec.Meta(ge=1)] = 8
    last: Annotated[int, msgspec.Meta(ge=1)] = 1

    def __post_init__(self) -> None:
        ratio = self.first // self.last
        if self.last * ratio != self.first or ratio & (ratio - 1):
            raise ValueError(f"wanted first = last times a power of two, got {self.first} and {self.last}")

    @property
    def count(self) -> int:
        """Rounds in all."""
        return (self.first // self.last).bit_length()

    def at(self, step: int, steps: int) -> tuple[int, bool]:
        """Return the student's steps at an optimizer step, and whether a new round begins there."""
        number = step * self.count // steps
        return self.first >> number, step > 0 and (step - 1) * self.count // steps != number


def halving_learner(
    world: World,
    rounds: Rounds,
    learning_rate: float,
    *,
    batch: int,
    steps: int,
    guide: Guide,
    grid: Grid = "deterministic",
) -> Learner:
    """Return the learner; the teacher is part of its state, because the student of a round replaces it.

    Raises:
        ValueError: for several rounds of a student that cannot take the teacher's place.
    """
    import torch

    if rounds.count > 1:
        _must_be_of_one_form(world)
    student, teacher = world.student.unet, world.teacher.unet
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )

    def update(step: int, rng: StepRng) -> dict[str, float]:
        count, new = rounds.at(step, steps)
        if new:
            copy_whole(student, teacher)
        loss = halving_loss(world, batch, count, rng, *guide(count == rounds.first, rng), grid=grid)
        world.descend(loss, optimizer)
        return {"loss": loss.item(), "student_steps": float(count)}

    modules = {"student": student, "teacher": teacher}
    return Learner(modules=modules, optimizers={"student": optimizer}, update=update)


def _must_be_of_one_form(world: World) -> None:
    """Refuse a student whose weights mean nothing to the teacher's network: they are copied there."""
    import torch

    student, teacher = world.student, world.teacher
    shapes = ({k: v.shape for k, v in d.unet.state_dict().items()} for d in (student, teacher))
    told = [d.schedule.prediction for d in (student, teacher)]
    if len({str(s) for s in shapes}) > 1:
        unlike = "of another architecture"
    elif told[0] != told[1]:
        unlike = f"that predicts {told[0]} where the teacher predicts {told[1]}"
    elif not torch.equal(student.schedule.alphas, teacher.schedule.alphas):
        unlike = "with another noise schedule"
    else:
        return
    raise ValueError(
        f"wanted a student of the teacher's own form, because it teaches the next round; got one {unlike}; "
        "leave student empty, or set rounds to a single one"
    )


def halving_loss(
    world: World,
    batch: int,
    steps: int,
    rng: StepRng,
    to_teacher: Options,
    to_student: Options,
    *,
    grid: Grid = "deterministic",
) -> torch.Tensor:
    """Return the weighted squared error of x0 at a random one of the student's ``steps`` timesteps."""
    import torch

    schedule, real = world.student.schedule, world.real(batch, rng)
    share = (rng.integers(0, steps, batch) + 1) / steps
    t, alpha, sigma = schedule.at_share(share)
    whole = steps_of(grid, share, steps, rng)
    eps = rng.normal(real.latents.shape)
    z = schedule.add_noise(real.latents, eps, t, zero_snr=True)
    with torch.no_grad():
        target = two_step_target(told(world.teacher, real.states, to_teacher), schedule, z, share, whole)
    error = (world.student(z, t, real.states, **to_student) - target).square()
    return (snr_weight(alpha, sigma) * error).mean()


def steps_of(grid: Grid, share: torch.Tensor, steps: int, rng: StepRng) -> torch.Tensor:
    """Return how many student steps as long as each one's (b,) make the whole schedule.

    The stochastic sampler (arXiv 2210.03142, section 4) steps from ``t`` down to ``s = t - 2/N`` and adds
    noise up to ``k = s + 1/N``; only its last step, from ``1/N`` to the clean picture, is of single length.
    """
    import torch

    single = torch.full_like(share, steps)
    if grid == "deterministic":
        return single
    double = share * steps > 1.5
    if grid == "both":
        double &= rng.uniform(len(share)) < 0.5
    return torch.where(double, single / 2, single)
