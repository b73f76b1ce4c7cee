"""Progress of a training that runs in other processes, read from the ``stats.jsonl`` that it writes."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

import flashbulb
from flashbulb.apps.cli.arguments import UsageError

if TYPE_CHECKING:
    from types import TracebackType

PACKAGE = Path(flashbulb.__file__).parent
STATS = "stats.jsonl"
EVERY_S = 2.0
FRAME = re.compile(r'^\s*File "(.+)", line \d+, in ')
ERROR = re.compile(r"^\s*(flashbulb\.[\w.]+|ValueError|RuntimeError|ImportError): (.+)$")
LAUNCHERS = ("torch.distributed.elastic.multiprocessing.api", "torch.multiprocessing.spawn")
NOT_SHOWN = ("step", "skipped", "wall_s")


def trains_elsewhere(config: msgspec.Struct) -> bool:
    """Tell whether a configuration is that of a training in several processes."""
    return getattr(config, "processes", 1) > 1 and hasattr(config, "out")


class Watch:
    """Follow the newest ``stats.jsonl`` below a run folder, in a thread, while the context is open."""

    def __init__(self, config: msgspec.Struct, on_step: Callable[..., None]) -> None:
        self._config, self._on_step = config, on_step
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        """Start following."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop following."""
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(EVERY_S):
            seen = newest(Path(getattr(self._config, "out")))  # noqa: B009
            if seen is not None:
                part, stats = seen
                figures = {k: v for k, v in stats.items() if k not in NOT_SHOWN}
                self._on_step(int(stats["step"]), length(self._config, part), part, figures)


@contextlib.contextmanager
def workers_errors() -> Iterator[None]:
    """Raise what a worker process raised about its input as if it had been raised here."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if not logging.getLogger("flashbulb").isEnabledFor(logging.DEBUG):
        for name in LAUNCHERS:  # they log the whole traceback of what is said below in one line
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    except ChildFailedError as error:
        message = own_error(str(error))
        if message is None:
            raise
        raise UsageError(message) from None


def own_error(text: str) -> str | None:
    """Find the message of the last error in a traceback that was written for a reader.

    That is one of a class of flashbulb, or a builtin one that a line of flashbulb itself raised.
    """
    found, ours = None, False
    for line in text.splitlines():
        if frame := FRAME.match(line):
            ours = Path(frame[1]).is_relative_to(PACKAGE)
        elif (error := ERROR.match(line)) and (ours or error[1].startswith("flashbulb.")):
            found = error[2]
    return found


def newest(out: Path) -> tuple[str, Mapping[str, Any]] | None:
    """Return the last whole line of the newest statistics below ``out``, and the name of its part."""
    files = sorted(out.glob(f"**/{STATS}"), key=lambda file: file.stat().st_mtime)
    if not files:
        return None
    part = files[-1].parent.relative_to(out).as_posix()
    for line in reversed(files[-1].read_text().splitlines()):
        try:
            return ("" if part == "." else part), json.loads(line)
        except json.JSONDecodeError:
            continue  # a line that is being written
    return None


def length(config: msgspec.Struct, part: str) -> int | None:
    """Return the number of steps of a part: ``config.PART.loop.steps``, or ``config.loop.steps``."""
    loop = getattr(getattr(config, part, config), "loop", None)
    return getattr(loop, "steps", None)
