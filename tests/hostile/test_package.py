"""A Core ML package that is damaged a little ends in a sentence, wherever it is looked into."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_mil as mil
import messages
import pytest

from flashbulb.runtimes.engines.mil import ProgramError
from flashbulb.runtimes.engines.mil.listing import read_package_listing
from flashbulb.runtimes.engines.mil.package import read_package


@pytest.fixture
def package(tmp_path: Path) -> Path:
    mil.write_package(tmp_path / "m.mlpackage", mil.sound("mil-model")["earlier"])
    return tmp_path / "m.mlpackage"


def renamed(package: Path, old: bytes, new: bytes) -> None:
    """Give something in the model file another name of the same length."""
    path = package / mil.MODEL
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


@pytest.mark.parametrize("old", [b"main", b"val", b"lut", b"scale", b"quantized_data", b"axis"])
def test_a_name_that_is_not_there_is_told(package: Path, old: bytes) -> None:
    renamed(package, old, b"x" * len(old))

    def look() -> None:
        for constant in read_package_listing(package).constants.values():
            for load in (constant.load, constant.scale, constant.table):
                if load is not None:
                    load()

    with pytest.raises(ProgramError, match=r"wanted .*; export it again"):
        look()


def test_a_sound_package_can_be_taken_apart(package: Path) -> None:
    found = read_package_listing(package)
    assert found.constants
    assert all(c.load().size for c in found.constants.values())


def test_many_constants_of_the_same_bytes_are_not_read_for_ever(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each record has its own place, and all may point at one large array."""
    from flashbulb.runtimes.engines.mil import listing

    monkeypatch.setattr(listing, "MOST_READS", 0)
    with pytest.raises(ProgramError, match="at most 0 times the weight files"):
        read_package_listing(package)


Change = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            '"rootModelIdentifier": "A"',
            '"rootModelIdentifier": "A", "rootModelIdentifier": "B"',
            "comes twice",
        ),
        ('"itemInfoEntries": {', '"itemInfoEntries": {"A": {"path": "x"}, ', "comes twice"),
        ('"rootModelIdentifier": "A"', '"rootModelIdentifier": "A", "surprise": 1', "surprise"),
        ('"name": "weights"', '"name": "weights", "surprise": 1', "surprise"),
    ],
)
def test_a_manifest_says_nothing_twice_and_nothing_unknown(
    package: Path, old: str, new: str, words: str
) -> None:
    text = json.dumps(mil.MANIFEST)
    assert text.count(old) == 1
    (package / "Manifest.json").write_text(text.replace(old, new))
    with pytest.raises(ProgramError, match=words):
        read_package(package)


def test_what_coremltools_writes_is_accepted(package: Path) -> None:
    for entry in mil.MANIFEST["itemInfoEntries"].values():
        assert set(entry) == {"author", "description", "name", "path"}
    assert read_package(package).functions


def test_a_weight_file_that_no_machine_can_address_is_refused() -> None:
    memory = Path("/dev/shm")  # disks have no files of that size
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        package = Path(folder) / "m.mlpackage"
        mil.write_package(package, mil.sound("mil-model")["earlier"])
        with (package / mil.WEIGHTS / "more.bin").open("wb") as stream:
            try:
                stream.truncate(1 << 62)  # sparse: it has no bytes
            except OSError:
                pytest.skip("this file system has no files of that size")
        with pytest.raises(ProgramError, match="wanted weights that can be addressed"):
            read_package(package)


def test_a_broken_copy_leaves_what_is_sound_as_it_is() -> None:
    data = mil.sound("mil-model")["earlier"]
    sound = messages.Sound(data)
    fields = list(messages.fields(sound.tree))
    assert sound.count(sound.tree) == len(fields)
    for which, field in enumerate(fields):
        way = sound.place(sound.tree, which)
        assert messages.field_at(sound.tree, way) is field
        broken = sound.flat(messages.put(sound.tree, way, [field, field]))
        assert len(broken) > len(data), way
        assert sound.flat(sound.tree) == data == messages.flat(sound.tree)


@pytest.mark.parametrize("operation", sorted(set(mil.OPERATIONS)))
def test_each_way_to_break_a_message_does_so_within_right_sizes(operation: str) -> None:
    sound = messages.Sound(mil.sound("mil-model")["earlier"])
    broken = {
        mil.change_message(sound, [(where, operation, 3)] * 2, [b"x"]) for where in range(0, 10**7, 10**5)
    }
    assert len(broken) > 20
    for data in broken:
        found = messages.tree(data)
        assert found is not None and messages.flat(found) == data
