"""``flashbulb table``: every row distilled at one budget and judged alike, resumable row by row.

The analogue of tables 1 and 2 of ADD (arXiv 2311.17042), drawn anew under one protocol: figures of different
papers stand on different protocols and cannot be put side by side.
"""

from __future__ import annotations

import logging
import shutil
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import msgspec

from flashbulb.distill import tracking
from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.lineage import EVALUATIONS
from flashbulb.distill.loop import LoopConfig
from flashbulb.distill.table import page, results
from flashbulb.distill.table.results import Result
from flashbulb.distill.table.rows import FILE, Row, choose, load_rows, still_holds

log = logging.getLogger(__name__)

Positive = Annotated[int, msgspec.Meta(gt=0)]


class TableConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Distil and judge the rows of the table."""

    rows: tuple[str, ...] = ()
    """Rows to run; none means all."""
    file: str = ""
    """YAML file with other rows."""
    out: str = "runs/table"
    """Folder for results, students and the page; finished rows in it are kept."""
    steps: Positive = 150
    """Optimizer steps of a row's distillation, each link of a chain."""
    batch: Positive = 32
    """Pictures of one step, over all processes."""
    processes: Positive = 2
    """Data-parallel processes on this machine."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds; all rows are run with the first before any with the second."""
    evaluation_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of prompts and noise that each student is judged with."""
    pictures: Annotated[int, msgspec.Meta(ge=8)] = 148
    """Pictures of one judgement."""
    minutes: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Start no further row after so many minutes; say the command again to go on."""
    known: str = ""
    """Folder with results of an earlier run; those of the same recipe and budget are not run again."""
    keep: bool = False
    """Keep the students of finished rows."""

    def budget(self) -> dict[str, Any]:
        """Return what a row's figures depend on beside its recipe."""
        return {name: getattr(self, name) for name in ("steps", "batch", "evaluation_seeds", "pictures")}


def run(config: TableConfig) -> Path:
    """Run what is not finished, then write ``report.html`` and ``SUMMARY.md``; return the former.

    Raises:
        ValueError: for an unknown row.
    """
    rows = choose(load_rows(Path(config.file) if config.file else FILE), config.rows)
    out, begun, absent = Path(config.out), time.monotonic(), dict[str, str]()
    if config.known:
        _take_over(Path(config.known), rows, config)
    for seed in config.seeds:
        for row in rows:
            if _finished(row, seed, config) or row.id in absent:
                continue
            if config.minutes is not None and time.monotonic() - begun > 60 * config.minutes:
                log.info("%s minutes are over; say the same command again to go on", config.minutes)
                return page.write(out, rows, absent, config)
            if row.needs and not _is_cached(row.needs):
                absent[row.id] = f"{row.needs} is not on this machine"
                log.info("row %s left out: %s", row.id, absent[row.id])
                continue
            _run_row(row, seed, config)
            page.write(out, rows, absent, config)
    return page.write(out, rows, absent, config)


def _take_over(folder: Path, rows: tuple[Row, ...], config: TableConfig) -> None:
    """Copy results and pictures of an earlier run that this one would make again.

    Raises:
        NotADirectoryError: when there is no such folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"wanted a folder with results of the table, got {folder}")
    wanted, out = {row.id: row for row in rows}, Path(config.out)
    for result in results.load(folder):
        row = wanted.get(result.row)
        if row is None or not _answers(result, row, config) or (out / "results" / result.name).is_file():
            continue
        results.save(result, out / "results")
        grid = folder / f"{result.row}-{result.seed}.webp"
        if grid.is_file():
            (out / "grids").mkdir(exist_ok=True)
            shutil.copy(grid, out / "grids" / grid.name)


def _finished(row: Row, seed: int, config: TableConfig) -> bool:
    """Tell whether a result of this very recipe and budget lies in the run folder."""
    found = results.load(Path(config.out) / "results")
    return any(r.row == row.id and r.seed == seed and _answers(r, row, config) for r in found)


def _answers(result: Result, row: Row, config: TableConfig) -> bool:
    """Tell whether a result is of this very recipe, budget and checkpoint."""
    budget = config.budget()
    if result.key != row.key(budget) or not still_holds(result.recipe, row.resolved(budget)):
        return False
    return not result.sha256 or result.sha256 == Checkpoint.open(row.checkpoint).sha256()


def _run_row(row: Row, seed: int, config: TableConfig) -> None:
    from flashbulb.distill.cost import device_name
    from flashbulb.distill.metrics.evaluation import chosen_device
    from flashbulb.distill.precision import resolved
    from flashbulb.distill.table.judging import judge_draws

    out, begun = Path(config.out), time.monotonic()
    log.info("row %s, seed %d: %s", row.id, seed, row.title)
    folders = [out / "work" / f"{row.id}-{seed}-{i}" for i in range(len(row.chain))]
    begun -= sum(map(tracking.seconds, folders))  # of a run that was killed
    checkpoint, device = Checkpoint.open(row.checkpoint), chosen_device("")
    sha256, evaluations = checkpoint.sha256(), 0 if row.chain else asked_of_teachers(checkpoint)
    for link, folder in zip(row.chain, folders, strict=True):
        checkpoint, looked = _distil(link, checkpoint, folder, seed, config)
        evaluations += looked
    trained_s = time.monotonic() - begun if row.chain else 0.0
    drawn = judge_draws(
        checkpoint,
        row.draws,
        config.evaluation_seeds,
        pictures=config.pictures,
        grid=out / "grids" / f"{row.id}-{seed}.webp",
        on_draw=lambda draw, at: log.info("row %s: %s, prompts %d", row.id, draw, at),
    )
    results.save(
        Result(
            row=row.id,
            seed=seed,
            key=row.key(config.budget()),
            recipe=row.resolved(config.budget()),
            pictures=config.pictures,
            drawn=drawn,
            train_s=round(trained_s, 1),
            teacher_evaluations=evaluations,
            sha256=sha256,
            precision=resolved("auto", device.type),
            device=device_name(device),
            versions={name: metadata.version(name) for name in ("flashbulb", "torch", "diffusers")},
        ),
        out / "results",
    )
    if not config.keep:
        for folder in folders:
            shutil.rmtree(folder)


def _distil(
    link: Any, teacher: Checkpoint, folder: Path, seed: int, config: TableConfig
) -> tuple[Checkpoint, int]:
    """Distil one link of a chain; return the student and how many pictures its teacher looked at."""
    from flashbulb.distill.stage import DistillConfig
    from flashbulb.distill.stage import run as distil

    student = distil(
        DistillConfig(
            teacher=str(teacher.path),
            out=str(folder),
            processes=config.processes,
            objective=link.objective,
            loop=LoopConfig(
                steps=max(1, round(config.steps * link.share)),
                batch=config.batch,
                seed=seed,
                ema=0.99,
                warmup=20,
                decay=0.4,
            ),
            sample_every=0,
        )
    )
    made = Checkpoint.open(str(student))
    return made, int(made.lineage.entries[-1].metrics.get(EVALUATIONS, 0))


def asked_of_teachers(checkpoint: Checkpoint) -> int:
    """Return how many pictures teachers looked at for a checkpoint, as its lineage says."""
    return sum(int(entry.metrics.get(EVALUATIONS, 0)) for entry in checkpoint.lineage.entries)


def _is_cached(name: str) -> bool:
    """Tell whether a network lies in the local cache of the Hub, or is a folder."""
    from huggingface_hub import try_to_load_from_cache

    return Path(name).is_dir() or isinstance(try_to_load_from_cache(name, "config.json"), str)
