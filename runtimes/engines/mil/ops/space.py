"""Exchanges between channels, batch and space, and windows."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.table import Ints, bounded, op


@op("pixel_shuffle", exact=True)
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """Spread channels (b c*f*f h w) over space (b c h*f w*f); a channel's parts lie side by side."""
    return F.pixel_shuffle(x, upscale_factor)


@op("pixel_unshuffle", exact=True)
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """Gather space into channels, the inverse of `pixel_shuffle`."""
    return F.pixel_unshuffle(x, downscale_factor)


@op("depth_to_space", exact=True)
def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """Spread channels over space; a block's place is the slow part of the channel, unlike `pixel_shuffle`."""
    b, c, h, w = x.shape
    f = block_size
    parts = x.reshape(b, f, f, c // (f * f), h, w)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(b, c // (f * f), h * f, w * f)


@op("space_to_depth", exact=True)
def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """Gather space into channels, the inverse of `depth_to_space`."""
    b, c, h, w = x.shape
    f = block_size
    return (
        x.reshape(b, c, h // f, f, w // f, f).permute(0, 3, 5, 1, 2, 4).reshape(b, c * f * f, h // f, w // f)
    )


@op("space_to_batch", exact=True)
def space_to_batch(x: Tensor, block_shape: Ints, paddings: Ints) -> Tensor:
    """Pad the space and deal it out over the batch."""
    (p, q), (top, bottom, left, right) = _two(block_shape), paddings
    x = F.pad(x, [left, right, top, bottom])
    b, c, h, w = x.shape
    parts = x.reshape(b, c, h // p, p, w // q, q).permute(3, 5, 0, 1, 2, 4)
    return parts.reshape(b * p * q, c, h // p, w // q)


@op("batch_to_space", exact=True)
def batch_to_space(x: Tensor, block_shape: Ints, crops: Ints) -> Tensor:
    """Collect the space from the batch and crop it, the inverse of `space_to_batch`."""
    (p, q), (top, bottom, left, right) = _two(block_shape), crops
    b, c, h, w = x.shape
    parts = x.reshape(p, q, b // (p * q), c, h, w).permute(2, 3, 4, 0, 5, 1)
    whole = parts.reshape(b // (p * q), c, h * p, w * q)
    return whole[:, :, top : h * p - bottom, left : w * q - right]


def _two(block: Ints) -> tuple[int, int]:
    if len(block) != 2:
        raise ProgramError(f"wanted a block of two sizes, got {block}")
    return block[0], block[1]


@op("sliding_windows", exact=True)
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """Return the windows along an axis, side by side on a new axis behind it."""
    axis %= x.ndim
    count = (x.shape[axis] - size) // stride + 1
    bounded([*x.shape[:axis], count, size, *x.shape[axis + 1 :]])
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)
