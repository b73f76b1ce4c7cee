"""Crops, and pictures sampled at given coordinates."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.ops.resizing import Sampling, grid
from flashbulb.runtimes.engines.mil.table import At, Ints, bounded, op


@op("crop", exact=True)
def crop(x: Tensor, crop_height: Ints, crop_width: Ints) -> Tensor:
    """Cut rows and columns off the borders."""
    (top, bottom), (left, right) = crop_height, crop_width
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _fold(points: Tensor, size: int, padding: str) -> Tensor:
    """Bring points outside back in, by the padding that repeats the picture."""
    if padding == "border":
        return points.clamp(0, size - 1)
    low, span = (0.0, size - 1) if padding == "reflection" else (-0.5, size)
    if span <= 0:
        return torch.zeros_like(points)
    folded = (points - low).abs() % (2 * span)
    return (torch.where(folded > span, 2 * span - folded, folded) + low).clamp(0, size - 1)


def _at(picture: Tensor, rows: Tensor, columns: Tensor, value: float) -> Tensor:
    """Take pixels of one picture (c h w) at whole places; outside there is ``value``."""
    height, width = picture.shape[1:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    taken = picture[:, rows.clamp(0, height - 1).long(), columns.clamp(0, width - 1).long()]
    return torch.where(inside, taken, torch.tensor(value, dtype=picture.dtype))


def sample(picture: Tensor, rows: Tensor, columns: Tensor, mode: str, value: float = 0.0) -> Tensor:
    """Sample one picture (c h w) at points, linearly or at the nearest pixel."""
    if mode == "nearest":
        return _at(picture, torch.round(rows), torch.round(columns), value)
    if mode != "bilinear":
        raise ProgramError(f"wanted bilinear or nearest, got {mode!r}")
    top, left = rows.floor(), columns.floor()
    down, along = (rows - top).to(torch.float32), (columns - left).to(torch.float32)
    upper = _at(picture, top, left, value) * (1 - along) + _at(picture, top, left + 1, value) * along
    lower = _at(picture, top + 1, left, value) * (1 - along) + _at(picture, top + 1, left + 1, value) * along
    return upper * (1 - down) + lower * down


def _pixels(points: Tensor, size: int, mode: str, align: bool) -> Tensor:
    """Turn coordinates into places among ``size`` pixels."""
    if mode == "unnormalized":
        return points
    if mode not in ("normalized_minus_one_to_one", "normalized_zero_to_one"):
        raise ProgramError(f"wanted known coordinates, got {mode!r}")
    unit = (points + 1) / 2 if mode == "normalized_minus_one_to_one" else points
    return unit * (size - 1) if align else unit * size - 0.5


@op("resample")
def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: Literal["bilinear", "nearest"],
    padding_mode: Literal["constant", "border", "reflection", "symmetric"],
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """Sample pictures (b c h w) at coordinates (b h w 2), which are (x, y)."""
    height, width = x.shape[-2:]
    columns = _pixels(coordinates[..., 0].to(torch.float32), width, coordinates_mode, align_corners)
    rows = _pixels(coordinates[..., 1].to(torch.float32), height, coordinates_mode, align_corners)
    if padding_mode != "constant":
        rows, columns = _fold(rows, height, padding_mode), _fold(columns, width, padding_mode)
    parts = [sample(p, r, c, sampling_mode, padding_value) for p, r, c in zip(x, rows, columns, strict=True)]
    return torch.stack(parts)


@op("affine")
def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: Literal["bilinear", "nearest"],
    padding_mode: Literal["constant", "border", "reflection", "symmetric"],
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """Transform pictures (b c h w) by matrices (b 6) that map output to input coordinates."""
    bounded([x.shape[0], x.shape[1], output_height, output_width])
    across, down = torch.linspace(-1, 1, output_width), torch.linspace(-1, 1, output_height)
    if not align_corners:
        across, down = across * (1 - 1 / output_width), down * (1 - 1 / output_height)
    ones = torch.ones(output_height, output_width)
    base = torch.stack([across.expand(output_height, -1), down[:, None].expand(-1, output_width), ones], -1)
    points = base @ transform_matrix.reshape(-1, 1, 2, 3).transpose(-1, -2)
    points = points.expand(x.shape[0], -1, -1, -1)
    found: Tensor = resample(
        x, points, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners
    )
    return found


@op("crop_resize")
def crop_resize(
    x: Tensor,
    at: At,
    roi: Tensor | None = None,
    boxes: Tensor | None = None,
    box_indices: Ints | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: Sampling = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """Cut boxes out of pictures (b c h w) and resize each; up to iOS 16 they are ``roi`` (n 1 4|5 1 1)."""
    given = roi if boxes is None else boxes
    if given is None:
        raise ProgramError("wanted boxes or a region of interest, got neither")
    rows = given.reshape(given.shape[0], -1).to(torch.float32)
    bounded([rows.shape[0], *x.shape[:2], target_height, target_width])
    pictures: list[Ints]
    if boxes is not None:
        pictures = [(i,) for i in (box_indices or range(len(rows)))]
    elif rows.shape[1] == 5:
        pictures, rows = [(int(r[0]),) for r in rows], rows[:, 1:]
    else:
        pictures = [tuple(range(x.shape[0]))] * len(rows)
    size = (target_height, target_width)
    found = []
    for row, chosen in zip(rows, pictures, strict=True):
        corners = _corners(row * spatial_scale, box_coordinate_mode, x, normalized_coordinates)
        points = [_between(corners[i], corners[i + 2], size[i], sampling_mode) for i in (0, 1)]
        high, wide = points[0][:, None].expand(size), points[1][None].expand(size)
        if at.opset < 16 and not bool(_inside(high, wide, x).all()):
            raise ProgramError("a box that leaves the picture is not supported here before iOS 16")
        found.append(torch.stack([_cut(x[i], high, wide, pad_value) for i in chosen]))
    stacked = torch.stack(found)
    return stacked if boxes is None else stacked[:, 0]


def _corners(box: Tensor, mode: str, x: Tensor, normalized: bool) -> list[float]:
    """Return a box as top, left, bottom, right in pixels."""
    a, b, c, d = box.tolist()
    if mode.endswith("WIDTH_FIRST"):
        a, b, c, d = b, a, d, c
    if mode.startswith("CENTER_SIZE"):
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    elif not mode.startswith("CORNERS"):
        raise ProgramError(f"wanted known box coordinates, got {mode!r}")
    height, width = (x.shape[-2] - 1, x.shape[-1] - 1) if normalized else (1, 1)
    return [a * height, b * width, c * height, d * width]


def _between(first: float, last: float, count: int, mode: Sampling) -> Tensor:
    """Return the points of a grid over [first, last], as if that were the picture."""
    length = last - first
    if mode == "DEFAULT":
        return first + torch.arange(count) * (
            (length - length / count) / max(1, count - 1) if count > 1 else 0
        )
    if mode == "OFFSET_CORNERS":
        delta = length / count
        return first + delta / 2 + torch.arange(count) * delta
    size = 1 << 20  # a fine scale: grids are linear in it, but for the half pixel
    if mode == "UNALIGN_CORNERS":
        return first + (torch.arange(count) + 0.5) * (length + 1) / count - 0.5
    return (first + grid(mode, size + 1, count) * (length / size)).to(torch.float32)


def _cut(picture: Tensor, rows: Tensor, columns: Tensor, value: float) -> Tensor:
    """Sample a picture; points outside it become ``value``, those inside never mix with it."""
    height, width = picture.shape[1:]
    found = sample(picture, rows.clamp(0, height - 1), columns.clamp(0, width - 1), "bilinear")
    return torch.where(_inside(rows, columns, picture), found, torch.tensor(value))


def _inside(rows: Tensor, columns: Tensor, picture: Tensor) -> Tensor:
    height, width = picture.shape[-2:]
    return (rows >= 0) & (rows <= height - 1) & (columns >= 0) & (columns <= width - 1)
