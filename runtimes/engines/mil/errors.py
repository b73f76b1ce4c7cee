"""What goes wrong with a program: one exception, whose message says what was wanted and what was got."""

from __future__ import annotations

from flashbulb.runtimes.engines.base import EngineError


class ProgramError(EngineError):
    """A Core ML package is damaged, not supported, or was called in a way that it does not declare."""
