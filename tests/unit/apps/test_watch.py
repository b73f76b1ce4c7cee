"""Progress of a training in other processes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flashbulb.apps.cli import watch


class Loop(msgspec.Struct, frozen=True):
    steps: int = 10


class Part(msgspec.Struct, frozen=True):
    loop: Loop = Loop(steps=7)


class Training(msgspec.Struct, frozen=True):
    out: str = "x"
    processes: int = 2
    loop: Loop = Loop()
    denoiser: Part = Part()


def test_only_trainings_in_several_processes_are_watched() -> None:
    assert watch.trains_elsewhere(Training())
    assert not watch.trains_elsewhere(Training(processes=1))
    assert not watch.trains_elsewhere(Loop())


def test_the_newest_whole_line_counts(tmp_path: Path) -> None:
    assert watch.newest(tmp_path) is None
    (tmp_path / "denoiser").mkdir()
    (tmp_path / "denoiser/stats.jsonl").write_text('{"step": 1}\n{"step": 2, "loss": 0.5}\n{"st')
    assert watch.newest(tmp_path) == ("denoiser", {"step": 2, "loss": 0.5})


def test_the_length_is_that_of_the_part() -> None:
    assert (watch.length(Training(), "denoiser"), watch.length(Training(), ""), watch.length(Loop(), "")) == (
        7,
        10,
        None,
    )


def test_it_reports_while_it_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "EVERY_S", 0.01)
    (tmp_path / "stats.jsonl").write_text('{"step": 3, "wall_s": 1.0, "loss": 0.5}\n')
    seen: list[Any] = []
    called = threading.Event()

    def on_step(*what: Any) -> None:
        seen.append(what)
        called.set()

    with watch.Watch(Training(out=str(tmp_path)), on_step):
        assert called.wait(5)
    assert seen[0] == (3, 10, "", {"loss": 0.5})


def test_a_workers_own_error_is_found_in_its_traceback() -> None:
    text = "Root Cause:\n  File x\n  flashbulb.distill.checkpoint.CheckpointError: no checkpoint 'x'\n===="
    assert watch.own_error(text) == "no checkpoint 'x'"
    assert watch.own_error("RuntimeError: out of memory") is None


@pytest.mark.parametrize(("last", "ours"), [(watch.__file__, True), ("/lib/torch/nn/modules.py", False)])
def test_a_builtin_error_is_ours_where_a_line_of_flashbulb_raised_it(last: str, ours: bool) -> None:
    text = f"""  traceback : Traceback (most recent call last):
    File "{watch.__file__}", line 3, in outer
      inner()
    File "{last}", line 4, in inner
      raise ValueError("wanted 2, got 3")
  ValueError: wanted 2, got 3"""
    assert watch.own_error(text) == ("wanted 2, got 3" if ours else None)
    assert watch.own_error(text.replace("ValueError:", "KeyError:")) is None
