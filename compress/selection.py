"""Which weights are encoded and how: a default, overridden by kind, overridden by name. No torch."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import msgspec

from flashbulb.compress.methods import AnyMethod

Kind = Literal["linear", "conv", "text_encoder", "text_encoder_2", "unet", "vae_decoder"]
"""What ``by_kind`` may name: the type of a layer, or the component that it lies in."""

DELICATE = (
    "*/conv_in.*",
    "*/conv_out.*",
    "*/decoder.conv_in.*",
    "*/decoder.conv_out.*",
    "*/decoder.layers.0.*",
    "*/post_quant_conv.*",
    "*/time_embedding.*",
    "*/add_embedding.*",
    "*/class_embedding.*",
    "*.time_emb_proj.*",
)
"""Left as floats unless named exactly: few weights, first in line, or folded to a constant by the export."""


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One weight of a Linear or Conv layer."""

    key: str
    type: Literal["linear", "conv"]
    count: int

    @property
    def component(self) -> str:
        """The component that the layer lies in."""
        return self.key.partition("/")[0]

    @property
    def delicate(self) -> bool:
        """Tell whether only its exact name selects this layer."""
        return any(fnmatch.fnmatchcase(self.key, pattern) for pattern in DELICATE)


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The method for one layer; one that was asked for by name is encoded whatever it costs."""

    method: AnyMethod
    by_name: bool


def choose(
    layers: Sequence[Layer],
    *,
    default: AnyMethod | None,
    by_kind: Mapping[str, AnyMethod | None],
    by_name: Mapping[str, AnyMethod | None],
    min_weights: int,
) -> dict[str, Choice]:
    """Return layer key -> `Choice`; a name wins over a kind, and the later of two wins.

    Raises:
        ValueError: for a kind or a name pattern that matches nothing, listing what is known.
    """
    _check_kinds(by_kind)
    for pattern in by_name:
        _check_pattern(pattern, [layer.key for layer in layers])
    chosen = {layer.key: _choice(layer, default, by_kind, by_name, min_weights) for layer in layers}
    return {key: choice for key, choice in chosen.items() if choice is not None}


def _choice(
    layer: Layer,
    default: AnyMethod | None,
    by_kind: Mapping[str, AnyMethod | None],
    by_name: Mapping[str, AnyMethod | None],
    min_weights: int,
) -> Choice | None:
    eligible = not layer.delicate and layer.count >= min_weights
    matching = [p for p in by_name if p == layer.key or (eligible and fnmatch.fnmatchcase(layer.key, p))]
    if matching:
        method = by_name[matching[-1]]
        return None if method is None else Choice(method=method, by_name=True)
    kinds = [kind for kind in by_kind if kind in (layer.type, layer.component)]
    method = by_kind[kinds[-1]] if kinds else default
    return Choice(method=method, by_name=False) if eligible and method is not None else None


def _check_kinds(by_kind: Mapping[str, AnyMethod | None]) -> None:
    unknown = sorted(set(by_kind) - set(get_args(Kind)))
    if unknown:
        raise ValueError(f"by_kind: wanted kinds among {list(get_args(Kind))}, got {unknown}")


def _check_pattern(pattern: str, keys: Sequence[str]) -> None:
    if any(key == pattern or fnmatch.fnmatchcase(key, pattern) for key in keys):
        return
    near = difflib.get_close_matches(pattern, keys, n=5, cutoff=0.4) or list(keys[:5])
    raise ValueError(
        f"by_name: {pattern!r} matches none of the {len(keys)} layers. "
        f"Near: {near}. Patterns are <component>/<weight> with * and ?"
    )
