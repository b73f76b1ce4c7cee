"""Resizing of the last axes, by the nearest element or linearly, on the grids that Core ML names."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.table import Ints, bounded, op

Sampling = Literal["ALIGN_CORNERS", "STRICT_ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS"]


def grid(mode: Sampling, size: int, wanted: int) -> Tensor:
    """Return where each of ``wanted`` points lies among ``size``, not bounded yet."""
    places = torch.arange(wanted, dtype=torch.float64)
    if mode in ("ALIGN_CORNERS", "STRICT_ALIGN_CORNERS"):
        if wanted == 1:
            return places + ((size - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0)
        return places * ((size - 1) / (wanted - 1))
    if mode == "DEFAULT":
        return places * (size / wanted)
    if mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / wanted
        return places * delta + delta / 2
    return (places + 0.5) * (size / wanted) - 0.5


def linear(x: Tensor, axis: int, points: Tensor) -> Tensor:
    """Interpolate along an axis at points, bounded to its ends."""
    size = x.shape[axis]
    points = points.clamp(0, size - 1)
    low = points.floor().clamp_max(max(0, size - 2))
    part = (points - low).to(torch.float32).reshape(-1, *[1] * (x.ndim - 1 - axis % x.ndim))
    below = torch.index_select(x, axis, low.to(torch.int64))
    above = torch.index_select(x, axis, (low + 1).clamp_max(size - 1).to(torch.int64))
    return below + (above - below) * part


def nearest(x: Tensor, axis: int, points: Tensor) -> Tensor:
    """Take the element at each point's whole part."""
    return torch.index_select(x, axis, points.floor().clamp(0, x.shape[axis] - 1).to(torch.int64))


def _resized(x: Tensor, sizes: Ints, mode: Sampling) -> Tensor:
    """Resize the last axes linearly."""
    bounded([*x.shape[: x.ndim - len(sizes)], *sizes])
    fast = {"UNALIGN_CORNERS": False, "STRICT_ALIGN_CORNERS": True, "ALIGN_CORNERS": True}
    if x.ndim == 4 and len(sizes) == 2 and mode in fast and min(sizes) > 1:
        return F.interpolate(x, sizes, mode="bilinear", align_corners=fast[mode])
    for offset, size in enumerate(sizes):
        axis = x.ndim - len(sizes) + offset
        if size != x.shape[axis] or mode == "OFFSET_CORNERS":
            x = linear(x, axis, grid(mode, x.shape[axis], size))
    return x


def _nearest(x: Tensor, sizes: Ints) -> Tensor:
    bounded([*x.shape[: x.ndim - len(sizes)], *sizes])
    if x.ndim == 4 and len(sizes) == 2 and not any(w % n for w, n in zip(sizes, x.shape[2:], strict=True)):
        return F.interpolate(x, sizes, mode="nearest")
    for offset, size in enumerate(sizes):
        axis = x.ndim - len(sizes) + offset
        x = nearest(x, axis, grid("DEFAULT", x.shape[axis], size))
    return x


def _scaled(x: Tensor, height: float, width: float) -> Ints:
    return math.floor(x.shape[-2] * height + 1e-6), math.floor(x.shape[-1] * width + 1e-6)


@op("upsample_nearest_neighbor", exact=True)
def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: float = 1.0, scale_factor_width: float = 1.0
) -> Tensor:
    """Resize height and width by factors, taking the nearest element."""
    return _nearest(x, _scaled(x, scale_factor_height, scale_factor_width))


@op("resize_nearest_neighbor", exact=True)
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """Resize height and width to given sizes, taking the nearest element."""
    return _nearest(x, (target_size_height, target_size_width))


@op("upsample_bilinear")
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1.0,
    scale_factor_width: float = 1.0,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """Resize height and width by factors, linearly; the factor is computed anew from the sizes."""
    centred = not align_corners if half_pixel_centers is None else half_pixel_centers
    if align_corners and centred:
        raise ProgramError("wanted aligned corners or half-pixel centres, got both")
    mode: Sampling = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if centred else "DEFAULT"
    return _resized(x, _scaled(x, scale_factor_height, scale_factor_width), mode)


@op("resize_bilinear")
def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: Sampling = "DEFAULT"
) -> Tensor:
    """Resize height and width to given sizes, linearly."""
    return _resized(x, (target_size_height, target_size_width), sampling_mode)


@op("resize")
def resize(
    x: Tensor,
    shape: Ints,
    resized_dims: int,
    interpolation_mode: Literal["LINEAR", "NEAREST_NEIGHBOR"] = "LINEAR",
    sampling_mode: Sampling = "DEFAULT",
) -> Tensor:
    """Resize the last axes to the last entries of a shape, of which 0 keeps the size."""
    kept = x.shape[x.ndim - resized_dims :]
    sizes = tuple(s or k for s, k in zip(shape[len(shape) - resized_dims :], kept, strict=True))
    if interpolation_mode == "LINEAR":
        return _resized(x.to(torch.float32), sizes, sampling_mode)
    bounded([*x.shape[: x.ndim - resized_dims], *sizes])
    for offset, size in enumerate(sizes):
        axis = x.ndim - len(sizes) + offset
        points = grid(sampling_mode, x.shape[axis], size)
        # Apple's tests show that 2/3 goes to 1; halves go down, so that doubling is what the older ops do.
        x = nearest(x, axis, (points - 0.5).ceil() if sampling_mode == "DEFAULT" else points + 0.5)
    return x
