"""Runners for Arm and the imitated processors that run them; modules beside the tests are put on the path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashbulb.runtimes.devices import qemu, toolchain
from flashbulb.runtimes.engines.base import EngineError

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "mutation")]


@pytest.fixture(scope="session")
def runners() -> dict[str, Path]:
    if reason := qemu.missing():
        pytest.skip(reason)
    try:
        return {engine: toolchain.runner(engine) for engine in toolchain.KITS}
    except EngineError as error:
        pytest.skip(f"no runtime for Arm here: {error}")


@pytest.fixture(params=qemu.MODELS, ids=[model.name for model in qemu.MODELS])
def launcher(request: pytest.FixtureRequest, runners: dict[str, Path]) -> Iterator[qemu.Qemu]:
    with qemu.processors() as launchers:
        yield next(found for found in launchers if found.model is request.param)
