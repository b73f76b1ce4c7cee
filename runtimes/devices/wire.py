"""Talk to a runner: a program that holds one model and answers requests on its standard input.

The requests are described in ``runner/main.cpp``.  What answers may be a stranger's machine: every line is
bounded, and a tensor comes in the dtype and shape that it announces or not at all.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from flashbulb.runtimes.engines.base import Array, EngineError

MOST_LINE_BYTES = 4096
MOST_TENSOR_BYTES = 1 << 31
MOST_DIMENSIONS = 8
MOST_TENSORS = 64
DTYPES = ("float32", "float16", "int64", "int32", "int8", "uint8")
TAIL_BYTES = 600


class LinkLost(EngineError):
    """The runner ended, or what led to it."""


class Hello(NamedTuple):
    """What a runner says when its model is open."""

    runtime: str
    """Name and version of the runtime."""
    arch: str
    """Processor architecture, as the system there names it."""
    features: tuple[str, ...]
    """Instruction sets beside the base one, such as ``dotprod``."""
    load_ms: float
    """Time to open the model."""
    rss_bytes: int
    """Resident memory before the model was opened."""


class Timing(NamedTuple):
    """One timed run."""

    wall_ms: float
    cpu_ms: float


class Link:
    """A running runner."""

    def __init__(
        self, words: Sequence[str], *, what: str, patience_s: float = 600.0, cwd: Path | None = None
    ) -> None:
        """Start a runner and wait until its model is open.

        Args:
            words: the command, run without a shell.
            what: how errors name it.
            patience_s: a request that takes longer ends the runner.
            cwd: where to start it.

        Raises:
            EngineError: when it cannot be started, or the runtime refuses the model.
        """
        self.what, self.patience_s = what, patience_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the process
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=self._errors, cwd=cwd)
        except OSError as error:
            self._errors.close()
            raise EngineError(f"{what}: cannot start {words[0]!r}: {error}") from error
        try:
            with self._watched():
                self.hello = _hello(self._line(), what)
        except EngineError:
            self.close()
            raise

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Run the model.

        Args:
            inputs: arrays by name, in the order in which the model takes them.
            outputs: names of the results, in their order.

        Raises:
            EngineError: when the runtime refuses, or the runner ended.
        """
        head = [f"run {len(inputs)} {len(outputs)}\n".encode()]
        body = [part for name, array in inputs.items() for part in _encoded(name, array)]
        with self._watched():
            self._send([*head, *body, *(f"{name}\n".encode() for name in outputs)])
            return [self._tensor() for _ in range(self._count(MOST_TENSORS))]

    def last(self) -> Timing:
        """Return what the last `run` took, without its way here and back."""
        with self._watched():
            self._send([b"last\n"])
            self._count(1)
            wall, cpu = self._numbers(2)
        return Timing(wall / 1000.0, cpu / 1000.0)

    def time(self, count: int) -> list[Timing]:
        """Run the model on the last inputs again, ``count`` times."""
        with self._watched():
            self._send([f"time {count}\n".encode()])
            lines = [self._numbers(2) for _ in range(self._count(count))]
        return [Timing(wall / 1000.0, cpu / 1000.0) for wall, cpu in lines]

    def peak_rss_bytes(self) -> int:
        """Return the peak resident memory of the runner."""
        with self._watched():
            self._send([b"memory\n"])
            self._count(1)
            return self._numbers(1)[0]

    def close(self) -> None:
        """End the runner; it ends by itself when nobody asks any more."""
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                _open(pipe).close()
        try:
            self.process.wait(timeout=10.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._errors.close()

    def _send(self, parts: Sequence[bytes]) -> None:
        pipe = _open(self.process.stdin)
        try:
            for part in parts:
                pipe.write(part)
            pipe.flush()
        except (OSError, ValueError) as error:
            raise self._ended() from error

    def _line(self) -> str:
        line = _open(self.process.stdout).readline(MOST_LINE_BYTES)
        if not line:
            raise self._ended()
        text = line.decode("utf-8", errors="replace").rstrip("\n")
        if text.startswith("error "):
            raise EngineError(f"{self.what}: {text.removeprefix('error ')}")
        if not line.endswith(b"\n"):
            raise EngineError(f"{self.what}: wanted a line, got {text[:80]!r}")
        return text

    def _count(self, most: int) -> int:
        verdict, _, number = self._line().partition(" ")
        if verdict != "ok" or not number.isdecimal() or int(number) > most:
            raise EngineError(f"{self.what}: wanted 'ok' and a count, got {verdict[:40]!r} {number[:40]!r}")
        return int(number)

    def _numbers(self, count: int) -> list[int]:
        words = self._line().split()
        if len(words) != count or not all(word.isdecimal() for word in words):
            raise EngineError(f"{self.what}: wanted {count} numbers, got {words[:4]}")
        return [int(word) for word in words]

    def _tensor(self) -> Array:
        line = self._line()
        _, dtype, *sizes = line.split(" ")
        if dtype not in DTYPES or len(sizes) > MOST_DIMENSIONS or not all(s.isdecimal() for s in sizes):
            raise EngineError(f"{self.what}: wanted NAME DTYPE SIZE..., got {line[:80]!r}")
        shape = tuple(int(size) for size in sizes)
        wanted = math.prod(shape) * np.dtype(dtype).itemsize
        if wanted > MOST_TENSOR_BYTES:
            raise EngineError(f"{self.what}: wanted a tensor under {MOST_TENSOR_BYTES} bytes, got {wanted}")
        data = _open(self.process.stdout).read(wanted)
        if len(data) != wanted:
            raise self._ended()
        return np.frombuffer(data, dtype=np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """End a runner that does not answer in time: the reading side then sees the end of its output."""
        timer = threading.Timer(self.patience_s, self.process.kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _ended(self) -> LinkLost:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10.0)
        self._errors.seek(0, 2)
        self._errors.seek(max(0, self._errors.tell() - TAIL_BYTES))
        tail = self._errors.read().decode("utf-8", errors="replace").strip().splitlines()
        said = f": {tail[-1]}" if tail else ""
        return LinkLost(f"{self.what}: the runner ended with code {self.process.returncode}{said}")


def _open(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise EngineError("wanted a runner with pipes, got one without")
    return pipe


def _encoded(name: str, array: Array) -> tuple[bytes, bytes]:
    if array.dtype.name not in DTYPES or not name.isidentifier():
        raise EngineError(f"wanted a tensor of {DTYPES} with a plain name, got {name!r} {array.dtype}")
    line = " ".join([name, array.dtype.name, *map(str, array.shape)])
    return f"{line}\n".encode(), np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()


def _hello(line: str, what: str) -> Hello:
    parts = line.removeprefix("ready ").split("|")
    if not line.startswith("ready ") or len(parts) != 5 or not (parts[3] + parts[4]).isdecimal():
        raise EngineError(f"{what}: wanted a runner's greeting, got {line[:80]!r}")
    runtime, arch, features, load_us, rss_bytes = parts
    return Hello(runtime, arch, tuple(filter(None, features.split(","))), int(load_us) / 1000, int(rss_bytes))
