"""What is said to ``adb``: serial numbers, quoting, hashes both ways, lost devices, full storage."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from flashbulb.runtimes.devices.shell import DeviceLost, Shell
from flashbulb.runtimes.engines.base import EngineError

NASTY = [
    "; touch owned",
    "$(touch owned)",
    "`touch owned`",
    "a b",
    "'",
    '"',
    "*",
    "\\",
    "-rf",
    "x\ny",
    "é 京",
]


@pytest.fixture
def shell(fake_adb: Path) -> Shell:
    return Shell("fake:5555")


def asked(root: Path) -> list[list[str]]:
    return [ast.literal_eval(line) for line in (root / "asked").read_text().splitlines()]


@pytest.mark.parametrize("word", NASTY)
def test_every_word_arrives_as_it_was(shell: Shell, tmp_path: Path, monkeypatch, word: str):
    monkeypatch.chdir(tmp_path)
    assert shell.run(["printf", "%s|", word, "end"]) == f"{word}|end|"
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("word", ["folder with spaces", "$(touch owned)", "a;b'c"])
def test_folders_and_logs_are_quoted_too(shell: Shell, tmp_path: Path, word: str):
    import subprocess

    folder = tmp_path / word
    folder.mkdir()
    words = shell.remote(["sh", "-c", "pwd; echo trouble >&2"], folder=str(folder), errors=f"log {word}")
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{folder}\n", "")
    assert (folder / f"log {word}").read_text() == "trouble\n"
    assert not list(tmp_path.rglob("owned"))


@pytest.mark.parametrize("serial", ["", "-s", "a b", "a;b", "$(x)", "../x", "x" * 200, "a\n"])
def test_what_cannot_be_a_serial_number(fake_adb: Path, serial: str):
    with pytest.raises(ValueError, match="wanted a serial number"):
        Shell(serial)


def test_every_command_names_the_device(shell: Shell, fake_adb: Path, tmp_path: Path):
    file = tmp_path / "a"
    file.write_bytes(bytes(range(256)))
    shell.push(file, str(tmp_path / "there"))
    shell.pull(str(tmp_path / "there"), tmp_path / "back")
    shell.wait()
    assert shell.state() == "device"
    assert all(words[:2] == ["-s", "fake:5555"] for words in asked(fake_adb))
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


def test_a_copy_that_was_harmed_is_found(shell: Shell, fake_adb: Path, tmp_path: Path):
    (fake_adb / "harm_after").write_text("0")
    (tmp_path / "a").write_text("sound")
    with pytest.raises(EngineError, match="wanted a on fake:5555 with SHA-256"):
        shell.push(tmp_path / "a", str(tmp_path / "there"))


def test_full_storage_is_told(shell: Shell, fake_adb: Path, tmp_path: Path):
    (fake_adb / "full_after").write_text("0")
    (tmp_path / "a").write_text("x")
    with pytest.raises(EngineError, match="the storage of fake:5555 is full"):
        shell.push(tmp_path / "a", str(tmp_path / "there"))


def test_a_device_that_stays_away_is_its_own_error(fake_adb: Path):
    with pytest.raises(DeviceLost, match="not found"):
        Shell("other").run(["true"])


def test_a_command_is_said_again_when_the_device_is_back(shell: Shell, fake_adb: Path):
    (fake_adb / "lose_after").write_text("0")
    assert shell.run(["echo", "back"]) == "back\n"
    assert [words[2] for words in asked(fake_adb)] == ["shell", "wait-for-device", "shell"]


def test_a_device_that_does_not_answer_is_lost(fake_adb: Path):
    with pytest.raises(DeviceLost, match="no answer in 0 s"):
        Shell("fake:5555", patience_s=0.4).run(["sleep", "60"])


def test_a_command_that_fails_says_why(shell: Shell):
    with pytest.raises(EngineError, match=r"ls on fake:5555 ended with code 2.*nowhere"):
        shell.run(["ls", "/nowhere"])
    assert shell.run(["ls", "/nowhere"], check=False) == ""


def test_free_space_is_read(shell: Shell, tmp_path: Path):
    import os

    space = os.statvfs(tmp_path)
    assert shell.free_bytes(str(tmp_path)) == pytest.approx(space.f_bavail * space.f_frsize, rel=0.05)


def test_hashes_of_nothing_are_an_error(shell: Shell, tmp_path: Path):
    with pytest.raises(EngineError, match="sha256sum"):
        shell.sha256([str(tmp_path / "none")])
