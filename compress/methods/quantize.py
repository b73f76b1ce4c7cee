"""Weight-only int8: one symmetric scale per output channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flashbulb.compress.encoding import EncodedTensor, Encoding
from flashbulb.compress.methods.base import Method, finite


class QuantizeInt8(Method, frozen=True, kw_only=True, tag="int8"):
    """Store each weight as int8 times the scale of its output channel; the error is at most half a scale."""

    def encode(self, weight: npt.NDArray[Any]) -> EncodedTensor:
        """Return int8 codes [same shape] in -127..127 and scales [out channels]."""
        values = finite(weight)
        peak = np.abs(values.reshape(len(values), -1)).max(axis=1).astype(np.float64)
        scale = round_up_to_half(np.maximum(peak / 127, np.finfo(np.float16).smallest_subnormal))
        codes = np.rint(values / scale.reshape(-1, *(1,) * (values.ndim - 1))).astype(np.int8)
        encoding = Encoding(
            kind="int8_weight_only", bits=8, granularity="per_channel", axis=0, shape=values.shape
        )
        return EncodedTensor(encoding=encoding, codes=codes, scale=scale)


def round_up_to_half(scale: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return the next value that float16 holds exactly: phones keep scales so, and no code may overflow."""
    half = scale.astype(np.float16)
    up = np.nextafter(half, np.float16(np.inf))
    return np.where(half.astype(np.float64) < scale, up, half).astype(np.float32)
