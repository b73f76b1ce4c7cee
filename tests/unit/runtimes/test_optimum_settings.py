"""What an export copies for optimum must be the checkpoint's."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashbulb.runtimes.optimum_gates import settings_gate

WANTED = {"tokenizer/merges.txt": b"a b", "unet/config.json": b"{}"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in WANTED.items():
        path = tmp_path / "optimum" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    return tmp_path / "optimum"


def test_equal_settings_pass(folder: Path) -> None:
    assert settings_gate(folder, WANTED).verdict == "pass"


@pytest.mark.parametrize("name", list(WANTED))
def test_another_or_an_absent_file_is_named(folder: Path, name: str) -> None:
    path = folder / name
    path.write_text("other")
    changed = settings_gate(folder, WANTED)
    path.unlink()
    for found in (changed, settings_gate(folder, WANTED)):
        assert found.verdict == "fail"
        assert f"optimum/{name} is not the checkpoint's" in found.sentence
