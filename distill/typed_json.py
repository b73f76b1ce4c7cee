"""Read JSON that a stranger wrote into a typed record, strictly."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from flashbulb.distill.untrusted import UntrustedError, parse_json

T = TypeVar("T")


def decode(data: bytes, kind: type[T]) -> T:
    """Decode JSON in UTF-8 that has no field twice, no NaN, and nothing beside what a type has.

    Raises:
        UntrustedError: saying what is wrong, where.
    """
    parse_json(data)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntrustedError(str(error)) from error
