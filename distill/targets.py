"""What a student is asked for: targets made of a teacher's predictions, and the weights of their errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from flashbulb.distill.denoiser import Denoiser, Schedule

    Options = dict[str, Any]
    """Keywords of a denoiser's call."""
    Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """``predict(z, t) -> x0``."""

Weighting = Literal["exp", "sds", "nfsd"]


def time_weight(kind: Weighting, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return c(t), shaped as alpha and sigma.

    ``exp`` is alpha_t. ``sds`` is ``alpha_t w(t) / (2 sigma_t)`` with ``w = sigma_t^2``: the gradient of the
    summed loss is then ``w(t) (eps_teacher - eps)``, that of score distillation sampling (arXiv 2209.14988).
    ``nfsd`` is the same weight; its target differs, see `nfsd_x0`.
    """
    return alpha if kind == "exp" else alpha * sigma / 2


def teacher_x0(
    teacher: Denoiser,
    z: torch.Tensor,
    t: torch.Tensor,
    states: torch.Tensor,
    steps: int,
    options: Options,
) -> torch.Tensor:
    """Return the teacher's x0 (b, c, h, w) of z at timesteps t (b,), after ``steps`` even DDIM steps."""
    predict, schedule = told(teacher, states, options), teacher.schedule
    share = (t + 1) / len(schedule.alphas)
    for step in range(steps - 1):
        following = share * (1 - (step + 1) / steps)
        z = ddim_step(predict, schedule, z, share * (1 - step / steps), following)
    last, _, _ = schedule.at_share(share * (1 - (steps - 1) / steps))
    return predict(z, last.clamp(min=0))


def nfsd_x0(
    teacher: Denoiser,
    z: torch.Tensor,
    t: torch.Tensor,
    drawn: torch.Tensor,
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    *,
    scale: float,
    threshold: int,
) -> torch.Tensor:
    """Return the target (b, c, h, w) of noise-free score distillation (arXiv 2310.17590, section 4).

    Its residual takes the place of ``eps_teacher - eps`` and has no drawn noise in it: ``delta_D + scale
    delta_C`` with ``delta_C = eps(text) - eps(null)`` and ``delta_D = eps(null)`` below ``threshold``, else
    ``eps(null) - eps(negative)``. The target is ``drawn - sigma / alpha`` times that; in predictions of x0,
    where ``eps = (z - alpha x0) / sigma``, no division by a small sigma is left. One call evaluates the
    teacher three times.

    Args:
        teacher: the frozen teacher.
        z: the student's x0 noised to t.
        t: timesteps (b,).
        drawn: the student's x0.
        states: of the text (b, n, d), of the empty and of the negative prompt (1, n, d).
        scale: the factor s of the text's direction.
        threshold: timestep from which the negative prompt says what is out of the domain.
    """
    import torch

    text, null, negative = (part.expand_as(states[0]) for part in states)
    thrice = torch.cat([text, null, negative])
    on_text, on_null, on_negative = teacher(z.repeat(3, 1, 1, 1), t.repeat(3), thrice).chunk(3)
    alpha, _ = teacher.schedule.at(t)
    late = (t >= threshold).view(-1, 1, 1, 1)
    domain = torch.where(late, on_null - on_negative, on_null - z / alpha)
    return drawn.detach() + domain + scale * (on_text - on_null)


def told(denoiser: Denoiser, states: torch.Tensor, options: Options) -> Predict:
    """Return ``predict(z, t)`` of a denoiser whose text and guidance are given."""

    def predict(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return denoiser(z, t, states, **options)

    return predict


def two_step_target(
    teacher: Predict, schedule: Schedule, z: torch.Tensor, share: torch.Tensor, steps: float | torch.Tensor
) -> torch.Tensor:
    """Return the x0 (b, c, h, w) that one student step must predict to land where two teacher steps do.

    ``steps``, one or (b,), is how many such student steps make the whole schedule.

    From ``share`` (b,) of the schedule two DDIM steps of ``1 / (2 steps)`` lead to z''; then (2202.00512,
    appendix G) ``x = (z'' - (s''/s) z) / (a'' - (s''/s) a)``.
    """
    _, alpha, sigma = schedule.at_share(share)
    middle = ddim_step(teacher, schedule, z, share, share - 0.5 / steps)
    end = ddim_step(teacher, schedule, middle, share - 0.5 / steps, share - 1.0 / steps)
    _, end_alpha, end_sigma = schedule.at_share(share - 1.0 / steps)
    ratio = end_sigma / sigma
    return (end - ratio * z) / (end_alpha - ratio * alpha)


def ddim_step(
    predict: Predict, schedule: Schedule, z: torch.Tensor, share: torch.Tensor, following: torch.Tensor
) -> torch.Tensor:
    """Return z (b, c, h, w) after a DDIM step between two shares (b,) of the schedule.

    Where few timesteps are left, many steps meet at the clean end; nothing is to be done there.
    """
    import torch

    t, alpha, sigma = schedule.at_share(share)
    _, next_alpha, next_sigma = schedule.at_share(following)
    x0 = predict(z, t.clamp(min=0))
    stepped = next_alpha * x0 + next_sigma * (z - alpha * x0) / sigma.clamp(min=1e-12)
    return torch.where(sigma > 0, stepped, z)


def snr_weight(alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return the truncated-SNR weight ``max(alpha^2 / sigma^2, 1)`` of an x0 loss (2202.00512, section 4)."""
    return (alpha / sigma).square().clamp(min=1.0)
