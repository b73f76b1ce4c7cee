"""The table as a page with pictures, and as Markdown."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from flashbulb.distill.table import results
from flashbulb.distill.table.predictions import Verdict, judge_all
from flashbulb.distill.table.results import Spread, Table

if TYPE_CHECKING:
    from flashbulb.distill.table.rows import Row
    from flashbulb.distill.table.stage import TableConfig

FIGURES = {
    "retrieval_at_1": "R@1",
    "retrieval_at_10": "R@10",
    "frechet": "Frechet",
    "precision": "precision",
    "recall": "recall",
    "diversity": "diversity",
    "sharpness": "sharpness",
}
EVALUATIONS = "teacher evaluations"
"""Column of what a row's training asked of its teachers."""
PARTS = {
    "scale": "For scale: pictures that nobody drew",
    "1a": "Critic features (ADD, table 1 a)",
    "1b": "What the critic is told (table 1 b)",
    "1c": "Start of the student (table 1 c)",
    "1d": "Loss terms (table 1 d)",
    "1f": "Teacher steps (table 1 f)",
    "2": "Other methods (table 2)",
    "knobs": "What the paper leaves open",
    "ours": "With regression onto teacher pictures",
}


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table: a row's title, how it was drawn, its figures as text."""

    title: str
    draw: str
    cells: tuple[str, ...]
    first: bool


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """The lines that answer to one table of the paper."""

    title: str
    lines: tuple[Line, ...]


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """A row's first pictures."""

    title: str
    source: str


def write(out: Path, rows: tuple[Row, ...], absent: dict[str, str], config: TableConfig) -> Path:
    """Write ``report.html`` and ``SUMMARY.md`` of all results in the run folder; return the former."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    table = Table(results.load(out / "results"))
    found = contents(table, rows, absent, config)
    loader = PackageLoader("flashbulb.distill.table", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    pictures = grids(table, rows, out / "grids")
    html = environment.get_template("table.html.jinja").render(**found, grids=pictures)
    _replace(out / "report.html", html)
    _replace(out / "SUMMARY.md", markdown(found))
    return out / "report.html"


def contents(
    table: Table, rows: tuple[Row, ...], absent: dict[str, str], config: TableConfig
) -> dict[str, object]:
    """Return what the page says, its pictures aside."""
    return {
        "columns": (*FIGURES.values(), EVALUATIONS),
        "sections": sections(table, rows),
        "verdicts": judge_all(table),
        "missing": missing(table, rows, absent),
        "protocol": protocol(table, config),
    }


def sections(table: Table, rows: tuple[Row, ...]) -> tuple[Section, ...]:
    """Return the lines of all rows with results, by part."""
    found = []
    for part, title in PARTS.items():
        chosen = [row for row in rows if row.part == part and table.of(row.id)]
        lines = [line for row in chosen for line in _lines(table, row)]
        if lines:
            found.append(Section(title=title, lines=tuple(lines)))
    return tuple(found)


def _lines(table: Table, row: Row) -> list[Line]:
    return [
        Line(
            title=row.title,
            draw=draw,
            cells=(
                *(_text(table.spread(row.id, figure, draw)) for figure in FIGURES),
                _evaluations(table, row) if number == 0 else "",
            ),
            first=number == 0,
        )
        for number, draw in enumerate(table.draws(row.id))
    ]


def _text(spread: Spread | None) -> str:
    return "–" if spread is None else str(spread)


def _evaluations(table: Table, row: Row) -> str:
    """Return how many pictures a training's teachers looked at, in thousands."""
    counts = [r.teacher_evaluations for r in table.of(row.id)]
    return f"{sum(counts) / len(counts) / 1000:.1f} k" if any(counts) else "–"


def missing(table: Table, rows: tuple[Row, ...], absent: dict[str, str]) -> tuple[str, ...]:
    """Return a sentence for each row that has no result."""
    return tuple(f"{row.title}: {absent.get(row.id, 'not run yet')}" for row in rows if not table.of(row.id))


def protocol(table: Table, config: TableConfig) -> str:
    """Say in one paragraph how the figures were made."""
    trained = [r for r in table.results if r.train_s]
    minutes = sum(r.train_s for r in trained) / 60
    return (
        f"Every distillation has {config.steps} steps of {config.batch} pictures and starts from the "
        f"embedded teacher. Each line judges {config.pictures} pictures of training captions with each of "
        f"{len(config.evaluation_seeds)} seeds of prompts and noise. {training_seeds(table)} "
        f"A figure is the mean over all seeds ± half of their range. "
        f"Frechet distances, precision and recall are on the judge's features (EfficientNet-Lite2, which no "
        f"training saw) and only comparable at this number of pictures. Teacher evaluations are pictures "
        f"that a teacher looked at in training, with and without the text counted apart. {len(trained)} "
        f"trainings of rows took {minutes:.0f} minutes of wall clock beside other work."
    )


def training_seeds(table: Table) -> str:
    """Say which training seeds the rows have: those of most, and who has others."""
    rows: dict[str, set[int]] = {}
    for result in table.results:
        rows.setdefault(result.row, set()).add(result.seed)
    if not rows:
        return "Nothing was trained yet."
    groups: dict[tuple[int, ...], list[str]] = {}
    for row, seeds in rows.items():
        groups.setdefault(tuple(sorted(seeds)), []).append(row)
    (most, _), *others = sorted(groups.items(), key=lambda item: -len(item[1]))
    shown = "; ".join(f"{', '.join(found)}: {', '.join(map(str, seeds))}" for seeds, found in others)
    return f"Training seeds: {', '.join(map(str, most))}{f' ({shown})' if shown else ''}."


def grids(table: Table, rows: tuple[Row, ...], folder: Path) -> tuple[Grid, ...]:
    """Return each row's first pictures, for the first of its seeds that has any."""
    found = []
    for row in rows:
        files = sorted(folder.glob(f"{row.id}-[0-9]*.webp"))
        if table.of(row.id) and files:
            data = base64.b64encode(files[0].read_bytes()).decode()
            title = f"{row.title}, {table.draws(row.id)[0]}"
            found.append(Grid(title=title, source=f"data:image/webp;base64,{data}"))
    return tuple(found)


def markdown(found: dict[str, object]) -> str:
    """Return the table without its pictures, as Markdown."""
    columns: tuple[str, ...] = found["columns"]  # type: ignore[assignment]
    lines = [str(found["protocol"]), ""]
    for section in found["sections"]:  # type: ignore[attr-defined]
        lines += [f"### {section.title}", "", f"| | drawn by | {' | '.join(columns)} |"]
        lines += ["|---" * (len(columns) + 2) + "|"]
        for line in section.lines:
            lines.append(f"| {line.title if line.first else ''} | {line.draw} | {' | '.join(line.cells)} |")
        lines.append("")
    lines += ["### Predictions", "", "| | prediction | rule | outcome | figures |", "|---|---|---|---|---|"]
    lines += [_verdict_line(v) for v in found["verdicts"]]  # type: ignore[attr-defined]
    if found["missing"]:
        lines += ["", "### Not here", "", *(f"- {text}" for text in found["missing"])]  # type: ignore[attr-defined]
    return "\n".join(lines) + "\n"


def _verdict_line(v: Verdict) -> str:
    return f"| {v.id} | {v.prediction} | {v.rule} | **{v.outcome}** | {v.figures} |"


def _replace(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, file)
