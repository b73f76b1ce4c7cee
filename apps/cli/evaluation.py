"""Show the figures of an evaluation on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashbulb.apps.cli import console
from flashbulb.apps.cli.commands import DONE, NUMBERS_FAIL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from flashbulb.distill.metrics.stage import EvalRecord


def show(record: EvalRecord) -> int:
    """Print the tables of an evaluation and what was not measured; a broken condition gives exit code 1."""
    console.out.print(figures_table(record))
    if record.differences:
        console.out.print(differences_table(record))
    for note in record.notes:
        console.err.print(f"not measured: {note}", style="yellow", markup=False, soft_wrap=True)
    for sentence in record.failures:
        console.complain(sentence)
    return NUMBERS_FAIL if record.failures else DONE


def figures_table(record: EvalRecord) -> Table:
    """Return one row a figure: value, interval over prompts, spread over seeds, real pictures."""
    seeds = f"{len(record.seeds)} seed{'s' * (len(record.seeds) > 1)}"
    title = f"{record.checkpoint}: {record.pictures} pictures ({record.split}), {seeds}, {_drawn(record)}"
    table = _table(title, ("figure", "value", "95 % over prompts", "spread of seeds", "real pictures"))
    for name, f in record.figures.items():
        interval = f"{_brief(f.low)} to {_brief(f.high)}"
        table.add_row(name, _brief(f.value), interval, _brief(f.spread), _brief(f.real))
    return table


def differences_table(record: EvalRecord) -> Table:
    """Return one row a figure: the difference, its interval, and whether it is larger than chance."""
    columns = ("figure", "difference", "95 % over prompts", "larger than chance")
    table = _table(f"less {record.against}", columns)
    for name, d in record.differences.items():
        interval = f"{_brief(d.low)} to {_brief(d.high)}"
        table.add_row(name, f"{d.value:+.3g}", interval, "yes" if d.excludes_zero else "no")
    return table


def _drawn(record: EvalRecord) -> str:
    return f"{record.sampler} {record.steps} step{'s' * (record.steps > 1)}, guidance {record.guidance:g}"


def _brief(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _table(title: str, columns: Sequence[str]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    return table
