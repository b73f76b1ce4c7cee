"""Differentiable augmentation of what a critic sees (DiffAug, Zhao et al., arXiv 2006.10738).

The same changes go over real and drawn pictures, and gradients pass through them to the student. Cropping is
not DiffAug's: it is how StyleGAN-T (arXiv 2301.09515, section 3.2) brings large pictures to the size of its
feature network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.rng import StepRng

Change = Literal["color", "translation", "cutout", "crop"]

SHIFT = 1 / 8
"""Largest translation, as a share of the side."""
HOLE = 1 / 2
"""Side of the cut-out square, as a share of the picture's."""
CROP_PROBABILITY = 0.5


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """Changes of one batch, drawn once; free of the picture's size, so that they fit any."""

    kinds: tuple[Change, ...]
    """What is changed, in this order: color, translation, cutout, crop."""
    brightness: torch.Tensor
    """Added to the picture, (b,) in [-0.5, 0.5]."""
    saturation: torch.Tensor
    """Factor of the distance from grey, (b,) in [0, 2]."""
    contrast: torch.Tensor
    """Factor of the distance from the picture's mean, (b,) in [0.5, 1.5]."""
    shift: torch.Tensor
    """Translation down and to the right, (b, 2), as shares of the side."""
    hole: torch.Tensor
    """Centre of the cut-out square, (b, 2), as shares of the side."""
    crop: tuple[float, float] | None
    """Where the crop lies in the room that it has, in [0, 1]; None scales the picture down instead."""


def draw_changes(kinds: tuple[Change, ...], count: int, rng: StepRng) -> Changes | None:
    """Draw the changes of ``count`` pictures; None when there are no ``kinds``, and nothing is drawn then.

    Each picture has its own colours, shift and hole; the crop is one for the whole batch.
    """
    import torch

    if not kinds:
        return None
    even = torch.stack([rng.uniform(count) for _ in range(7)], 1)
    cropped, top, left = (rng.shared.random() for _ in range(3))
    return Changes(
        kinds=kinds,
        brightness=even[:, 0] - 0.5,
        saturation=even[:, 1] * 2,
        contrast=even[:, 2] + 0.5,
        shift=(even[:, 3:5] * 2 - 1) * SHIFT,
        hole=even[:, 5:7],
        crop=(top, left) if cropped < CROP_PROBABILITY else None,
    )


def augment(pictures: torch.Tensor, changes: Changes | None, size: int) -> torch.Tensor:
    """Return changed pictures (b, 3, h, w); cropped ones are ``size`` wide and high.

    Colours may leave [-1, 1]; what a shift or a hole uncovers is 0, the middle of that range.
    """
    if changes is None:
        return pictures
    if "color" in changes.kinds:
        pictures = recolor(pictures, changes)
    if "translation" in changes.kinds:
        pictures = translate(pictures, changes.shift)
    if "cutout" in changes.kinds:
        pictures = cut_out(pictures, changes.hole)
    if "crop" in changes.kinds and changes.crop is not None:
        pictures = crop(pictures, changes.crop, size)
    return pictures


def recolor(pictures: torch.Tensor, changes: Changes) -> torch.Tensor:
    """Return pictures with other brightness, then saturation, then contrast."""
    brightness, saturation, contrast = (
        values.view(-1, 1, 1, 1).to(pictures)
        for values in (changes.brightness, changes.saturation, changes.contrast)
    )
    pictures = pictures + brightness
    grey = pictures.mean(1, keepdim=True)
    pictures = grey + saturation * (pictures - grey)
    mean = pictures.mean((1, 2, 3), keepdim=True)
    return mean + contrast * (pictures - mean)


def translate(pictures: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return pictures moved by whole pixels, filled with 0 where they came from."""
    import torch
    from torch.nn import functional

    count, _, height, width = pictures.shape
    down, right = (shift.to(pictures.device) * torch.tensor([height, width]).to(shift)).round().long().T
    margin = round(SHIFT * max(height, width)) + 1
    padded = functional.pad(pictures, (margin,) * 4).permute(0, 2, 3, 1)
    rows = torch.arange(height, device=pictures.device) + margin - down[:, None]
    columns = torch.arange(width, device=pictures.device) + margin - right[:, None]
    batch = torch.arange(count, device=pictures.device)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cut_out(pictures: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """Return pictures with a square of half their side set to 0; it may lie partly outside."""
    import torch

    inside = []
    for axis, length in enumerate(pictures.shape[2:]):
        places = (torch.arange(length, device=pictures.device) + 0.5) / length
        inside.append((places - hole[:, axis, None].to(pictures.device)).abs() < HOLE / 2)
    covered = inside[0][:, :, None] & inside[1][:, None, :]
    return pictures.masked_fill(covered[:, None], 0.0)


def crop(pictures: torch.Tensor, place: tuple[float, float], size: int) -> torch.Tensor:
    """Return a square of ``size`` pixels of each picture, or the picture when it is no larger."""
    height, width = pictures.shape[2:]
    if min(height, width) <= size:
        return pictures
    top, left = (round(share * (length - size)) for share, length in zip(place, (height, width), strict=True))
    return pictures[:, :, top : top + size, left : left + size]
