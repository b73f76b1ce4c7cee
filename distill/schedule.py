"""Noise schedules as numbers: alphas, sigmas and the constants of a one-step generator.

A schedule maps a timestep t in 0..T-1 to (alpha_t, sigma_t) with ``alpha^2 + sigma^2 = 1`` and
``z_t = alpha_t x0 + sigma_t eps`` (DDPM, arXiv 2006.11239). Only numpy is imported here, so that an app or a
manifest reader can use it without torch.
"""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import msgspec
import numpy as np
import numpy.typing as npt

MOST_STEPS = 100_000
"""Longest schedule that is computed: a stranger's configuration names the number."""
PredictionType = Literal["epsilon", "v_prediction", "sample"]


def alphas_cumprod(scheduler_config: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Return the cumulative products of ``1 - beta`` of a diffusers scheduler config, shape (T,).

    Raises:
        ValueError: for a beta schedule that Stable Diffusion checkpoints do not use.
    """
    return cast(npt.NDArray[np.float64], np.cumprod(1.0 - betas(scheduler_config)))


def betas(scheduler_config: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Return the betas of a diffusers scheduler config, shape (T,); listed ones (``trained_betas``) first.

    Raises:
        ValueError: for a beta schedule that Stable Diffusion checkpoints do not use.
    """
    plain = _betas(scheduler_config)
    return zero_terminal(plain) if scheduler_config.get("rescale_betas_zero_snr") else plain


def zero_terminal(plain: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return betas whose alphas end at zero: shifted, and scaled to begin as before (2305.08891, alg. 1).

    Raises:
        ValueError: for betas that leave nothing to scale.
    """
    alphas = np.sqrt(np.cumprod(1.0 - plain))
    if not alphas[0] > alphas[-1]:
        raise ValueError("wanted at least two betas that add noise to rescale_betas_zero_snr, got fewer")
    products = ((alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])) ** 2
    return np.append(1.0 - products[0], 1.0 - products[1:] / products[:-1])


def _betas(scheduler_config: dict[str, Any]) -> npt.NDArray[np.float64]:
    listed = scheduler_config.get("trained_betas")
    if listed is not None:
        return _listed(listed)
    steps = int(_number(scheduler_config, "num_train_timesteps", 1000))
    start, end = _number(scheduler_config, "beta_start"), _number(scheduler_config, "beta_end")
    if not (1 <= steps <= MOST_STEPS and 0.0 <= start <= 1.0 and 0.0 <= end <= 1.0):
        raise ValueError(f"wanted 1..{MOST_STEPS} steps and betas in [0, 1], got {steps}, {start} and {end}")
    kind = scheduler_config.get("beta_schedule", "linear")
    if kind == "scaled_linear":
        return cast(npt.NDArray[np.float64], np.linspace(start**0.5, end**0.5, steps) ** 2)
    if kind == "linear":
        return np.linspace(start, end, steps)
    raise ValueError(f"wanted beta_schedule 'scaled_linear' or 'linear', got {kind!r}")


def _listed(values: Any) -> npt.NDArray[np.float64]:
    fine = isinstance(values, list) and 1 <= len(values) <= MOST_STEPS
    if not fine or not all(isinstance(v, float | int) and 0.0 <= v <= 1.0 for v in values):
        raise ValueError(
            f"wanted trained_betas to be 1..{MOST_STEPS} numbers in [0, 1], got {str(values)[:80]}"
        )
    return np.asarray(values, np.float64)


def ending_at(scheduler_config: dict[str, Any], timestep: int | None) -> dict[str, Any]:
    """Return the scheduler config cut off after ``timestep``, which becomes the last one; None keeps all.

    A student that is told this timestep for pure noise starts there in every pipeline: the betas are written
    out, and the schedule has no later timestep to begin with. Alphas and sigmas up to there do not change.

    Raises:
        ValueError: for a timestep that the schedule does not have.
    """
    if timestep is None:
        return scheduler_config
    whole = betas(scheduler_config)
    if not 0 <= timestep < len(whole):
        raise ValueError(f"wanted a timestep in 0..{len(whole) - 1}, got {timestep}")
    if timestep == len(whole) - 1:
        return scheduler_config
    kept = [float(beta) for beta in whole[: timestep + 1]]
    cut = {"trained_betas": kept, "num_train_timesteps": timestep + 1}
    rescaled = "rescale_betas_zero_snr" in scheduler_config  # the betas that are written out are so already
    return scheduler_config | cut | ({"rescale_betas_zero_snr": False} if rescaled else {})


def prediction_of(scheduler_config: dict[str, Any]) -> PredictionType:
    """Return what the network of a diffusers scheduler config predicts; diffusers' default is the noise.

    Raises:
        ValueError: for something else, and for noise where the last timestep holds nothing but noise.
    """
    found = scheduler_config.get("prediction_type", "epsilon")
    if found not in get_args(PredictionType):
        raise ValueError(f"wanted prediction_type in {get_args(PredictionType)}, got {found!r}")
    if found == "epsilon" and scheduler_config.get("rescale_betas_zero_snr"):
        raise ValueError(
            "wanted v_prediction or sample with rescale_betas_zero_snr, got epsilon: predicted noise tells "
            "nothing of the picture where alpha is zero; set rescale_betas_zero_snr to false"
        )
    return cast(PredictionType, found)


def _number(config: dict[str, Any], name: str, default: float | None = None) -> float:
    """Return a number of a configuration that a stranger may have written."""
    value = config.get(name, default)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise ValueError(f"wanted a number for {name}, got {str(value)[:60]!r}")
    return float(value)


class OneStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The constants of a one-step generator; they travel in the manifest, so no app re-derives a schedule.

    ``z_T = init_noise_sigma * noise``; ``x0 = cz * z_T + cm * model_output`` with (cz, cm) of `coefficients`;
    ``image = clamp(decode(x0 / latent_scale + latent_shift) / 2 + 0.5, 0, 1)``.
    """

    timestep: int
    alpha: float
    sigma: float
    prediction_type: PredictionType
    latent_scale: float
    latent_shift: float = 0.0
    init_noise_sigma: float = 1.0

    def coefficients(self) -> tuple[float, float]:
        """Return (cz, cm) such that ``x0 = cz * z_T + cm * model_output``."""
        if self.prediction_type == "epsilon":
            return 1.0 / self.alpha, -self.sigma / self.alpha
        if self.prediction_type == "v_prediction":
            return self.alpha, -self.sigma
        return 0.0, 1.0


def one_step(
    scheduler_config: dict[str, Any], vae_config: dict[str, Any], *, timestep: int | None = None
) -> OneStep:
    """Return the constants of one step at ``timestep`` (default: the last one, T - 1).

    The *input* is pure noise (zero terminal SNR, arXiv 2305.08891), the conversion to x0 keeps the finite
    (alpha, sigma) of the checkpoint's own schedule, so it stays finite for noise-predicting models.
    """
    products = alphas_cumprod(scheduler_config)
    t = len(products) - 1 if timestep is None else timestep
    if not 0 <= t < len(products):
        raise ValueError(f"wanted a timestep in 0..{len(products) - 1}, got {t}")
    return OneStep(
        timestep=t,
        alpha=float(products[t] ** 0.5),
        sigma=float((1.0 - products[t]) ** 0.5),
        prediction_type=prediction_of(scheduler_config),
        latent_scale=_number(vae_config, "scaling_factor", 1.0) or 1.0,
        latent_shift=_number(vae_config, "shift_factor", 0.0),
    )
