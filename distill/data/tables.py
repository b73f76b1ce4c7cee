"""Parquet files with a picture and a caption in each row, as the Hub keeps its data sets."""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path
from typing import Any

from flashbulb.distill.data.base import (
    CAPTIONS,
    PICTURES,
    BadSample,
    DataOptions,
    as_captions,
    choose_column,
)
from flashbulb.distill.data.paths import inside, of_split, plain, read_within
from flashbulb.distill.data.pictures import MAX_BYTES


class TableRows:
    """The rows of several Parquet files; a few row groups are held at a time."""

    def __init__(self, files: list[Path], options: DataOptions, root: Path | None = None) -> None:
        """Read the files' footers.

        Raises:
            ValueError: when a file is no Parquet or has no such columns.
        """
        self.folder = files[0].parent
        self.root = root or self.folder
        self.files = [inside(file.parent, file.name, root) if root else file for file in files]
        opened = [_open(file) for file in self.files]
        self.picture_column, self.caption_column = _columns(self.files, opened, options)
        self.groups = [(table, group) for table in opened for group in range(table.num_row_groups)]
        self.sizes = tuple(table.metadata.row_group(group).num_rows for table, group in self.groups)
        self.places = [
            file for file, table in zip(files, opened, strict=True) for _ in range(table.num_row_groups)
        ]
        self.incomplete: list[tuple[str, str]] = []
        self.ends = list(itertools.accumulate(self.sizes))
        self.held: OrderedDict[tuple[int, str], list[Any]] = OrderedDict()
        self.limit, self._lock = 2 * options.mix + 2, threading.Lock()

    def name(self, index: int) -> str:
        """Return file, row group and row."""
        group, row = self._at(index)
        return f"{self.places[group]}, row {row} of row group {self.groups[group][1]}"

    def picture(self, index: int) -> bytes:
        """Return the picture's bytes, from the table or from the file that it names."""
        value = self._value(index, self.picture_column)
        if isinstance(value, dict):
            inner = value.get("bytes")
            if inner is None and isinstance(value.get("path"), str):
                name = plain(value["path"], where=self.name(index))
                return read_within(self.folder, name, self.root, MAX_BYTES)
            value = inner
        if not isinstance(value, bytes):
            raise BadSample(
                f"wanted the bytes of a picture in {self.picture_column}, got {type(value).__name__}"
            )
        return value

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the row's captions."""
        return as_captions(self._value(index, self.caption_column))

    def _at(self, index: int) -> tuple[int, int]:
        group = bisect_right(self.ends, index)
        return group, index - self.ends[group] + self.sizes[group]

    def _value(self, index: int, column: str) -> Any:
        """Return one value; its row group's column is read once and held for a while."""
        group, row = self._at(index)
        with self._lock:
            if (group, column) not in self.held:
                self.held[group, column] = self._column(group, column)
                while len(self.held) > self.limit:
                    self.held.popitem(last=False)
            self.held.move_to_end((group, column))
            return self.held[group, column][row]

    def _column(self, group: int, column: str) -> list[Any]:
        import pyarrow as pa

        table, number = self.groups[group]
        try:
            values: list[Any] = table.read_row_group(number, columns=[column]).column(column).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{self.places[group]}: row group {number} cannot be read ({error})") from error
        return values


def _open(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: wanted a Parquet file ({error}); download it again") from error


def _columns(files: list[Path], opened: list[Any], options: DataOptions) -> tuple[str, str]:
    """Return the columns of picture and caption, the same in all files."""
    names = [table.schema_arrow.names for table in opened]
    picture = choose_column(options.picture, PICTURES, names[0], what="picture", where=str(files[0]))
    caption = choose_column(options.caption, CAPTIONS, names[0], what="caption", where=str(files[0]))
    for file, there in zip(files, names, strict=True):
        if not {picture, caption} <= set(there):
            raise ValueError(
                f"{file}: wanted the columns {picture} and {caption} as in {files[0]}, got {there}"
            )
    return picture, caption


def find(text: str, split: str) -> list[Path]:
    """Return the Parquet files that a text means: one file, or those of a folder and a split.

    Raises:
        ValueError: when there is no such file.
    """
    path = Path(text)
    if path.is_dir():
        return of_split(sorted(path.rglob("*.parquet")), split, path)
    if not path.is_file():
        raise ValueError(f"wanted a Parquet file, got none at {text!r}")
    return [path]
