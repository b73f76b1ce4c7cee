"""What is said to ``adb``: serial numbers, quoting, hashes both ways, lost devices, full storage."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from flashbulb.runtimes.devices.shell import ENDED, DeviceLost, Shell, ended
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


@pytest.mark.parametrize("code", ["0", "255"])
@pytest.mark.parametrize("check", [True, False])
def test_half_an_answer_is_none(shell: Shell, fake_adb: Path, code: str, check: bool):
    (fake_adb / "lose_at").write_text("printf")
    (fake_adb / "lose_how").write_text(code)
    assert shell.run(["printf", "whole"], check=check) == "whole"
    assert [words[2] for words in asked(fake_adb)] == ["shell", "wait-for-device", "shell"]


COPY = "adb: error: failed to copy 'a' to 'b': "
ENDS: dict[str, tuple[str, int, str, str, bool]] = {
    "read": ("push", 1, COPY + "couldn't read from device\n", "", True),
    "response": ("push", 1, "", "adb: error: failed to read copy response", True),
    "pipe": ("push", 1, "", "adb: error: Broken pipe", True),
    "write": ("push", 1, "", "adb: error: write failed: Connection reset by peer", True),
    "silent pull": ("pull", 1, "[  4%] /data/a", "", True),
    "no such file": ("pull", 1, "", "adb: error: failed to stat remote object '/data/a'", False),
    "forbidden": ("push", 1, "", COPY + "remote couldn't create file: Permission denied", False),
    "copied": ("push", 0, "a: 1 file pushed", "", False),
    "cut off, older": ("shell", 0, "half", "", True),
    "cut off, newer": ("shell", 255, "", "half a complaint", True),
    "never there": ("shell", 1, "", "adb: device 'x' not found", True),
    "not allowed": ("shell", 1, "", "adb: device unauthorized.", False),
    "done": ("shell", 0, f"x\n{ENDED}0\n", "", False),
    "its own 255": ("shell", 0, f"{ENDED}255\n", "", False),
    "its own words": ("shell", 1, f"{ENDED}1\n", "sh: the file is closed", False),
    "a state": ("get-state", 0, "device\n", "", False),
}


@pytest.mark.parametrize(("verb", "code", "output", "errors", "lost"), ENDS.values(), ids=ENDS)
def test_a_lost_cable_is_told_from_a_failure(verb: str, code: int, output: str, errors: str, lost: bool):
    assert ended(verb, code, output, errors).lost is lost


def test_a_command_ends_with_the_status_that_it_had_there():
    assert ended("shell", 0, f"x\n{ENDED}7\n", "") == (7, "x\n", "x", False)


def test_a_full_storage_is_no_lost_cable(shell: Shell, fake_adb: Path, tmp_path: Path):
    program = fake_adb / "adb"
    program.write_text("#!/bin/sh\necho 'adb: error: write failed: No space left on device' >&2\nexit 1\n")
    (tmp_path / "a").write_text("x")
    with pytest.raises(EngineError, match="the storage of fake:5555 is full"):
        shell.push(tmp_path / "a", str(tmp_path / "there"))
