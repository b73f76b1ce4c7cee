"""Show the ratings that votes gave, and what they rest on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashbulb.apps.cli import console
from flashbulb.apps.cli.commands import DONE

if TYPE_CHECKING:
    from rich.table import Table

    from flashbulb.distill.metrics.preference import PreferenceRecord

SUSPICIOUS_P = 0.01
"""A side that is preferred with a smaller probability by chance is spoken of."""


def show_ratings(record: PreferenceRecord) -> int:
    """Print ratings, matches, and the agreement of the voters where there are several."""
    tables = [ratings_table(record), matches_table(record)]
    if record.agreement:
        tables.append(agreement_table(record))
    for table in tables:
        console.out.print(table)
    if record.left_p is not None and record.left_p < SUSPICIOUS_P:
        share = (
            f"{record.left_share:.0%} of the decided votes went to the left picture (p = {record.left_p:.2g})"
        )
        console.err.print(f"{share}: the side may have played a part", style="yellow", markup=False)
    return DONE


def ratings_table(record: PreferenceRecord) -> Table:
    """Return one row a model, best first."""
    title = f"ELO, {record.question}: {record.votes} votes, start {record.start:g}, K {record.k:g}"
    table = _table(
        title, "model", "ELO", "95 % over prompts", "95 % over orders", "wins", "losses", "draws", "share"
    )
    for r in record.ratings:
        games = r.wins + r.losses + r.draws
        table.add_row(
            r.model,
            f"{r.elo:.1f}",
            f"{r.low:.1f} to {r.high:.1f}",
            f"{r.order_low:.1f} to {r.order_high:.1f}",
            *map(str, (r.wins, r.losses, r.draws)),
            f"{(r.wins + r.draws / 2) / games:.0%}",
        )
    return table


def matches_table(record: PreferenceRecord) -> Table:
    """Return one row for every two models that met."""
    table = _table("matches", "model", "against", "wins", "losses", "draws")
    for m in record.matches:
        table.add_row(m.first, m.second, *map(str, (m.wins, m.losses, m.draws)))
    return table


def agreement_table(record: PreferenceRecord) -> Table:
    """Return one row for every two voters that judged the same."""
    alpha = "" if record.alpha is None else f", Krippendorff's alpha {record.alpha:.2f}"
    table = _table(f"agreement of voters{alpha}", "voter", "and", "common", "same", "kappa")
    for a in record.agreement:
        table.add_row(
            a.first, a.second, str(a.common), f"{a.same:.0%}", "-" if a.kappa is None else f"{a.kappa:.2f}"
        )
    return table


def _table(title: str, *columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=escape(title), title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for name in columns:
        table.add_column(name, justify="left" if name in {"model", "against", "voter", "and"} else "right")
    return table
