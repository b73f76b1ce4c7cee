"""Errors that a caller can act on."""

from __future__ import annotations


class MissingExtra(ImportError):
    """A package of an optional extra is not installed."""

    def __init__(self, need: str, extra: str) -> None:
        super().__init__(f"{need}: pip install 'flashbulb[{extra}]'")
