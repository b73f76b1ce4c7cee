"""What a training leaves behind for its watcher: ``stats.jsonl``, and TensorBoard's events on request."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class Tracking:
    """Writes the statistics of a training into its run folder; one process does."""

    def __init__(self, out: Path, *, step: int, tensorboard: bool) -> None:
        """Open the folder of a run that goes on after ``step``; what was written beyond that is dropped."""
        self.file = out / "stats.jsonl"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        truncate(self.file, step)
        self.begun = time.monotonic() - seconds(out)
        self.board: Any = open_board(out / "tensorboard", step) if tensorboard else None

    def write(self, step: int, skipped: int, stats: dict[str, float]) -> None:
        """Write one line, and the same numbers as curves."""
        record = {"step": step, "skipped": skipped, "wall_s": round(time.monotonic() - self.begun, 1)} | stats
        with self.file.open("a") as handle:
            handle.write(json.dumps(record) + "\n")
        if self.board is not None:
            for name, value in stats.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()

    def close(self) -> None:
        """Close what is open."""
        if self.board is not None:
            self.board.close()


def seconds(out: Path) -> float:
    """Return the wall-clock seconds that a run has trained for, those before a resume included."""
    return max((record.get("wall_s", 0.0) for record in _records(out / "stats.jsonl")), default=0.0)


def truncate(file: Path, step: int) -> None:
    """Drop the lines that a killed run wrote after its last saved state."""
    if not file.is_file():
        return
    kept = [record for record in _records(file) if record["step"] <= step]
    partial = file.with_suffix(".partial")
    partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
    os.replace(partial, file)


def _records(file: Path) -> list[dict[str, Any]]:
    """Read the lines of a file that may not be there, or end in the middle of one."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def open_board(folder: Path, step: int) -> Any:
    """Open TensorBoard's writer; curves beyond ``step`` are hidden by those that follow.

    Raises:
        MissingExtra: without the package tensorboard.
    """
    from flashbulb.distill.errors import MissingExtra

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra("tensorboard: true needs the package tensorboard", "train") from error
    return SummaryWriter(str(folder), purge_step=step + 1)
