"""Noise is a contract with apps in other languages: values are fixed for ever."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flashbulb.export.noise import gaussian, uniforms

# Both computed with the usual JavaScript mulberry32, its Math functions and Math.fround.
SEED_0 = [0.26642920868471265, 0.0003297457005828619, 0.2232720274478197, 0.1462021479383111]
GAUSS_0 = [1.6264322996139526, 0.003369733924046159, 1.0509958267211914, 1.3762763738632202]


def plain(seed: int, count: int) -> list[float]:
    """Follow the documented steps one number at a time."""
    mask, state, out = 0xFFFFFFFF, seed % 2**32, []
    for _ in range(count):
        state = (state + 0x6D2B79F5) & mask
        a = ((state ^ (state >> 15)) * (state | 1)) & mask
        a ^= (a + ((a ^ (a >> 7)) * (a | 61))) & mask
        out.append((a ^ (a >> 14)) / 4294967296.0)
    return out


def test_uniforms_are_mulberry32() -> None:
    assert uniforms(0, 4).tolist() == SEED_0


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1])
def test_vectorised_equals_the_plain_loop(seed: int) -> None:
    assert uniforms(seed, 257).tolist() == plain(seed, 257)


def test_gaussian_pairs_are_cosine_then_sine() -> None:
    u1, u2 = plain(7, 2)
    radius, angle = math.sqrt(-2 * math.log(max(u1, 1e-7))), 2 * math.pi * u2
    wanted = np.array([radius * math.cos(angle), radius * math.sin(angle)], dtype=np.float32)
    np.testing.assert_allclose(gaussian(7, (2,)), wanted, rtol=1e-7)


def test_golden_values() -> None:
    wanted = GAUSS_0
    np.testing.assert_allclose(gaussian(0, (1, 4)), [wanted], rtol=2e-7)


def test_order_is_row_major_and_an_odd_count_drops_the_last_sine() -> None:
    long = gaussian(3, (6,))
    assert gaussian(3, (2, 3)).tolist() == long.reshape(2, 3).tolist()
    assert gaussian(3, (5,)).tolist() == long[:5].tolist()


def test_it_is_standard_normal() -> None:
    noise = gaussian(1, (1, 16, 64, 64))
    assert noise.dtype == np.float32
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1) < 0.01
    assert not np.array_equal(noise, gaussian(2, (1, 16, 64, 64)))
