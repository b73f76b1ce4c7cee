"""What overflows inside a float16 program is told, also where its output is finite again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flashbulb.runtimes.engines.mil import Program
from flashbulb.runtimes.engines.mil.engine import Mil, MilSession
from flashbulb.runtimes.gates import finite_gate
from flashbulb.runtimes.records import SanityRecord

pytest.importorskip("coremltools")


def session(tools: SimpleNamespace, path: Path, factor: float, mode: Any) -> MilSession:
    """A program that multiplies twice and squeezes the product into [0, 1]."""
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools spells it

    def build(x: Any) -> Any:
        large = mb.mul(x=x, y=np.float16(60000), name="large")
        return mb.sigmoid(x=mb.mul(x=large, y=np.float16(factor), name="larger"), name="y")

    tools.save_program(build, {"x": np.ones((1, 4), np.float16)}, path)
    names = SimpleNamespace(inputs=(SimpleNamespace(name="x"),), outputs=(SimpleNamespace(name="y"),))
    artifacts: Any = {"unet": names}
    return MilSession(Mil(mode=mode), artifacts, {"unet": Program.load(path, mode)})


def judged(session: MilSession) -> list[SanityRecord]:
    for sign in (1.0, -1.0):
        (found,) = session.call("unet", [np.full((1, 4), sign, np.float32)])
        assert np.isfinite(found).all()
    return [r for r in finite_gate(session, "unet") if isinstance(r, SanityRecord)]


def test_an_overflow_inside_is_counted_and_named(tools: SimpleNamespace, tmp_path: Path) -> None:
    (record,) = judged(session(tools, tmp_path / "m.mlpackage", 100.0, "fp16"))
    assert (record.gate, record.engine, record.verdict) == ("finite.unet", "mil-fp16", "fail")
    assert (record.value, record.threshold, record.unit) == (8.0, 0.0, "values")
    assert record.sentence.endswith("8 values on the way are NaN or infinite, first in 'larger' (mul)")


def test_what_stays_in_range_passes(tools: SimpleNamespace, tmp_path: Path) -> None:
    (record,) = judged(session(tools, tmp_path / "m.mlpackage", 0.01, "fp16"))
    assert (record.verdict, record.value, record.threshold) == ("pass", 0.0, 0.0)


def test_float32_is_not_watched(tools: SimpleNamespace, tmp_path: Path) -> None:
    assert judged(session(tools, tmp_path / "m.mlpackage", 100.0, "fp32")) == []
