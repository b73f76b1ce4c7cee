"""What every weight method is: a frozen config with one method, `Method.encode`."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from flashbulb.compress.encoding import EncodedTensor, EncodingError


class Method(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A way to store one weight in fewer bits."""

    def encode(self, weight: npt.NDArray[Any]) -> EncodedTensor:
        """Return codes and tables of ``weight``; the same input gives the same bytes.

        Raises:
            EncodingError: when the weight cannot be encoded.
        """
        raise NotImplementedError


def finite(weight: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return ``weight`` as float32, refusing what float16 tables cannot hold.

    Raises:
        EncodingError: for NaN, infinity or magnitudes over 65504, such as an attention mask.
    """
    values = np.asarray(weight, dtype=np.float32)
    if not np.isfinite(values).all() or float(np.abs(values).max()) > 65504.0:
        raise EncodingError("wanted finite weights within ±65504, got others; is this a mask, not a weight?")
    return values
