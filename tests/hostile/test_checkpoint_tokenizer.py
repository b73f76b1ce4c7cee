"""A checkpoint's tokenizer is judged like a bundle's, and no pipe in a checkpoint is ever opened."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashbulb.distill.checkpoint import Checkpoint, CheckpointError, embedded
from flashbulb.distill.untrusted import UntrustedError, read_small, safetensors_header
from flashbulb.distill.untrusted_folder import folder_faults

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedded("teacher").path, tmp_path / "copy"))


def change(copied: Path, apply: Callable[[Any], None], name: str = "tokenizer.json") -> Checkpoint:
    path = copied / "tokenizer" / name
    value = json.loads(path.read_text())
    apply(value)
    path.write_text(json.dumps(value))
    return Checkpoint.open(copied)


def doubling(value: Any) -> None:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    value["normalizer"] = {"type": "Sequence", "normalizers": [step] * 34}


def backtracking(value: Any) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": False}
    value["pre_tokenizer"] = split


def panicking(value: Any) -> None:
    value["model"]["continuing_subword_prefix"] = "##" * 10


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (doubling, "more than 16 steps in its normalizer"),
        (backtracking, "which can take for ever"),
        (panicking, "prefix of continuing subwords"),
        (lambda v: v["model"].update(type="Unigram"), "a model of type 'Unigram'"),
        (lambda v: v["model"].update(vocab={}), "no tokenizer that can be used"),
        (lambda v: v["model"]["vocab"].update(x=2**31), "the id 2147483648 among"),
        (lambda v: v["added_tokens"][0].update(id=-1), "the id -1 among"),
        (lambda v: v["model"].update(unk_token=""), "the unknown token '', which is not among its words"),
        (lambda v: v["model"]["vocab"].pop(v["model"]["unk_token"]), "which is not among its words"),
        (lambda v: v["model"]["vocab"].update(x="1"), "something else than whole numbers"),
    ],
)
def test_a_tokenizer_that_could_hurt_is_refused(copied: Path, apply: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        change(copied, apply).tokenizer()


def test_the_whole_pipeline_is_not_opened_around_it(copied: Path) -> None:
    with pytest.raises(CheckpointError, match="more than 16 steps"):
        change(copied, doubling).pipeline()


@pytest.mark.parametrize("key", ["tokenizer_file", "fast_tokenizer_files", "vocab_file", "auto_map"])
def test_settings_that_name_other_files_are_refused(copied: Path, key: str) -> None:
    with pytest.raises(CheckpointError, match=f"no other files from tokenizer_config.json, got .'{key}'"):
        change(copied, lambda v: v.update({key: ["tokenizer.4.json"]}), "tokenizer_config.json").tokenizer()


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, '{"a": "b"}', '{"a": 1, "a": 2}', '{"a": true}'])
@pytest.mark.parametrize("alone", [True, False])
def test_a_vocabulary_that_is_none_is_refused(copied: Path, text: str, alone: bool) -> None:
    (copied / "tokenizer/vocab.json").write_text(text)
    if alone:
        (copied / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer that can be used"):
        Checkpoint.open(copied).tokenizer()


@pytest.mark.parametrize("whole", [True, False])
def test_sound_tokenizers_with_and_without_the_whole_file_are_the_same(copied: Path, whole: bool) -> None:
    if not whole:
        (copied / "tokenizer/tokenizer.json").unlink()
    prompt = "a glossy red apple on a pink background"
    wanted = embedded("teacher").tokenizer()(prompt)["input_ids"]
    assert Checkpoint.open(copied).tokenizer()(prompt)["input_ids"] == wanted


@pytest.mark.parametrize("place", ["unet/zz.safetensors", "tokenizer/vocab.json", "lineage.json", "notes"])
def test_a_pipe_is_refused_unopened(copied: Path, place: str) -> None:
    (copied / place).unlink(missing_ok=True)
    os.mkfifo(copied / place)
    with pytest.raises(CheckpointError, match=rf"wanted regular files, got another kind in {place}"):
        Checkpoint.open(copied)


def test_a_link_to_nothing_is_refused(copied: Path) -> None:
    (copied / "unet/zz.safetensors").symlink_to(copied / "unet/nothing")
    assert any("another kind in unet/zz.safetensors" in fault for fault in folder_faults(copied))


@pytest.mark.parametrize("read", [read_small, safetensors_header])
def test_readers_open_regular_files_only(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UntrustedError, match="wanted a regular file pipe"):
        read(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing")
