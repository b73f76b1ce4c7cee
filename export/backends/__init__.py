"""The backends: one file each, and one line each in `AnyBackend`."""

from __future__ import annotations

from flashbulb.export.backends.coreml import Coreml
from flashbulb.export.backends.executorch import Executorch
from flashbulb.export.backends.ort import Ort

AnyBackend = Coreml | Ort | Executorch

__all__ = ["AnyBackend", "Coreml", "Executorch", "Ort"]
