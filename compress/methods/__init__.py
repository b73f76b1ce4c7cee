"""The ways to make one weight smaller; the union is the table of contents."""

from __future__ import annotations

from flashbulb.compress.methods.palettize import Palettize
from flashbulb.compress.methods.quantize import QuantizeInt8

AnyMethod = Palettize | QuantizeInt8

__all__ = ["AnyMethod", "Palettize", "QuantizeInt8"]
