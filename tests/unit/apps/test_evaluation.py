"""What the tables of an evaluation say."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from flashbulb.apps.cli import outcome
from flashbulb.apps.cli.make.stages import _figures
from flashbulb.distill.metrics.bootstrap import Interval
from flashbulb.distill.metrics.figures import Figure
from flashbulb.distill.metrics.stage import EvalRecord


def record(**more) -> EvalRecord:
    figures = {
        "retrieval_at_1": Figure(value=0.625, low=0.5, high=0.75, spread=0.03125, real=0.6875),
        "diversity": Figure(value=0.05, low=0.04, high=0.06),
    }
    return EvalRecord(
        checkpoint="embedded:student", sha256="0", split="train", prompts_sha256="0", pictures=8,
        real_pictures=8, seeds=(0, 2, 4), steps=1, sampler="ddim", timesteps="trailing", guidance=1.0,
        resamples=50, figures=figures, **more,
    )  # fmt: skip


def test_figures_are_shown_with_interval_spread_and_real(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome.show(record(notes=("fid: no --inception",))) == 0
    shown = capsys.readouterr()
    row = next(line.split() for line in shown.out.splitlines() if "retrieval_at_1" in line)
    assert row == ["retrieval_at_1", "0.625", "0.5", "to", "0.75", "0.03125", "0.6875"]
    assert next(line.split()[-2:] for line in shown.out.splitlines() if "diversity" in line) == ["-", "-"]
    assert "8 pictures (train), 3 seeds, ddim 1 step" in shown.out
    assert "not measured: fid: no --inception" in shown.err


def test_differences_say_whether_they_are_chance(capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        "retrieval_at_1": Interval(value=0.1, low=0.02, high=0.2),
        "diversity": Interval(value=-0.01, low=-0.03, high=0.01),
    }
    assert outcome.show(record(against="runs/teacher", differences=found)) == 0
    lines = capsys.readouterr().out.partition("less runs/teacher")[2].splitlines()
    assert [line.split()[-1] for line in lines if "retrieval" in line or "diversity" in line] == ["yes", "no"]


def test_a_broken_condition_gives_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome.show(record(failures=("wanted frechet <= 4, got 5",))) == 1
    assert "wanted frechet <= 4, got 5" in capsys.readouterr().err


def test_make_puts_the_figures_of_student_teacher_and_real_stickers_below_one_another(tmp_path: Path) -> None:
    for name, steps in (("student", 1), ("teacher", 25)):
        file = tmp_path / "judge" / name / "eval.json"
        file.parent.mkdir(parents=True)
        file.write_bytes(msgspec.json.encode(msgspec.structs.replace(record(), steps=steps)))
    assert _figures(tmp_path) == {
        "judged on 8 prompts (train)": [
            {"pictures of": "student, 1 step", "R@1": 0.625, "diversity": 0.05},
            {"pictures of": "teacher, 25 steps", "R@1": 0.625, "diversity": 0.05},
            {"pictures of": "real stickers", "R@1": 0.6875, "diversity": "–"},
        ]
    }
