"""Orders, counts and patterns of indices."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.table import At, bounded, op


@op("argsort", exact=True)
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """Return the order of the values; of equal ones, the first comes first."""
    return torch.sort(x, dim=axis, descending=not ascending, stable=True).indices


@op("topk", exact=True)
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the k greatest or least values in order, and where they were; -1 takes all."""
    values, indices = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    count = x.shape[axis] if k == -1 else k
    values, indices = values.narrow(axis, 0, count), indices.narrow(axis, 0, count)
    return (values, indices) if return_indices else values


@op("cumsum")
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Add up along an axis, from either end, with or without the element itself."""
    x = torch.flip(x, [axis]) if reverse else x
    found = torch.cumsum(x, axis)
    found = found - x if exclusive else found
    return torch.flip(found, [axis]) if reverse else found


@op("band_part", exact=True)
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Keep a band around the diagonal; a negative width keeps all on that side."""
    rows, columns = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])
    keep = torch.ones(x.shape[-2:], dtype=torch.bool)
    keep = keep & (rows - columns <= lower) if lower >= 0 else keep
    keep = keep & (columns - rows <= upper) if upper >= 0 else keep
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype))


@op("one_hot", exact=True)
def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Tensor | None = None,
    off_value: Tensor | None = None,
) -> Tensor:
    """Mark each index on a new axis; one outside marks nothing."""
    bounded([*indices.shape, one_hot_vector_size])
    place = axis + indices.ndim + 1 if axis < 0 else axis
    shape = [1] * place + [-1] + [1] * (indices.ndim - place)
    hot = indices.unsqueeze(place) == torch.arange(one_hot_vector_size).reshape(shape)
    on = torch.tensor(1) if on_value is None else on_value
    off = torch.zeros((), dtype=on.dtype) if off_value is None else off_value
    return torch.where(hot, on, off)


@op("range_1d")
def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    """Count from start to before end."""
    first, last, by = (v.item() for v in (start, end, step))
    if by == 0:
        raise ProgramError("wanted a step that is not 0")
    bounded([max(0, math.ceil((last - first) / by))])
    return torch.arange(first, last, by, dtype=start.dtype) if (last - first) / by > 0 else start.new_zeros(0)


@op("non_zero", exact=True)
def non_zero(x: Tensor) -> Tensor:
    """Return the index of every element that is not 0, one per row."""
    return torch.nonzero(x)


@op("non_maximum_suppression", exact=True)
def non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_boxes: int,
    at: At,
    score_threshold: float = -math.inf,
    per_class_suppression: bool = False,
) -> tuple[Tensor, ...]:
    """Keep boxes (centre, size) by score unless one kept before overlaps too much.

    Up to iOS 16 boxes are (b n 4) and the count comes as a fourth output; later boxes are (b 4 n).
    """
    last = at.opset >= 17
    if last:
        boxes, scores = boxes.transpose(1, 2), scores.transpose(1, 2)
    bounded([boxes.shape[0], max_boxes, max(4, scores.shape[2])])
    found = [
        _suppressed(b, s, iou_threshold, score_threshold, max_boxes, per_class_suppression)
        for b, s in zip(boxes, scores, strict=True)
    ]
    kept_boxes, kept_scores = torch.stack([f[0] for f in found]), torch.stack([f[1] for f in found])
    kept = torch.stack([f[2] for f in found])
    if last:
        return kept_boxes.transpose(1, 2), kept_scores.transpose(1, 2), kept
    return kept_boxes, kept_scores, kept, torch.tensor([f[3] for f in found])


def _suppressed(
    boxes: Tensor, scores: Tensor, overlap: float, least: float, count: int, per_class: bool
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Suppress in one picture; what is missing to ``count`` is filled with zeros and the index -1."""
    best, classes = scores.max(1)
    half = boxes[:, 2:] / 2
    low, high = boxes[:, :2] - half, boxes[:, :2] + half
    order = torch.sort(best, descending=True, stable=True).indices
    kept: list[int] = []
    for index in order[best[order] >= least].tolist():
        rivals = [k for k in kept if not per_class or classes[k] == classes[index]]
        if len(kept) < count and not any(_overlap(low, high, index, k) > overlap for k in rivals):
            kept.append(index)
    chosen, missing = torch.tensor(kept, dtype=torch.int64), count - len(kept)
    pad = [0, 0, 0, missing]
    filled = F.pad(chosen, [0, missing], value=-1)
    return F.pad(boxes[chosen], pad), F.pad(scores[chosen], pad), filled, len(kept)


def _overlap(low: Tensor, high: Tensor, a: int, b: int) -> float:
    """Return intersection over union of two boxes."""
    sides = (torch.minimum(high[a], high[b]) - torch.maximum(low[a], low[b])).clamp_min(0)
    common = float(sides.prod())
    union = float((high[a] - low[a]).prod() + (high[b] - low[b]).prod()) - common
    return common / union if union > 0 else 0.0
