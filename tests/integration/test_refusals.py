"""What a training in two processes refuses is one line and exit code 2, and leaves no run folder behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flashbulb.apps.cli import main

RECIPE = "{{teacher: {teacher}, out: {out}, processes: 2, sample_every: 0, {wrong}}}"
REFUSED = {
    "data": ("data: nothing", "wanted as data 'embedded'; a folder"),
    "options": ("data_options: {flip: true}", "wanted no data_options with data 'embedded'"),
    "batch": ("loop: {batch: 33}", "wanted a batch that 2 processes times 1 micro-batches divide, got 33"),
    "accumulate": ("loop: {batch: 4, accumulate: 3}", "2 processes times 3 micro-batches divide, got 4"),
    "features": ("objective: {type: add, critic: {features: none/here}}", "got 'none/here'"),
    "witness": (
        "objective: {type: add, critic: {condition: both, image_features: none/here}}",
        "got 'none/here'",
    ),
    "teacher": ("student: none/here", "none/here"),
}


def recipe(tmp_path: Path, teacher: Path, wrong: str) -> str:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.format(teacher=teacher, out=tmp_path / "run", wrong=wrong))
    return str(file)


@pytest.mark.parametrize(("wrong", "said"), REFUSED.values(), ids=REFUSED)
def test_it_is_said_before_anything_is_written(
    tiny_sticker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str, said: str
) -> None:
    assert main(["distill", recipe(tmp_path, tiny_sticker, wrong)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [said in line for line in lines] == [True], lines
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_only_a_worker_can_tell_is_one_line_too(tiny_sticker: Path, tmp_path: Path) -> None:
    file = recipe(tmp_path, tiny_sticker, "objective: {type: guided-2}, loop: {steps: 2, batch: 2}")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "flashbulb.apps.cli", "distill", file],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "guided-2 wants a teacher with an input for the guidance scale" in done.stderr
