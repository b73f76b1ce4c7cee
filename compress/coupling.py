"""Which channels of a diffusers UNet move together: groups, and the slots of weights that they index.

A `Slot` is one tensor of the state dict; its first and second axis are each a concatenation of `Group`s or
fixed. The groups of a UNet2DConditionModel are the stages' trunks (through skips, samplers and shortcuts),
the inside of every residual block, the stream inside every transformer, its heads, its feed-forward inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(eq=False)
class Group:
    """Channels that are kept or removed together in every slot that names this group.

    Every run of ``block`` channels keeps the same number; ``unit`` channels (a head) go together.
    """

    size: int
    keep: int
    block: int
    unit: int = 1
    score: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.score = np.zeros(self.size)


Axis = tuple[Group, ...]
FIXED: Axis = ()


@dataclass(frozen=True)
class Slot:
    """One tensor: the groups along its output axis, and along its input axis (empty: the axis stays)."""

    name: str
    out: Axis
    ins: Axis = FIXED
    norm_groups: int = 0
    """Group count, when a GroupNorm reads this axis."""


class Walk:
    """Walks a UNet by its config and yields every slot; ``widths`` are the new ``block_out_channels``."""

    def __init__(
        self,
        config: Mapping[str, Any],
        names: set[str],
        widths: Sequence[int],
        heads: Sequence[tuple[int, int]],
    ) -> None:
        self.config, self.names, self.heads = config, names, heads
        self.old = tuple(config["block_out_channels"])
        self.new = tuple(widths)
        self.norms = int(config["norm_num_groups"])
        shared: dict[int, Group] = {}
        for old, new in zip(self.old, self.new, strict=True):
            shared.setdefault(old, Group(old, new, self._trunk_block(old)))
        self.trunk = [shared[old] for old in self.old]

    def _trunk_block(self, width: int) -> int:
        """Return the run of channels that keeps a fixed share, so that norms over a concatenation agree."""
        step = exact_step(self.old, self.norms)
        uniform = all(
            new * self.old[0] == old * self.new[0] for old, new in zip(self.old, self.new, strict=True)
        )
        return step if uniform and step * self.new[0] % self.old[0] == 0 else width // self.norms

    def slots(self) -> Iterator[Slot]:
        """Yield every slot but those of the time embedding, whose input is a function of the width."""
        last = len(self.old) - 1
        yield from self._layer("conv_in", (self.trunk[0],), FIXED)
        skips = [0]
        for stage in range(last + 1):
            yield from self._down(stage, skips)
        yield from self._mid(last)
        for index in range(last + 1):
            yield from self._up(index, last, skips)
        yield from self._norm("conv_norm_out", (self.trunk[0],), self.norms)
        yield from self._layer("conv_out", FIXED, (self.trunk[0],))

    def _down(self, stage: int, skips: list[int]) -> Iterator[Slot]:
        prefix, trunk = f"down_blocks.{stage}", (self.trunk[stage],)
        for layer in range(self._depth(stage)):
            before = (self.trunk[max(stage - 1, 0)],) if layer == 0 else trunk
            yield from self._resnet(f"{prefix}.resnets.{layer}", before, stage)
            yield from self._transformer(f"{prefix}.attentions.{layer}", stage)
            skips.append(stage)
        if f"{prefix}.downsamplers.0.conv.weight" in self.names:
            yield from self._layer(f"{prefix}.downsamplers.0.conv", trunk, trunk)
            skips.append(stage)

    def _mid(self, stage: int) -> Iterator[Slot]:
        for layer in range(2):
            yield from self._resnet(f"mid_block.resnets.{layer}", (self.trunk[stage],), stage)
        yield from self._transformer("mid_block.attentions.0", stage)

    def _up(self, index: int, last: int, skips: list[int]) -> Iterator[Slot]:
        prefix, stage = f"up_blocks.{index}", last - index
        for layer in range(self._depth(stage) + 1):
            hidden = self.trunk[stage if layer else min(stage + 1, last)]
            yield from self._resnet(f"{prefix}.resnets.{layer}", (hidden, self.trunk[skips.pop()]), stage)
            yield from self._transformer(f"{prefix}.attentions.{layer}", stage)
        if f"{prefix}.upsamplers.0.conv.weight" in self.names:
            yield from self._layer(f"{prefix}.upsamplers.0.conv", (self.trunk[stage],), (self.trunk[stage],))

    def _resnet(self, prefix: str, ins: Axis, stage: int) -> Iterator[Slot]:
        out, width = (self.trunk[stage],), self.old[stage]
        inner = (Group(width, self.new[stage], width // self.norms),)
        yield from self._norm(f"{prefix}.norm1", ins, self.norms)
        yield from self._layer(f"{prefix}.conv1", inner, ins)
        yield from self._layer(f"{prefix}.time_emb_proj", inner, FIXED)
        yield from self._norm(f"{prefix}.norm2", inner, self.norms)
        yield from self._layer(f"{prefix}.conv2", out, inner)
        yield from self._layer(f"{prefix}.conv_shortcut", out, ins)

    def _transformer(self, prefix: str, stage: int) -> Iterator[Slot]:
        trunk, width = (self.trunk[stage],), self.old[stage]
        stream = (Group(width, self.new[stage], width),)
        yield from self._norm(f"{prefix}.norm", trunk, self.norms)
        yield from self._layer(f"{prefix}.proj_in", stream, trunk)
        yield from self._layer(f"{prefix}.proj_out", trunk, stream)
        for depth in range(self._blocks(prefix)):
            yield from self._block(f"{prefix}.transformer_blocks.{depth}", stream, stage)

    def _block(self, prefix: str, stream: Axis, stage: int) -> Iterator[Slot]:
        for norm in ("norm1", "norm2", "norm3"):
            yield from self._norm(f"{prefix}.{norm}", stream, 0)
        for attention, context in (("attn1", stream), ("attn2", FIXED)):
            inner = (self._attention(stage),)
            yield from self._layer(f"{prefix}.{attention}.to_q", inner, stream)
            yield from self._layer(f"{prefix}.{attention}.to_k", inner, context)
            yield from self._layer(f"{prefix}.{attention}.to_v", inner, context)
            yield from self._layer(f"{prefix}.{attention}.to_out.0", stream, inner)
        wide = Group(4 * self.old[stage], 4 * self.new[stage], 4 * self.old[stage])
        yield from self._layer(f"{prefix}.ff.net.0.proj", (wide, wide), stream)  # value half, gate half
        yield from self._layer(f"{prefix}.ff.net.2", stream, (wide,))

    def _attention(self, stage: int) -> Group:
        """Return the channels of one attention: whole heads go, or every head gets as much narrower."""
        old, new = self.heads[stage]
        width = self.old[stage]
        if new < old:
            return Group(width, self.new[stage], width, unit=width // old)
        return Group(width, self.new[stage], width // old)

    def _norm(self, name: str, axis: Axis, groups: int) -> Iterator[Slot]:
        for part in ("weight", "bias"):
            if f"{name}.{part}" in self.names:
                yield Slot(f"{name}.{part}", axis, norm_groups=groups)

    def _layer(self, name: str, out: Axis, ins: Axis) -> Iterator[Slot]:
        if f"{name}.weight" in self.names:
            yield Slot(f"{name}.weight", out, ins)
        if f"{name}.bias" in self.names:
            yield Slot(f"{name}.bias", out)

    def _depth(self, stage: int) -> int:
        layers = self.config["layers_per_block"]
        return int(layers if isinstance(layers, int) else layers[stage])

    def _blocks(self, prefix: str) -> int:
        found = {
            name.removeprefix(f"{prefix}.transformer_blocks.").split(".")[0]
            for name in self.names
            if name.startswith(f"{prefix}.transformer_blocks.")
        }
        return len(found)


def exact_step(widths: Sequence[int], norm_groups: int) -> int:
    """Return the longest run of channels that tiles every GroupNorm group, also over a concatenation."""
    return math.gcd(*(width // norm_groups for width in widths))


def positions(axis: Axis, kept: Mapping[Group, npt.NDArray[np.intp]]) -> npt.NDArray[np.intp]:
    """Return the indices along a concatenation of groups."""
    starts = np.cumsum([0, *(group.size for group in axis)])
    return np.concatenate([kept[group] + start for group, start in zip(axis, starts, strict=False)])
