"""The table in `distill/RESULTS.md` is what was measured."""

from __future__ import annotations

from pathlib import Path

from flashbulb.distill.table import page
from flashbulb.distill.table.results import Table, load
from flashbulb.distill.table.rows import FILE, load_rows
from flashbulb.distill.table.stage import TableConfig

RESULTS = Path(__file__).parents[2] / "distill/RESULTS.md"
BEGIN, END = "<!-- table -->\n", "<!-- end -->\n"


def test_the_page_holds_the_measured_rows(update_golden: bool) -> None:
    rows = load_rows()
    absent = {row.id: f"{row.needs} is not on this machine" for row in rows if row.needs}
    found = page.contents(Table(load(FILE.parent / "measured")), rows, absent, TableConfig())
    table = page.markdown(found)
    before, _, rest = RESULTS.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    if update_golden:
        RESULTS.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
    message = "run pytest --update-golden if this change is meant"
    assert f"{BEGIN}\n{table}\n{END}" in RESULTS.read_text(), message
