"""The runner itself, compiled here around a model of a few lines: requests, and what it says of memory."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flashbulb.runtimes.devices.toolchain import SOURCES
from flashbulb.runtimes.devices.wire import Link
from flashbulb.runtimes.engines.base import EngineError

MODEL_BYTES = 64 << 20
PARENT_BYTES = 400 << 20
MODEL = """
#include <stdexcept>
#include "runner.hpp"
namespace flashbulb {
struct Echo : Model {
  std::vector<Tensor> run(std::vector<Tensor>& inputs, const std::vector<std::string>& outputs) override {
    std::vector<Tensor> found = inputs;
    for (size_t i = 0; i < found.size(); ++i) found[i].name = outputs.at(i);
    return found;
  }
};
std::unique_ptr<Model> open_model(const std::string&, const std::string&, int) {
  std::vector<char> weights(MODEL_BYTES, 'x');
  if (weights[weights.size() / 2] != 'x') throw std::runtime_error("no weights");
  return std::make_unique<Echo>();
}
std::string runtime() { return "echo 1"; }
}
""".replace("MODEL_BYTES", str(MODEL_BYTES))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("runner")
    (folder / "echo.cpp").write_text(MODEL)
    sources = [SOURCES / "main.cpp", folder / "echo.cpp"]
    words = [compiler, "-std=c++20", "-Wall", "-Wextra", "-Werror", "-I", SOURCES, *sources]
    subprocess.run([*words, "-o", folder / "flashbulb-echo"], check=True)
    return folder / "flashbulb-echo"


@pytest.fixture
def link(program: Path) -> Iterator[Link]:
    found = Link([str(program), "-", "-", "1"], what="echo")
    yield found
    found.close()


def test_memory_is_the_runners_own_and_not_its_parents(program: Path):
    """The kernel's `ru_maxrss` is handed on by exec; a big parent must not be taken for the model."""
    ballast = np.ones(PARENT_BYTES, np.uint8)
    link = Link([str(program), "-", "-", "1"], what="echo")
    try:
        before, peak = link.hello.rss_bytes, link.peak_rss_bytes()
    finally:
        link.close()
    assert ballast[-1] == 1
    assert 0 < before < MODEL_BYTES
    assert 0.9 * MODEL_BYTES < peak - before < 1.5 * MODEL_BYTES


def test_arrays_come_back(link: Link):
    given = np.arange(6, dtype=np.float32).reshape(2, 3)
    (found,) = link.run({"x": given}, ["y"])
    assert found.tobytes() == given.tobytes() and found.shape == (2, 3)
    assert len(link.time(3)) == 3 and link.last().wall_ms >= 0


def test_a_refused_request_leaves_the_next_one_in_place(link: Link):
    for shape in ((0,), (2, 0)):
        with pytest.raises(EngineError, match="a tensor of no size: x"):
            link.run({"x": np.zeros(shape, np.float32), "z": np.ones(3, np.float32)}, ["y", "w"])
        assert link.run({"x": np.ones(1, np.float32)}, ["y"])[0].tolist() == [1.0]


UNREADABLE = {
    "dtype": (b"run 1 1\nx complex64 1\n12345678y\n", "no dtype complex64"),
    "size": (b"run 1 1\nx float32 99999999999999\n", "too much size"),
    "negative": (b"run 1 1\nx float32 -1\n", "too much size"),
    "letters": (b"run 1 1\nx float32 1x\n", "a size that is no number"),
    "tensors": (b"run 65 1\n" + b"x int8 1\n0" * 65 + b"y\n", "too many tensors"),
    "count": (b"run many 1\n", "too many tensors"),
}


@pytest.mark.parametrize(("request_", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_after_a_request_of_unknown_length_nothing_is_taken_for_one(program: Path, request_, words: str):
    given = request_ + b"memory\n"
    done = subprocess.run([program, "-", "-", "1"], input=given, capture_output=True, check=False, timeout=60)
    ready, error, *rest = done.stdout.decode().splitlines()
    assert ready.startswith("ready echo 1|") and error.startswith("error ") and words in error
    assert (rest, done.returncode) == ([], 1)
