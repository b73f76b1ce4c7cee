"""Open a source of captioned pictures by its name: the embedded set, a folder, shards, tables, the Hub."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from flashbulb.distill.data import folder, hub, shard_names, shards, tables
from flashbulb.distill.data.base import DataOptions, Rows, Source
from flashbulb.distill.data.embedded import EmbeddedSource
from flashbulb.distill.data.reading import RowSource

__all__ = ["DataOptions", "Source", "open_source"]

WANTED = (
    "'embedded'; a folder of pictures with metadata.jsonl, metadata.csv or a .txt beside each; a folder of "
    ".tar shards or 'shards-{000..009}.tar'; a .parquet file or a folder of them; 'hub:owner/name'"
)


def open_source(name: str, size: int, options: DataOptions = DataOptions()) -> Source:  # noqa: B008
    """Return the source that ``name`` means, drawing pictures of ``size`` pixels.

    Raises:
        ValueError: when there is no such data, or it is not to be trusted; the message says what to do.
    """
    if name != "embedded":
        return RowSource(open_rows(name, options), size, options)
    check_source(name, options)
    return EmbeddedSource(size)


def check_source(name: str, options: DataOptions = DataOptions()) -> None:  # noqa: B008
    """Look for the files of a source, without reading shards or tables.

    Raises:
        ValueError: when there are none.
    """
    if name != "embedded":
        find_rows(name, options)
    elif options != DataOptions():
        raise ValueError(
            "wanted no data_options with data 'embedded', whose pictures need no preparation, "
            f"got {options}; leave them out, or give data of your own"
        )


def open_rows(name: str, options: DataOptions) -> Rows:
    """Return the samples that ``name`` means, in whichever shape they lie there."""
    return find_rows(name, options)()


def find_rows(name: str, options: DataOptions) -> Callable[[], Rows]:
    """Find the files that ``name`` means; what is returned opens them."""
    root = None
    if name.startswith(hub.PREFIX):
        downloaded, root = hub.fetch(name)
        name = str(downloaded)
    path = Path(name)
    if path.is_dir():
        return _in_folder(path, options, root)
    if name.endswith(".tar"):
        return partial(shards.ShardRows, shard_names.find(name, options.split), options)
    if name.endswith(".parquet"):
        return partial(tables.TableRows, tables.find(name, options.split), options)
    raise ValueError(f"wanted as data {WANTED}; got {name!r}, which is none of them")


def _in_folder(path: Path, options: DataOptions, root: Path | None) -> Callable[[], Rows]:
    """Find what a folder holds: its metadata goes first, then shards, then tables, then text files."""
    if not any(next(path.rglob(metadata), None) for metadata in folder.METADATA):
        if found := shard_names.find(str(path), options.split):
            return partial(shards.ShardRows, found, options, root)
        if found := tables.find(str(path), options.split):
            return partial(tables.TableRows, found, options, root)
    listed = folder.FolderRows(path, options, root)  # its files are found by listing it
    return lambda: listed
