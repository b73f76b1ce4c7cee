"""Everything that is drawn on the terminal while a command runs."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

if TYPE_CHECKING:
    from types import TracebackType

out = Console(highlight=False)
"""Results go to standard output."""

err = Console(stderr=True, highlight=False)
"""Logs, progress and complaints go to standard error."""

NOISY = (
    "diffusers",
    "transformers",
    "coremltools",
    "torch",
    "onnxscript",
    "onnx_ir",
    "executorch",
    "torchao",
)


def set_up(*, debug: bool) -> None:
    """Let rich draw the logs of flashbulb, and of the libraries below it only when debugging."""
    from rich.logging import RichHandler

    handler = RichHandler(console=err, show_path=debug, show_time=debug, markup=False, rich_tracebacks=debug)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("flashbulb").setLevel(logging.DEBUG if debug else logging.INFO)
    if debug:
        return
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    quiet = {
        "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_LOGS": "-all",
        "TQDM_DISABLE": "1",
        "PYTHONWARNINGS": "ignore",  # for worker processes, whose filters are their own
    }
    for variable, value in quiet.items():
        os.environ.setdefault(variable, value)


def complain(message: str) -> None:
    """Say in one line what is wrong."""
    err.print(f"flashbulb: {message}", style="bold red", markup=False, soft_wrap=True)


class Progress:
    """What a stage calls as ``on_step``: one bar, moved by ``done`` of ``total``, with a note behind it."""

    def __init__(self, title: str) -> None:
        self._bars = _bars(transient=True)
        self._bar = Bar(self._bars, title)

    def __enter__(self) -> Bar:
        """Start drawing."""
        self._bars.start()
        return self._bar

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing; the bar goes, the results stay."""
        self._bars.stop()


class Stages:
    """The bars of several stages, one below the other; they stay."""

    def __init__(self, names: Sequence[str]) -> None:
        self._width = max(map(len, names))
        self._bars = _bars(transient=False)
        self._open: Bar | None = None

    def __enter__(self) -> Self:
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        if error is None and self._open is not None:
            self._open.fill()
        self._bars.stop()

    def begin(self, name: str, action: str) -> Bar:
        """Return the bar of a stage; the one before it is full now."""
        if self._open is not None:
            self._open.fill()
        logging.getLogger(__name__).info("%s: %s", name, action)
        self._open = Bar(self._bars, name.ljust(self._width))
        self._open(0, 1, action)
        return self._open


class Bar:
    """One bar: numbers are done and total, text is a note, named figures are shown as they are."""

    def __init__(self, bars: Bars, title: str) -> None:
        self._bars, self._title = bars, title
        self._task: TaskID | None = None

    def __call__(self, *seen: Any, **more: Any) -> None:
        """Move the bar."""
        numbers = [item for item in seen if isinstance(item, int) and not isinstance(item, bool)]
        figures = {k: v for item in seen if isinstance(item, Mapping) for k, v in item.items()} | more
        words = [item for item in seen if isinstance(item, str)]
        shown = [
            f"{key} {_figure(value)}"
            for key, value in figures.items()
            if isinstance(value, int | float | str)
        ]
        done = numbers[0] if numbers else None
        total = numbers[1] if len(numbers) > 1 else None
        self._move(done, total, " ".join([*words, *shown[:SHOWN_FIGURES]]))

    def fill(self) -> None:
        """Show that it is done."""
        if self._task is not None:
            task = next(task for task in self._bars.tasks if task.id == self._task)
            self._bars.update(self._task, total=task.total or 1, completed=task.total or 1, note="")

    def _move(self, done: float | None, total: float | None, note: str) -> None:
        if self._task is None:
            self._task = self._bars.add_task(self._title, total=total, note=note)
        self._bars.update(self._task, completed=done, total=total, note=note)


SHOWN_FIGURES = 4


def _bars(*, transient: bool) -> Bars:
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=err,
        transient=transient,
        refresh_per_second=4,
        disable=not err.is_terminal,
    )


def _figure(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
