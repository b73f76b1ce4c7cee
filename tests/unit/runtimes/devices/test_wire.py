"""The wire to a runner: what is asked and answered, and every way in which the other side can fail."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from flashbulb.runtimes.devices.wire import Link, LinkLost
from flashbulb.runtimes.engines.base import EngineError

READY = "ready fake 1.0|aarch64|neon,dotprod|1500|2048"
SOUND = r"""
import sys
i, o = sys.stdin.buffer, sys.stdout.buffer
o.write(b"READY\n"); o.flush()
kept = []
while line := i.readline():
    verb, *numbers = line.split()
    if verb == b"run":
        kept = []
        for _ in range(int(numbers[0])):
            name, dtype, *sizes = i.readline().split()
            count = {b"float32": 4, b"int32": 4, b"int64": 8, b"float16": 2}[dtype]
            for size in sizes:
                count *= int(size)
            kept.append((dtype, sizes, i.read(count)))
        names = [i.readline().strip() for _ in range(int(numbers[1]))]
        o.write(b"ok %d\n" % len(names))
        for name, (dtype, sizes, data) in zip(names, reversed(kept)):
            o.write(b" ".join([name, dtype, *sizes]) + b"\n" + data)
    elif verb == b"time":
        o.write(b"ok %d\n" % int(numbers[0]) + b"1500 2500\n" * int(numbers[0]))
    elif verb == b"last":
        o.write(b"ok 1\n7000 6000\n")
    else:
        o.write(b"ok 1\n4096\n")
    o.flush()
"""


def start(code: str, patience_s: float = 30.0) -> Link:
    return Link([sys.executable, "-c", code.replace("READY", READY)], what="fake", patience_s=patience_s)


def answering(answer: str, patience_s: float = 30.0) -> Link:
    """A runner that greets well and then says one thing, whatever it is asked."""
    code = f"import sys; print('READY', flush=True); sys.stdin.buffer.readline(); {answer}"
    return start(code, patience_s)


ONE = {"x": np.zeros(2, np.float32)}


def test_arrays_go_and_come_back_bit_for_bit():
    link = start(SOUND)
    rng = np.random.default_rng(0)
    first = rng.standard_normal((2, 3)).astype(np.float32)
    first[0, 0], first[0, 1] = np.nan, -0.0
    second = rng.integers(-(2**31), 2**31 - 1, (1, 7)).astype(np.int32)
    third = np.array(2.5, np.float16)
    found = link.run({"a": first[:, ::-1], "b": second, "c": third}, ["z", "y", "x"])
    for wanted, got in zip((third, second, first[:, ::-1]), found, strict=True):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        assert got.tobytes() == np.ascontiguousarray(wanted).tobytes()
    link.close()
    assert link.process.returncode == 0


def test_the_greeting_and_the_figures():
    link = start(SOUND)
    assert link.hello == ("fake 1.0", "aarch64", ("neon", "dotprod"), 1.5, 2048)
    assert link.time(3) == [(1.5, 2.5)] * 3
    assert link.last() == (7.0, 6.0)
    assert link.peak_rss_bytes() == 4096
    link.close()


def test_a_refusal_is_told_and_the_runner_goes_on():
    code = """
import sys
print("READY", flush=True)
for word in ("error no such shape", "ok 1"):
    for _ in range(4):
        sys.stdin.buffer.readline() if _ != 2 else sys.stdin.buffer.read(8)
    print(word, flush=True)
print("y float32 1", flush=True)
sys.stdout.buffer.write(b"\\0\\0\\x80?")
"""
    link = start(code)
    with pytest.raises(EngineError, match=r"^fake: no such shape$"):
        link.run(ONE, ["y"])
    assert link.run(ONE, ["y"])[0].tolist() == [1.0]
    link.close()


@pytest.mark.parametrize(
    ("greeting", "words"),
    [
        ("print('hello')", "wanted a runner's greeting, got 'hello'"),
        ("print('ready a|b|c|x|1')", "wanted a runner's greeting"),
        ("print('error the model is of another version')", "the model is of another version"),
        ("print('a' * 9999)", "wanted a line"),
        ("import sys; sys.exit('cannot map the file')", "ended with code 1: cannot map the file"),
    ],
)
def test_a_runner_that_does_not_come_up(greeting: str, words: str):
    with pytest.raises(EngineError, match=words):
        start(greeting)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("print('ok 1000000')", "wanted 'ok' and a count"),
        ("print('ok -1')", "wanted 'ok' and a count"),
        ("print('yes')", "wanted 'ok' and a count, got 'yes'"),
        ("print('ok 1'); print('y object 2')", "wanted NAME DTYPE SIZE"),
        ("print('ok 1'); print('y float32 -2')", "wanted NAME DTYPE SIZE"),
        ("print('ok 1'); print('y float32' + ' 1' * 9)", "wanted NAME DTYPE SIZE"),
        ("print('ok 1'); print('y float32 99999999999')", "wanted a tensor under"),
        ("print('ok 1'); print('y float32 2'); print('abc', end='')", "the runner ended"),
        ("pass", "the runner ended with code 0"),
    ],
)
def test_an_answer_that_is_none(answer: str, words: str):
    link = answering(answer)
    with pytest.raises(EngineError, match=words):
        link.run(ONE, ["y"])
    link.close()


def test_a_runner_that_hangs_is_ended():
    link = answering("import time; time.sleep(600)", patience_s=0.5)
    begun = time.monotonic()
    with pytest.raises(LinkLost, match="ended with code -9"):
        link.run(ONE, ["y"])
    assert time.monotonic() - begun < 60
    link.close()


def test_a_runner_that_died_is_lost():
    link = start("import sys; print('READY', flush=True); sys.exit('out of memory')")
    link.process.wait()
    with pytest.raises(LinkLost, match="out of memory"):
        link.run({"x": np.zeros(1_000_000, np.float32)}, ["y"])
    link.close()


def test_names_cannot_carry_requests():
    link = start(SOUND)
    for name in ("x y", "x\nmemory", ""):
        with pytest.raises(EngineError, match="plain name"):
            link.run({name: ONE["x"]}, ["y"])
    with pytest.raises(EngineError, match="wanted a tensor of"):
        link.run({"x": np.zeros(2, np.complex64)}, ["y"])
    link.close()


def test_no_program_is_one_sentence(tmp_path: Path):
    with pytest.raises(EngineError, match="cannot start"):
        Link([str(tmp_path / "none")], what="fake")
