"""WebDataset shards: tar files whose neighbouring members of one name make a sample.

Shards are indexed once, by their headers, and samples are read where they lie, so that any order can be had
and none of it is state. Members are pictures, texts and JSON; nothing else is decoded, and nothing is run:
no shell commands as names of shards, no pickles, no arrays.
"""

from __future__ import annotations

import itertools
import json
import logging
import tarfile
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flashbulb.distill.data.base import CAPTIONS, SUFFIXES, BadSample, DataOptions, as_captions
from flashbulb.distill.data.paths import inside, plain
from flashbulb.distill.data.pictures import MAX_BYTES

log = logging.getLogger(__name__)

TEXTS = ("txt", "text", "caption")
MAX_TEXT_BYTES = 1024 * 1024


class Member(NamedTuple):
    """Where a member's bytes lie in its shard."""

    suffix: str
    start: int
    bytes: int


class Sample(NamedTuple):
    """A picture and what tells its caption."""

    key: str
    picture: Member
    text: Member


class ShardRows:
    """The samples of several shards, shard by shard."""

    def __init__(self, files: list[Path], options: DataOptions, root: Path | None = None) -> None:
        """Index the shards.

        Raises:
            ValueError: when a shard is no plain tar, or one of its members is not to be trusted.
        """
        self.files = [inside(file.parent, file.name, root) if root else file for file in files]
        self.caption, self.incomplete = options.caption, list[tuple[str, str]]()
        self.samples = [list(self._index(file, options)) for file in self.files]
        self.sizes = tuple(map(len, self.samples))
        self.ends = list(itertools.accumulate(self.sizes))
        log.info("%d shards, %d samples", len(files), sum(self.sizes))

    def name(self, index: int) -> str:
        """Return shard and key."""
        file, sample = self._at(index)
        return f"{file}, sample {sample.key}"

    def picture(self, index: int) -> bytes:
        """Return the picture's bytes."""
        file, sample = self._at(index)
        return _read(file, sample.picture, MAX_BYTES)

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the text member, or the caption of the JSON member."""
        file, sample = self._at(index)
        data = _read(file, sample.text, MAX_TEXT_BYTES)
        try:
            text = data.decode("utf-8-sig")
            return as_captions(text if sample.text.suffix != "json" else self._from_json(text))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise BadSample(f"its {sample.text.suffix} is no {sample.text.suffix} in UTF-8") from error

    def _from_json(self, text: str) -> object:
        value = json.loads(text)
        for key in [self.caption] if self.caption and self.caption != "json" else CAPTIONS:
            if isinstance(value, dict) and key in value:
                return value[key]
        raise BadSample(
            f"wanted a JSON object with {self.caption or ' or '.join(CAPTIONS)}, got {text[:80]!r}"
        )

    def _at(self, index: int) -> tuple[Path, Sample]:
        shard = bisect_right(self.ends, index)
        return self.files[shard], self.samples[shard][index - self.ends[shard] + self.sizes[shard]]

    def _index(self, file: Path, options: DataOptions) -> Iterator[Sample]:
        """Yield the samples of a shard; note those that lack something."""
        for key, group in itertools.groupby(members(file), lambda pair: pair[0]):
            there = dict[str, Member]()
            for _, member in group:
                if member.suffix in there:
                    raise ValueError(f"{file}: wanted one {key}.{member.suffix}, got two")
                there[member.suffix] = member
            picture = _first(there, (options.picture,) if options.picture else SUFFIXES)
            text = _first(there, _text_suffixes(options.caption))
            if picture is None or text is None:
                lacks = "picture" if picture is None else "caption"
                self.incomplete.append((f"{file}, sample {key}", f"no {lacks} among {', '.join(there)}"))
            else:
                yield Sample(key, picture, text)


def members(file: Path) -> Iterator[tuple[str, Member]]:
    """Yield (key, member) of a shard in their order, from its headers alone.

    Raises:
        ValueError: for a broken or compressed tar, a name that leads elsewhere, a link or a device.
    """
    length = file.stat().st_size
    try:
        with tarfile.open(file, "r:") as archive:
            for info in archive:
                archive.members = []  # type: ignore[attr-defined]  # else every header stays in memory
                if info.isdir():
                    continue
                _trusted(info, file, length)
                folder, _, base = info.name.rpartition("/")
                stem, dot, suffix = base.partition(".")
                if dot and stem and not info.name.startswith("__"):
                    key = f"{folder}/{stem}" if folder else stem
                    yield key, Member(suffix.lower(), info.offset_data, info.size)
    except (tarfile.TarError, OSError, EOFError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file}: wanted an uncompressed tar ({error}); decompress it, or download it again"
        ) from error


def _trusted(info: tarfile.TarInfo, file: Path, length: int) -> None:
    plain(info.name, where=str(file))
    if not info.isreg() or info.issparse() or info.size < 0:
        kind = "a link" if info.islnk() or info.issym() else "neither file nor folder"
        raise ValueError(f"{file}: refused its member {info.name!r}: it is {kind}; wanted plain files")
    if info.offset_data + info.size > length:
        raise ValueError(
            f"{file}: {info.name} ends {info.offset_data + info.size - length} bytes after the file"
        )


def _text_suffixes(caption: str) -> tuple[str, ...]:
    return (*TEXTS, "json") if not caption else (caption, "json")


def _first(there: dict[str, Member], suffixes: tuple[str, ...]) -> Member | None:
    return next((there[suffix] for suffix in suffixes if suffix in there), None)


def _read(file: Path, member: Member, limit: int) -> bytes:
    if member.bytes > limit:
        raise BadSample(f"wanted at most {limit} bytes of {member.suffix}, got {member.bytes}")
    with file.open("rb") as handle:
        handle.seek(member.start)
        return handle.read(member.bytes)
