"""Default, kind and name, and the errors that list what is known."""

from __future__ import annotations

import pytest

from flashbulb.compress.methods import Palettize, QuantizeInt8
from flashbulb.compress.selection import Layer, choose

SIX, FOUR, INT8 = Palettize(bits=6), Palettize(bits=4), QuantizeInt8()
LAYERS = [
    Layer(key="unet/conv_in.weight", type="conv", count=9999),
    Layer(key="unet/mid.conv1.weight", type="conv", count=9999),
    Layer(key="unet/mid.time_emb_proj.weight", type="linear", count=9999),
    Layer(key="unet/mid.attn2.to_q.weight", type="linear", count=9999),
    Layer(key="unet/mid.attn2.to_k.weight", type="linear", count=10),
    Layer(key="vae_decoder/decoder.mid.conv1.weight", type="conv", count=9999),
]


def chosen(default=None, by_kind=None, by_name=None):
    found = choose(LAYERS, default=default, by_kind=by_kind or {}, by_name=by_name or {}, min_weights=100)
    return {key: choice.method for key, choice in found.items()}


def test_default_leaves_out_delicate_and_small_layers():
    keys = ["unet/mid.conv1.weight", "unet/mid.attn2.to_q.weight", "vae_decoder/decoder.mid.conv1.weight"]
    assert chosen(SIX) == dict.fromkeys(keys, SIX)


def test_nothing_is_chosen_without_a_method():
    assert chosen() == {}


def test_kind_overrides_default_and_the_later_kind_wins():
    found = chosen(SIX, {"conv": INT8, "vae_decoder": None})
    assert found == {"unet/mid.conv1.weight": INT8, "unet/mid.attn2.to_q.weight": SIX}
    assert chosen(SIX, {"vae_decoder": None, "conv": INT8})["vae_decoder/decoder.mid.conv1.weight"] == INT8


def test_name_overrides_kind():
    found = chosen(SIX, {"linear": INT8}, {"*.attn2.*": FOUR, "unet/mid.conv1.weight": None})
    assert found == {"unet/mid.attn2.to_q.weight": FOUR, "vae_decoder/decoder.mid.conv1.weight": SIX}


def test_a_pattern_does_not_reach_delicate_layers_but_their_name_does():
    assert "unet/conv_in.weight" not in chosen(by_name={"unet/*": FOUR})
    assert chosen(by_name={"unet/conv_in.weight": FOUR}) == {"unet/conv_in.weight": FOUR}
    assert chosen(by_name={"unet/mid.attn2.to_k.weight": FOUR}) == {"unet/mid.attn2.to_k.weight": FOUR}


def test_unknown_kind_lists_the_known():
    with pytest.raises(ValueError, match=r"'linear', 'conv'.*got \['convolution'\]"):
        chosen(by_kind={"convolution": SIX})


def test_unknown_name_lists_the_near():
    with pytest.raises(ValueError, match=r"none of the 6 layers.*unet/mid.conv1.weight"):
        chosen(by_name={"unet/mid.conv11.weight": SIX})
