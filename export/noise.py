"""Make the same Gaussian noise from a seed on every platform.  Numpy only.

The algorithm, `mulberry32-box-muller-1`, uses nothing but 32-bit integers and doubles, so that Swift, Kotlin,
JavaScript and Python draw the same picture from the same seed:

1. `state = seed mod 2**32`.
2. `uniform()`, all in unsigned 32-bit arithmetic that wraps:

       state = state + 0x6D2B79F5
       a = (state ^ (state >> 15)) * (state | 1)
       a = a ^ (a + (a ^ (a >> 7)) * (a | 61))
       return (a ^ (a >> 14)) / 4294967296.0        # a double in [0, 1)

3. Until the shape is full, last index fastest, in doubles:

       u1 = max(uniform(), 1e-7);  u2 = uniform()
       r = sqrt(-2 * ln(u1));  t = 2 * pi * u2
       append r * cos(t), then r * sin(t)           # an odd last sine is dropped

4. Round each value to float32 once.

Step 3 calls the platform's `ln`, `cos` and `sin`, which may differ in the last bit of a double: after
rounding to float32 two platforms agree to one unit in the last place, usually exactly.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

ALGORITHM = "mulberry32-box-muller-1"
_STEP = 0x6D2B79F5


def uniforms(seed: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Draw `count` doubles in [0, 1): mulberry32 by Tommy Ettinger, vectorised over its counter."""
    index = np.arange(1, count + 1, dtype=np.uint64)
    state = ((np.uint64(seed % 2**32) + index * np.uint64(_STEP)) & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    with np.errstate(over="ignore"):
        a = (state ^ (state >> np.uint32(15))) * (state | np.uint32(1))
        a = a ^ (a + (a ^ (a >> np.uint32(7))) * (a | np.uint32(61)))
    return (a ^ (a >> np.uint32(14))).astype(np.float64) / 4294967296.0


def gaussian(seed: int, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Fill a shape with standard normal float32 values: Box and Muller (1958), cosine first."""
    count = math.prod(shape)
    u = uniforms(seed, count + count % 2)
    radius = np.sqrt(-2.0 * np.log(np.maximum(u[0::2], 1e-7)))
    angle = 2.0 * np.pi * u[1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.reshape(-1)[:count].reshape(shape).astype(np.float32)
