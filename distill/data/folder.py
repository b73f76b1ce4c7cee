"""Pictures in a folder, their captions in metadata.jsonl, metadata.csv or text files of the same name."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flashbulb.distill.data.base import (
    CAPTIONS,
    PICTURES,
    SUFFIXES,
    BadSample,
    DataOptions,
    as_captions,
    choose_column,
)
from flashbulb.distill.data.paths import of_split, plain, read_within
from flashbulb.distill.data.pictures import MAX_BYTES

METADATA = ("metadata.jsonl", "metadata.csv")
MAX_CAPTION_BYTES = 64 * 1024
WANTED = (
    'metadata.jsonl (one {"file_name": ..., "text": ...} a line), metadata.csv, or picture.png + picture.txt'
)


class Item(NamedTuple):
    """A picture and its caption: the caption itself, or the file that holds it."""

    folder: Path
    picture: str
    captions: object
    text: str = ""


class FolderRows:
    """The captioned pictures of one folder, in the order of its metadata or of its names."""

    def __init__(self, folder: Path, options: DataOptions, root: Path | None = None) -> None:
        """List the folder; pictures are opened later.

        Args:
            folder: holds the pictures and their captions, in itself or further down.
            options: which columns and which split.
            root: where links may lead; default: the folder itself.

        Raises:
            ValueError: when it holds no captions, or metadata names files elsewhere.
        """
        self.folder, self.root = folder, root or folder
        self.incomplete: list[tuple[str, str]] = []
        files = sorted(file for name in METADATA for file in folder.rglob(name))
        if files:
            self.items = [
                item for file in self._chosen(files, options) for item in read_metadata(file, options)
            ]
        else:
            self.items = list(self._pairs(options))
        self.sizes: tuple[int, ...] = (len(self.items),)

    def name(self, index: int) -> str:
        """Return the picture's file."""
        return str(self.items[index].folder / self.items[index].picture)

    def picture(self, index: int) -> bytes:
        """Return the picture's bytes."""
        item = self.items[index]
        return read_within(item.folder, item.picture, self.root, MAX_BYTES)

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the captions of the metadata, or the text file's one."""
        item = self.items[index]
        if not item.text:
            return as_captions(item.captions)
        data = read_within(item.folder, item.text, self.root, MAX_CAPTION_BYTES)
        try:
            return as_captions(data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise BadSample(f"{item.text} is no UTF-8 text") from error

    def _chosen(self, files: list[Path], options: DataOptions) -> list[Path]:
        """Return one metadata file for each folder of the split."""
        by_folder = {file.parent: file for file in reversed(of_split(files, options.split, self.folder))}
        return [by_folder[folder] for folder in sorted(by_folder)]

    def _pairs(self, options: DataOptions) -> Iterator[Item]:
        """Yield each picture that has a text file of the same name; note those that have none."""
        found = [
            Path(folder, name)
            for folder, _, names in os.walk(self.folder)
            for name in names
            if name.rpartition(".")[2].lower() in SUFFIXES
        ]
        if not found:
            raise ValueError(f"{self.folder} has no captioned pictures; wanted {WANTED}")
        files = sorted(of_split(found, options.split, self.folder))
        texts = {file for folder in {f.parent for f in files} for file in folder.glob("*.txt")}
        if not texts:
            raise ValueError(f"{self.folder} has {len(files)} pictures and no caption; wanted {WANTED}")
        for file in files:
            if file.with_suffix(".txt") in texts:
                yield Item(file.parent, file.name, None, file.with_suffix(".txt").name)
            else:
                self.incomplete.append((str(file), f"it has no {file.stem}.txt with its caption"))


def read_metadata(file: Path, options: DataOptions) -> Iterator[Item]:
    """Yield the items of a metadata file.

    Raises:
        ValueError: when it is malformed, lacks a column or names a file elsewhere; the line is named.
    """
    lines = _json_lines(file) if file.suffix == ".jsonl" else _csv_lines(file)
    picture = caption = ""
    for where, row in lines:
        if not picture:
            usual = ("file_name", *PICTURES)
            picture = choose_column(options.picture, usual, list(row), what="picture", where=where)
            caption = choose_column(options.caption, CAPTIONS, list(row), what="caption", where=where)
        if picture not in row or caption not in row:
            raise ValueError(
                f"{where}: wanted the keys {picture} and {caption} on every line, got {list(row)}"
            )
        yield Item(file.parent, plain(row[picture], where=where), row[caption])


def _json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with file.open(encoding="utf-8-sig") as handle:
        for number, line in enumerate(handle, 1):
            where = f"{file}, line {number}"
            try:
                row = json.loads(line) if line.strip() else None
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f"{where}: wanted a JSON object, got {line[:80]!r}") from error
            if row is not None and not isinstance(row, dict):
                raise ValueError(f"{where}: wanted a JSON object, got {line[:80]!r}")
            if row is not None:
                yield where, row


def _csv_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with file.open(encoding="utf-8-sig", newline="") as handle:
        rows = csv.DictReader(handle)
        try:
            for row in rows:
                where = f"{file}, line {rows.line_num}"
                if None in row or None in row.values():
                    raise ValueError(
                        f"{where}: wanted {len(rows.fieldnames or [])} fields, got another number"
                    )
                yield where, row
        except csv.Error as error:
            raise ValueError(
                f"{file}, line {rows.line_num}: wanted comma-separated values ({error})"
            ) from error
