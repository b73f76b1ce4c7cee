"""Structured pruning of a diffusers UNet: fewer channels in every stage, in a form that its config expresses.

UNet2DConditionModel has no option for the inside of one residual block, for a feed-forward width or for heads
of one attention; it has ``block_out_channels`` and heads per stage. So a stage gets narrower as a whole:
trunk, skips, residual insides, heads, feed-forward together; ``from_pretrained`` opens the result unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from flashbulb.compress.coupling import Group, Slot, Walk, exact_step, positions

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Indices = npt.NDArray[np.intp]
BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn")


class ChannelPrune(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Remove the channels of least weight (group L2 norm, arXiv 2301.12900) from every stage of the UNet."""

    widths: tuple[int, ...]
    """The new ``block_out_channels``, each a multiple of ``norm_num_groups``."""
    allow_regrouping: bool = False
    """Allow widths at which norms over a skip concatenation get other groups; more training to recover."""

    def apply(self, unet: torch.nn.Module) -> torch.nn.Module:
        """Return a narrower UNet; the one given is not changed.

        Raises:
            ValueError: for widths or blocks that a diffusers config cannot express.
        """
        heads = check(unet.config, self.widths)  # type: ignore[arg-type]
        state = {name: value.numpy() for name, value in unet.state_dict().items()}
        walk = Walk(unet.config, set(state), self.widths, heads)  # type: ignore[arg-type]
        slots = list(walk.slots())
        score(slots, state)
        kept = {group: best(group) for slot in slots for group in (*slot.out, *slot.ins)}
        if not self.allow_regrouping:
            refuse_regrouping(slots, kept, walk.old, walk.norms)
        return build(unet, self.widths, [new for _, new in heads], gather(slots, state, kept))


def check(config: Mapping[str, Any], widths: Sequence[int]) -> list[tuple[int, int]]:
    """Return (old, new) head counts per stage, or say what a config cannot express.

    Raises:
        ValueError: naming the rule and what would fit.
    """
    old, norms = tuple(config["block_out_channels"]), int(config["norm_num_groups"] or 0)
    foreign = {*config["down_block_types"], *config["up_block_types"], config["mid_block_type"]} - set(BLOCKS)
    if foreign or not norms:
        raise ValueError(f"pruning knows the blocks {BLOCKS} with GroupNorm, got {sorted(map(str, foreign))}")
    if len(widths) != len(old) or any(not 0 < n <= o or n % norms for o, n in zip(old, widths, strict=False)):
        raise ValueError(f"wanted {len(old)} widths up to {old}, multiples of {norms}, got {tuple(widths)}")
    for (a, b), (c, d) in zip(pairwise(old), pairwise(widths), strict=True):
        if (a == b) != (c == d):
            raise ValueError(
                f"widths {tuple(widths)} for {old}: neighbours that are equal must stay equal, and others "
                "different, because diffusers puts a shortcut convolution between different ones only"
            )
    counts = config["attention_head_dim"]  # diffusers' name for the number of heads
    per_stage = [counts] * len(old) if isinstance(counts, int) else list(counts)
    return [(h, _heads(h, o, n)) for h, o, n in zip(per_stage, old, widths, strict=True)]


def _heads(count: int, old: int, new: int) -> int:
    """Return the new number of heads: whole heads go if that is even, else each gets narrower."""
    if old % count == 0 and count * new % old == 0:
        return count * new // old
    if old % count == 0 and new % count == 0:
        return count
    raise ValueError(
        f"{count} heads of a stage {old} wide do not divide {new}: take a multiple of {old // count} "
        f"(whole heads) or of {count} (narrower heads)"
    )


def score(slots: Sequence[Slot], state: Mapping[str, npt.NDArray[Any]]) -> None:
    """Add to every group the squared norm of each channel's weights, relative to the tensor's mean."""
    for slot in slots:
        squares = np.square(state[slot.name], dtype=np.float64)
        for number, axis in enumerate((slot.out, slot.ins)):
            if not axis or slot.norm_groups or slot.name.endswith("bias"):
                continue
            norms = squares.sum(axis=tuple(n for n in range(squares.ndim) if n != number))
            start = 0
            for group in axis:
                group.score += norms[start : start + group.size] / max(norms.mean(), 1e-30)
                start += group.size


def best(group: Group) -> Indices:
    """Return the kept channels, ascending: in every block those of the highest score, whole units."""
    units = group.score.reshape(-1, group.block // group.unit, group.unit).sum(axis=2)
    count = group.keep // group.unit // len(units)
    chosen = np.sort(np.argsort(-units, axis=1, kind="stable")[:, :count], axis=1)
    whole = (chosen + np.arange(len(units))[:, None] * units.shape[1]).reshape(-1, 1)
    return (whole * group.unit + np.arange(group.unit)).reshape(-1)


def regrouped(slots: Sequence[Slot], kept: Mapping[Group, Indices]) -> list[str]:
    """Return the norms in which a channel ends in another group than before."""
    names = []
    for slot in (s for s in slots if s.norm_groups and s.name.endswith("weight")):
        where = positions(slot.out, kept)
        before = where // (sum(group.size for group in slot.out) // slot.norm_groups)
        after = np.arange(len(where)) // (len(where) // slot.norm_groups)
        if not np.array_equal(before, after):
            names.append(slot.name.removesuffix(".weight"))
    return names


def refuse_regrouping(
    slots: Sequence[Slot], kept: Mapping[Group, Indices], old: Sequence[int], norms: int
) -> None:
    """Raise when groups of a norm would change.

    Raises:
        ValueError: listing the widths that keep every group.
    """
    names = regrouped(slots, kept)
    if names:
        step = exact_step(old, norms)
        exact = [tuple(width * k // step for width in old) for k in range(1, step)]
        fitting = [w for w in exact if all(n % norms == 0 for n in w)]
        raise ValueError(
            f"these widths put channels of {len(names)} norms (first: {names[0]}) into other groups. "
            f"Widths that keep every group: {fitting or 'none for this model'}. "
            "Set allow_regrouping to accept that and train afterwards"
        )


def gather(
    slots: Sequence[Slot], state: Mapping[str, npt.NDArray[Any]], kept: Mapping[Group, Indices]
) -> dict[str, npt.NDArray[Any]]:
    """Return the state dict of the narrower UNet, but for its time embedding's first layer.

    Raises:
        ValueError: when a tensor belongs to no known group.
    """
    fixed = {name for name in state if name.startswith(("time_embedding.", "add_embedding."))}
    unknown = set(state) - fixed - {slot.name for slot in slots}
    if unknown:
        raise ValueError(f"a diffusers config cannot express pruning around {sorted(unknown)[:5]}")
    new = {name: state[name] for name in fixed}
    for slot in slots:
        value = state[slot.name]
        value = value[positions(slot.out, kept)] if slot.out else value
        new[slot.name] = value[:, positions(slot.ins, kept)] if slot.ins else value
    return new


def build(
    unet: Any, widths: Sequence[int], heads: Sequence[int], state: Mapping[str, npt.NDArray[Any]]
) -> torch.nn.Module:
    """Return a UNet of the new configuration with ``state``, strictly loaded."""
    import torch

    changes = {
        "block_out_channels": tuple(widths),
        "attention_head_dim": tuple(heads),
        "time_embedding_dim": unet.time_embedding.linear_1.out_features,
    }
    with torch.random.fork_rng(devices=[]):
        narrow = type(unet).from_config({**unet.config, **changes})
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}
    weight, bias = refit_time(unet, narrow)
    tensors |= {"time_embedding.linear_1.weight": weight, "time_embedding.linear_1.bias": bias}
    narrow.load_state_dict(tensors, strict=True)
    result: torch.nn.Module = narrow.to(unet.dtype).eval().requires_grad_(False)
    return result


def refit_time(unet: Any, narrow: Any, steps: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit the time embedding's first layer to the fewer frequencies that a narrower first stage has.

    Ridge regression over all timesteps; the last one counts a thousandfold, as one-step students run there.
    It is exact there and rough elsewhere: fewer waves cannot express the fast ones; training repairs that.
    """
    import torch

    layer = unet.time_embedding.linear_1
    times = torch.arange(steps)
    if unet.config.block_out_channels[0] == narrow.config.block_out_channels[0]:
        return layer.weight, layer.bias
    with torch.no_grad():
        wanted = layer(unet.time_proj(times).to(layer.weight.dtype)).double()
        waves = torch.cat([narrow.time_proj(times).double(), torch.ones(steps, 1).double()], dim=1)
        importance = torch.ones(steps, 1).double()
        importance[-1] = 1e3
        weighted = (waves * importance).T
        ridge = 1e-2 * torch.eye(waves.shape[1]).double()  # slow waves are nearly collinear
        found = torch.linalg.solve(weighted @ weighted.T + ridge, weighted @ (wanted * importance))
        error = (waves @ found - wanted).norm() / wanted.norm()
    log.info("time embedding refitted to %d frequencies: relative error %.2g", waves.shape[1] // 2, error)
    return found[:-1].T.float(), found[-1].float()
