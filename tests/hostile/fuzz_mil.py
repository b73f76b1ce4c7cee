"""Broken Core ML packages for `fuzz.py`: the model file, its weights and the folder.

What is broken lies in ``corpus/mil-model/ok-*`` and ``corpus/mil-weights/ok-*``: two small programs, for
iOS 18 (states, palettes, blocks) and for iOS 16 (flat, packed constants), and weight files that hold other
element types beside theirs.  `sound_packages.py` writes them.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from breaking import BYTE_CHANGES, CHOICES, Target, broken_json, change_bytes
from hypothesis import strategies as st
from messages import Sound, field_at, number, put, texts, tree, words

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
INNER = "Data/com.apple.CoreML"
MODEL, WEIGHTS = f"{INNER}/model.mlmodel", f"{INNER}/weights"
MOST_ELEMENTS = 1 << 18
"""Elements of one input that is given to a broken program."""
MOST_BYTES, MOST_TURNS = 8 << 20, 50
"""What a broken program may use, by the options that a user has; a sound one here needs a few kilobytes."""
MANIFEST = {
    "fileFormatVersion": "1.0.0",
    "itemInfoEntries": {
        "A": {"author": "com.apple.CoreML", "description": "", "name": "model.mlmodel",
              "path": "com.apple.CoreML/model.mlmodel"},
        "B": {"author": "com.apple.CoreML", "description": "", "name": "weights",
              "path": "com.apple.CoreML/weights"},
    },
    "rootModelIdentifier": "A",
}  # fmt: skip


NUMBERS = (0, 1, 2, 3, 5, 7, 16, 64, 127, 255, 4096, 2**20, 2**31 - 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1)
FLOATS = (0.0, -1.0, 1e-38, 3e38, float("inf"), float("nan"))


def change_message(sound: Sound, changes: list[tuple[int, str, int]], names: list[bytes]) -> bytes:
    """Break a message at some fields; sizes around them stay right."""
    message = sound.tree
    for where, operation, which in changes:
        count = sound.count(message)
        if not count:
            break
        way = sound.place(message, where % count)
        field = field_at(message, way)
        if operation == "swap":
            other = sound.place(message, (where // 7919) % count)
            second = field_at(message, other)
            message = put(message, way, [second])
            if other[: len(way)] != way:
                message = put(message, other, [field])
        else:
            message = put(message, way, broken_field(field, operation, where, which, names))
    return sound.flat(message)


def broken_field(
    field: list[Any], operation: str, where: int, which: int, names: list[bytes]
) -> list[list[Any]]:
    """Return what comes in the place of a field."""
    if operation == "drop":
        return []
    if operation == "twice":
        return [field, field]
    if operation == "many":
        return [field] * (which % 6 + 1)
    if operation == "renumber":
        return [[which % 22 + 1, *field[1:]]]
    if operation == "deep":
        for _ in range(which):
            field = [field[0], 2, [field]]
        return [field]
    return [changed_field(field, where, which, names)]


def changed_field(field: list[Any], where: int, which: int, names: list[bytes]) -> list[Any]:
    """Replace a field's value by another of its kind."""
    number_, kind, value = field
    if kind == 0:
        return [number_, 0, NUMBERS[which % len(NUMBERS)]]
    if isinstance(value, list):
        return [number_, 2, []]
    if kind in (1, 5):
        return [number_, kind, struct.pack("<f" if kind == 5 else "<d", FLOATS[which % len(FLOATS)])]
    if words(value):
        return [number_, 2, names[where % len(names)]]
    packed = b"".join(number(NUMBERS[(which + i) % len(NUMBERS)]) for i in range(max(1, len(value) % 5)))
    longer = value[: len(value) // 2] if which % 3 else value * (which % 7 + 1)
    return [number_, 2, packed if which % 2 else longer]


OPERATIONS = ("value", "value", "value", "drop", "twice", "many", "renumber", "swap", "deep")


def broken_messages(sound: list[bytes], names: list[bytes]) -> st.SearchStrategy[bytes]:
    """Break one of some files as a message, as bytes, or both."""
    messages = [Sound(data) for data in sound]
    changes = st.lists(
        st.tuples(CHOICES, st.sampled_from(OPERATIONS), st.integers(0, 255)), min_size=1, max_size=4
    )
    chosen = st.sampled_from(range(len(sound)))

    def both(which: int, inner: list[Any], raw: list[Any]) -> bytes:
        return bytes(change_bytes(change_message(messages[which], inner, names), raw))

    return st.one_of(
        st.builds(both, chosen, changes, st.just([])),
        st.builds(both, chosen, changes, st.just([])),
        st.builds(both, chosen, changes, BYTE_CHANGES),
        st.builds(lambda w, raw: change_bytes(sound[w], raw), chosen, BYTE_CHANGES),
    )


RECORD, MARK = struct.Struct("<IIQQQ"), b"\xef\xbe\xad\xde"
FIELDS = st.tuples(st.integers(0, 63), st.integers(0, 4), st.sampled_from(NUMBERS))


def read_records(data: bytes) -> None:
    """Read every record of a weight file as what it says it is."""
    from flashbulb.runtimes.engines.mil.blob import STORED, read_blob
    from flashbulb.runtimes.engines.mil.dtypes import BY_NAME

    held = np.frombuffer(data, np.uint8)
    for at in marks_of(data):
        _, number_, size, *_ = RECORD.unpack_from(data, at)
        dtype = BY_NAME[STORED.get(number_, "fp16")]
        count = size * 8 // dtype.bits
        assert read_blob(held, at, dtype, (count,)).shape == (count,)


def marks_of(data: bytes) -> list[int]:
    """Return where records begin."""
    return [at for at in range(0, len(data) - 63, 64) if data[at : at + 4] == MARK]


def broken_records(sound: bytes) -> st.SearchStrategy[bytes]:
    """Break a weight file in its records, or as bytes."""
    marks = marks_of(sound)

    def build(changes: list[tuple[int, int, int]], raw: list[Any]) -> bytes:
        data = bytearray(sound)
        for which, field, value in changes:
            at = marks[which % len(marks)]
            parts = list(RECORD.unpack_from(data, at))
            parts[field] = value & (2**32 - 1) if field < 2 else value
            RECORD.pack_into(data, at, *parts)
        return bytes(change_bytes(bytes(data), raw))

    return st.builds(build, st.lists(FIELDS, max_size=3), BYTE_CHANGES)


# What is fed


def sound(folder: str) -> dict[str, bytes]:
    """Return the sound files of one kind by name."""
    return {p.stem.removeprefix("ok-"): p.read_bytes() for p in sorted((CORPUS / folder).glob("ok-*"))}


def write_package(root: Path, model: bytes) -> None:
    """Write a package with the weights of all sound programs."""
    (root / WEIGHTS).mkdir(parents=True)
    (root / "Manifest.json").write_text(json.dumps(MANIFEST))
    (root / MODEL).write_bytes(model)
    (root / WEIGHTS / "weight.bin").write_bytes(sound("mil-weights")["sound"])


def run(package: Any, data: bytes) -> None:
    """Compile a package in one of the modes, and run it where its inputs are small."""
    from flashbulb.runtimes.engines.mil import Program

    fp16, limits = zlib.crc32(data) & 1, {"max_bytes": MOST_BYTES, "max_turns": MOST_TURNS}
    program = Program.load(package, "fp16" if fp16 else "fp32", low_memory=not fp16, **limits)
    program.predict({n.name: zeros(n.type.shape) for n in program.inputs})


def zeros(shape: Any) -> Any:
    """Make an input; one of too many elements is left to be refused."""
    sizes = [2 if s is None else s for s in shape or ()]
    return np.zeros(sizes if len(sizes) <= 8 and math.prod(sizes) <= MOST_ELEMENTS else (), np.float32)


def names_of(models: Iterable[bytes]) -> list[bytes]:
    """Return names to put in the place of others: those that stand in some models, and operations."""
    from flashbulb.runtimes.engines.mil.ops import OPS

    names = [n.encode() for n in (*sorted(OPS), "const", "x", "y", "val", "", "CoreML5", "CoreML9", "main")]
    return names + [n for model in models for n in texts(tree(model) or [])]


def targets(work: Path) -> list[Any]:
    """Return the readers of Core ML packages."""
    import torch  # noqa: F401 - no case shall pay for it

    from flashbulb.runtimes.engines.mil import ProgramError
    from flashbulb.runtimes.engines.mil.package import read_package, weight_files

    models, weights = sound("mil-model"), sound("mil-weights")
    names = names_of(models.values())
    root, plain = work / "m.mlpackage", work / "p.mlpackage"
    others = [work / f"{name}.mlpackage" for name in models]
    for path, model in zip(
        [root, plain, *others], [models["earlier"]] * 2 + list(models.values()), strict=True
    ):
        write_package(path, model)

    records = st.one_of([broken_records(data) for data in weights.values()])

    def read_model(data: bytes) -> None:
        (root / MODEL).write_bytes(data)
        run(read_package(root), data)

    read = [read_package(other) for other in others]

    def read_weights(data: bytes) -> None:
        package = read[zlib.crc32(data) >> 1 & 1]
        (package.path / WEIGHTS / "weight.bin").write_bytes(data)
        run(replace(package, weights=weight_files(package.path / INNER)), data)
        read_records(data)

    def read_manifest(data: bytes) -> None:
        (plain / "Manifest.json").write_bytes(data)
        run(read_package(plain), data)

    return [
        Target("mil-model", read_model, (ProgramError,), broken_messages(list(models.values()), names)),
        Target("mil-weights", read_weights, (ProgramError,), records),
        Target("mil-manifest", read_manifest, (ProgramError,), broken_json(MANIFEST)),
        Target("mil-folder", folder_reader(work, models["earlier"]), (ProgramError,), FOLDERS),
    ]


FOLDER_CHANGES = ("missing", "empty", "link", "dangling", "folder", "long", "pipe")
PLACES = (
    "Manifest.json", "Data", INNER, MODEL, WEIGHTS, f"{WEIGHTS}/weight.bin", f"{WEIGHTS}/more.bin",
)  # fmt: skip
FOLDERS = st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(FOLDER_CHANGES)), max_size=3).map(
    lambda changes: json.dumps(changes).encode()
)


def folder_reader(work: Path, model: bytes) -> Callable[[bytes], None]:
    """Read a package whose files and folders are changed as a JSON list of (place, change) says."""
    from flashbulb.runtimes.engines.mil.package import read_package

    root, outside = work / "f.mlpackage", work / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")

    def read(data: bytes) -> None:
        shutil.rmtree(root, ignore_errors=True)
        write_package(root, model)
        for place, change in json.loads(data or b"[]"):
            disturb(root / place, change, outside)
        run(read_package(root), data)

    return read


def disturb(path: Path, change: str, outside: Path) -> None:
    """Change what lies at a place, if its folder is still there."""
    if not path.parent.is_dir() or path.parent.is_symlink():
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if change == "empty":
        path.write_bytes(b"")
    elif change == "long":
        path.write_bytes(b"\x08\x01" * (1 << 15))
    elif change == "folder":
        path.mkdir()
    elif change == "pipe":
        os.mkfifo(path)
    elif change != "missing":
        path.symlink_to(outside / "secret" if change == "link" else outside / "nothing")
