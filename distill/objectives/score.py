"""Score distillation as ADD writes it (arXiv 2311.17042, section 3.3 and appendix A)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from flashbulb.distill.objectives.halving import ddim_step, told

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.denoiser import Denoiser

Weighting = Literal["exp", "sds"]


def time_weight(kind: Weighting, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return c(t), shaped as alpha and sigma.

    ``exp`` is alpha_t. ``sds`` is ``alpha_t w(t) / (2 sigma_t)`` with ``w = sigma_t^2``: the gradient of the
    summed loss is then ``w(t) (eps_teacher - eps)``, that of score distillation sampling (arXiv 2209.14988).
    """
    return alpha if kind == "exp" else alpha * sigma / 2


def teacher_x0(
    teacher: Denoiser,
    z: torch.Tensor,
    t: torch.Tensor,
    states: torch.Tensor,
    steps: int,
    options: dict[str, Any],
) -> torch.Tensor:
    """Return the teacher's x0 (b, c, h, w) of z at timesteps t (b,), after ``steps`` even DDIM steps."""
    predict, schedule = told(teacher, states, options), teacher.schedule
    share = (t + 1) / len(schedule.alphas)
    for step in range(steps - 1):
        following = share * (1 - (step + 1) / steps)
        z = ddim_step(predict, schedule, z, share * (1 - step / steps), following)
    last, _, _ = schedule.at_share(share * (1 - (steps - 1) / steps))
    return predict(z, last.clamp(min=0))
