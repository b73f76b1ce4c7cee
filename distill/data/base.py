"""What a source of captioned pictures is, and the options that all of them share.

A *source* draws pictures as tensors. Sources of a user's own pictures stand on *rows*: numbered samples that
are read on demand, from a folder, from shards or from tables.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import msgspec

if TYPE_CHECKING:
    import torch

CAPTIONS = ("text", "caption", "captions", "prompt", "txt", "caption_0")
"""Usual names of the caption's column, in the order in which they are looked for."""
PICTURES = ("image", "picture", "img", "jpg", "png", "webp", "file_name")
"""Usual names of the picture's column."""
SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
"""Pictures by the end of their file's name; other formats are not opened."""


class DataOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a user's own captioned pictures are found and prepared; the embedded ones need none of it."""

    crop: Literal["centre", "random"] = "centre"
    """Which square of a picture is kept once its shorter side fits."""
    flip: bool = False
    """Mirror every second picture; not for captions that tell left from right, nor for writing."""
    picture: str = ""
    """Column (or suffix in a shard) of the picture; default: the first usual one that is there."""
    caption: str = ""
    """Column (or suffix in a shard) of the caption; default: the first usual one that is there."""
    split: str = "train"
    """Which split to take where files are named after splits."""
    workers: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    """Threads that read pictures, also those of the next step; 0 reads when asked."""
    mix: Annotated[int, msgspec.Meta(gt=0)] = 4
    """Shards (or row groups) whose samples are shuffled together, so that reading stays among so many."""
    max_bad: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Unreadable samples that are passed over, each with a warning; one more is an error."""


class BadSample(ValueError):
    """A sample that cannot be used; the message says why, its name is known to who asked for it."""


class Rows(Protocol):
    """Numbered samples of one place, read on demand and from several threads at once."""

    sizes: tuple[int, ...]
    """How many samples lie together, for each file or group of them; the sum is their number."""
    incomplete: list[tuple[str, str]]
    """Name and reason of each sample that lacks a picture or a caption; those have no number."""

    def name(self, index: int) -> str:
        """Return where a sample comes from, for messages."""

    def picture(self, index: int) -> bytes:
        """Return a sample's encoded picture.

        Raises:
            BadSample: when it cannot be read.
            ValueError: when its place is not one that the data may name.
        """

    def captions(self, index: int) -> tuple[str, ...]:
        """Return a sample's captions, one or several to choose from.

        Raises:
            BadSample: when there is none.
        """


class Source(Protocol):
    """Draws captioned pictures; what is drawn is a function of the generators alone."""

    def draw(self, count: int, rng: random.Random) -> tuple[torch.Tensor, list[str]]:
        """Return pictures (count, 3, size, size) in [-1, 1] and their captions."""

    def draw_each(self, rngs: Sequence[random.Random]) -> tuple[torch.Tensor, list[str]]:
        """Return one picture and caption for each generator."""

    def captions(self, count: int, rng: random.Random) -> list[str]:
        """Return the captions alone that `draw` would return."""


def as_captions(value: object) -> tuple[str, ...]:
    """Return a table's value as captions: a text, or a list of texts.

    Raises:
        BadSample: for anything else.
    """
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise BadSample(f"wanted a text or a list of texts as its caption, got {str(value)[:80]!r}")
    return tuple(" ".join(str(text).split()) for text in texts)


def choose_column(wanted: str, usual: Sequence[str], there: Sequence[str], *, what: str, where: str) -> str:
    """Return the wanted column, or the first usual one.

    Raises:
        ValueError: when there is none, naming those that are there.
    """
    for name in [wanted] if wanted else usual:
        if name in there:
            return name
    said = f"the column {wanted!r}" if wanted else f"a column named {', '.join(usual[:-1])} or {usual[-1]}"
    option = "picture" if what == "picture" else "caption"
    raise ValueError(
        f"{where}: wanted {said} for the {what}, got {', '.join(map(repr, there)) or 'none'}; "
        f"name it in data_options.{option}"
    )
