"""What an export copies for optimum must be the checkpoint's."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashbulb.runtimes.source_gates import optimum_gate


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for root in ("optimum", "checkpoint"):
        for name, text in (("tokenizer/merges.txt", "a b"), ("scheduler/scheduler_config.json", "{}")):
            path = tmp_path / root / name
            path.parent.mkdir(parents=True)
            path.write_text(text)
    return tmp_path / "optimum", tmp_path / "checkpoint"


def test_equal_settings_pass(folders: tuple[Path, Path]) -> None:
    assert optimum_gate(*folders).verdict == "pass"


@pytest.mark.parametrize("name", ["tokenizer/merges.txt", "scheduler/scheduler_config.json"])
def test_another_or_an_absent_file_is_named(folders: tuple[Path, Path], name: str) -> None:
    path = folders[0] / name
    path.write_text("other")
    changed = optimum_gate(*folders)
    path.unlink()
    for found in (changed, optimum_gate(*folders)):
        assert found.verdict == "fail"
        assert f"optimum/{name} is not the checkpoint's" in found.sentence
