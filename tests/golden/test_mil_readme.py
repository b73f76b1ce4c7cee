"""The list of supported operations in the interpreter's README is the table itself."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from flashbulb.runtimes.engines.mil.ops import OPS

README = Path(__file__).parents[2] / "runtimes/engines/mil/README.md"
BEGIN, END = "<!-- operations -->\n", "<!-- end -->\n"


def table() -> str:
    families: dict[str, list[str]] = defaultdict(list)
    for name, op in OPS.items():
        families[op.family].append(f"`{name}`")
    rows = [f"| {family} | {' '.join(sorted(names))} |\n" for family, names in sorted(families.items())]
    return (
        f"{len(OPS)} operations, and `const`.\n\n| file in `ops/` | operations |\n|---|---|\n{''.join(rows)}"
    )


def test_the_readme_lists_what_the_table_holds(update_golden: bool) -> None:
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    if update_golden:
        README.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")
    message = "run pytest --update-golden if this change is meant"
    assert f"{BEGIN}\n{table()}\n{END}" in README.read_text(), message


def test_the_table_is_wide() -> None:
    assert len(OPS) >= 130
