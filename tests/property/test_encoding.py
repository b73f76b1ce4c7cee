"""Properties of every weight method, for any finite weight."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flashbulb.compress.encoding import PALETTE_BITS, EncodingError, pack, unpack
from flashbulb.compress.methods import AnyMethod, Palettize, QuantizeInt8
from flashbulb.compress.methods.palettize import cluster

SHAPES = hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=6)
WEIGHTS = hnp.arrays(np.float32, SHAPES, elements=st.floats(-100, 100, width=32))
FAST = settings(max_examples=60, deadline=None)


@FAST
@example(np.array([[1.08e-5]], np.float32))  # a scale between two subnormal float16 numbers
@example(np.array([[1e-45]], np.float32))
@given(WEIGHTS)
def test_int8_error_is_at_most_half_a_step(weight):
    encoded = QuantizeInt8().encode(weight)
    scale = encoded.scale.reshape(-1, *(1,) * (weight.ndim - 1)).astype(np.float64)
    error = np.abs(encoded.decode().astype(np.float64) - weight)
    assert (error <= scale / 2 * (1 + 1e-6)).all()
    assert np.abs(encoded.codes.astype(int)).max() <= 127


@FAST
@given(WEIGHTS, st.sampled_from(PALETTE_BITS))
def test_palette_codes_name_the_nearest_entry(weight, bits):
    encoded = Palettize(bits=bits).encode(weight)
    chosen = np.abs(weight.astype(np.float64) - encoded.decode())
    nearest = np.abs(weight[..., None].astype(np.float64) - encoded.lut.astype(np.float64)).min(axis=-1)
    np.testing.assert_array_equal(chosen, nearest)
    assert (np.diff(encoded.lut) >= 0).all()


@FAST
@given(WEIGHTS, st.sampled_from(PALETTE_BITS))
def test_palette_entries_are_the_means_of_their_clusters(weight, bits):
    centres = cluster(weight, 2**bits, 500)  # before rounding, which may move a value over a border
    codes = np.abs(weight[..., None].astype(np.float64) - centres).argmin(axis=-1)
    for code in np.unique(codes):
        np.testing.assert_allclose(weight[codes == code].mean(dtype=np.float64), centres[code], atol=1e-9)
    np.testing.assert_array_equal(Palettize(bits=bits).encode(weight).lut, centres.astype(np.float16))


@FAST
@given(WEIGHTS, st.sampled_from([m() for m in get_args(AnyMethod)]))
def test_encoding_is_deterministic_and_tables_fit_float16(weight, method):
    one, two = method.encode(weight), method.encode(weight.copy())
    np.testing.assert_array_equal(one.codes, two.codes)
    np.testing.assert_array_equal(one.decode(), two.decode())
    table = one.lut if one.lut is not None else one.scale
    np.testing.assert_array_equal(table.astype(np.float16).astype(np.float32), table)
    assert one.encoding.shape == weight.shape == one.codes.shape


@FAST
@given(hnp.arrays(np.float32, SHAPES, elements=st.sampled_from([-1.5, 0.0, 0.25, 2.0])))
def test_few_distinct_values_are_kept_exactly(weight):
    np.testing.assert_array_equal(Palettize(bits=2).encode(weight).decode(), weight)


@FAST
@given(st.sampled_from(PALETTE_BITS), st.data())
def test_packing_round_trip(bits, data):
    codes = data.draw(hnp.arrays(np.uint8, SHAPES, elements=st.integers(0, 2**bits - 1)))
    np.testing.assert_array_equal(unpack(pack(codes, bits), bits, codes.shape), codes)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -3.4e38])
@pytest.mark.parametrize("method", [m() for m in get_args(AnyMethod)])
def test_masks_and_non_finite_weights_are_refused(method, bad):
    weight = np.zeros((3, 3), np.float32)
    weight[1, 2] = bad
    with pytest.raises(EncodingError, match="finite"):
        method.encode(weight)


@pytest.mark.parametrize(("bits", "least_db"), [(1, 4.3), (2, 9.2), (4, 20.0), (6, 31.0), (8, 43.0)])
def test_palettes_of_a_gaussian_reach_the_rate_of_lloyd_and_max(bits, least_db):
    weight = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    error = Palettize(bits=bits).encode(weight).decode() - weight
    assert 10 * np.log10((weight**2).mean() / (error**2).mean()) > least_db
