"""Show what a stage returned, and turn it into an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from flashbulb.apps.cli import console, evaluation
from flashbulb.apps.cli.commands import DONE, NUMBERS_FAIL

if TYPE_CHECKING:
    from rich.table import Table

    from flashbulb.distill.cost import CostRecord
    from flashbulb.export.doctor import Diagnosis
    from flashbulb.runtimes.records import Report

MARKS = {
    "pass": "[green]pass[/]",
    "fail": "[bold red]FAIL[/]",
    "skip": "[yellow]skip[/]",
    "undecided": "[bold yellow]undecided[/]",
}


def show(result: Any) -> int:
    """Print a stage's result; a report that fails gives exit code 1."""
    if isinstance(result, int):
        return result
    if isinstance(result, Path):
        console.out.print(str(result), soft_wrap=True, markup=False)
        return DONE
    if hasattr(result, "parity") and hasattr(result, "latency"):
        return show_report(result)
    if hasattr(result, "step_core_ms"):
        return show_cost(result)
    if hasattr(result, "findings"):
        return show_diagnosis(result)
    if hasattr(result, "ratings"):
        from flashbulb.apps.cli.ratings import show_ratings

        return show_ratings(result)
    if hasattr(result, "figures") and hasattr(result, "differences"):
        return evaluation.show(result)
    if isinstance(result, msgspec.Struct):
        console.out.print(record_table(result))
        return DONE
    if result is not None:
        console.out.print(str(result), markup=False)
    return DONE


def show_report(report: Report) -> int:
    """Print the tables of a report and what failed in it."""
    for table in (
        sanity_table(report),
        parity_table(report),
        latency_table(report),
        regression_table(report),
    ):
        if table.row_count:
            console.out.print(table)
    for sentence in report.skipped:
        console.err.print(f"skipped: {sentence}", style="yellow", markup=False, soft_wrap=True)
    for sentence in report.failures:
        console.complain(sentence)
    if report.ok:
        open_ = f"; {len(report.skipped)} conditions were not judged" if report.skipped else ""
        console.out.print(f"{report.command}: passed{open_}", style="green")
        return DONE
    for sentence in report.undecided:
        console.complain(sentence)
    if report.undecided:
        console.complain(f"{report.command}: {len(report.undecided)} undecided, and undecided is not passed")
    elif not report.failures:
        console.complain(f"{report.command}: nothing could be judged, and nothing is no proof")
    return NUMBERS_FAIL


def show_diagnosis(diagnosis: Diagnosis) -> int:
    """Print what the doctor found; an error gives exit code 1."""
    table = _table("findings", ("severity", "artifact", "what"))
    colours = {"error": "[bold red]error[/]", "warning": "[yellow]warning[/]", "info": "[dim]info[/]"}
    for finding in diagnosis.findings:
        table.add_row(colours[finding.severity], finding.artifact, finding.what)
    if diagnosis.findings:
        console.out.print(table)
    errors = sum(finding.severity == "error" for finding in diagnosis.findings)
    console.out.print(f"doctor: {errors} errors in {len(diagnosis.findings)} findings")
    return NUMBERS_FAIL if errors else DONE


def show_cost(record: CostRecord) -> int:
    """Print what a training step costs by part; a ratio above its limit gives exit code 1."""
    title = f"a step of {record.objective}, batch {record.batch}, {record.threads} threads, {record.device}"
    table = _table(title, ("part", "calls", "core-ms per picture", "share"))
    for part in (*record.parts, *record.rest):
        table.add_row(part.name, str(part.calls), f"{part.core_ms:.2f}", f"{part.share:.1%}")
    table.add_row("step", "1", f"{record.step_core_ms:.2f}", "100.0%", style="bold")
    console.out.print(table)
    low, high = record.ratio_quartiles
    console.out.print(
        f"step / sum of student, teacher, decode and critic alone: {record.ratio:.3f} "
        f"(quartiles {low:.3f} to {high:.3f} of {record.repeats} rounds; limit {record.limit})"
    )
    if not record.ok:
        console.complain(
            f"wanted a ratio of at most {record.limit:g}, got {record.ratio:.3f}; see --max-ratio"
        )
    return DONE if record.ok else NUMBERS_FAIL


def record_table(record: msgspec.Struct) -> Table:
    """Return the fields of a record as a table."""
    table = _table(type(record).__name__.removesuffix("Record").lower(), ("figure", "value"))
    for name, value in msgspec.structs.asdict(record).items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table


def sanity_table(report: Report) -> Table:
    """Return the conditions beside parity: one row per gate, one column per engine."""
    engines = list(dict.fromkeys(r.engine for r in report.sanity))
    table = _table("sanity", ("gate", *engines))
    gravest_last = sorted(report.sanity, key=lambda r: ("pass", "skip", "fail").index(r.verdict))
    cells = {(r.gate, r.engine): MARKS[r.verdict] for r in gravest_last}
    for gate in dict.fromkeys(r.gate for r in report.sanity):
        table.add_row(gate, *(cells.get((gate, engine), "") for engine in engines))
    return table


def parity_table(report: Report) -> Table:
    """Return parity, one row per engine and tensor with the worst of its cases."""
    table = _table(
        "parity with PyTorch (worst case)",
        ("engine", "quantity", "tensor", "dB", "least", "max abs", "verdict"),
    )
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for r in report.parity:
        groups.setdefault((r.engine, r.quantity, r.tensor), []).append(r)
    for (engine, quantity, tensor), records in groups.items():
        worst = min(records, key=_badness)
        value = "exact" if worst.exact else f"{_number(worst.value_db)} {worst.metric.removesuffix('_db')}"
        least, error = _number(worst.threshold_db), _number(worst.max_abs)
        table.add_row(engine, quantity, tensor, value, least, error, MARKS[worst.verdict])
    return table


def latency_table(report: Report) -> Table:
    """Return the timings as a table."""
    columns = ("engine", "target", "load", "first", "p50", "p90", "p99", "MB", "ratio", "verdict")
    table = _table("latency in ms, peak memory, ratio to PyTorch", columns)
    for r in report.latency:
        times = (r.load_ms, r.first_ms, r.p50_ms, r.p90_ms, r.p99_ms, r.peak_rss_bytes / 1e6)
        ratio = _number(r.ratio_to_eager)
        table.add_row(r.engine, r.target, *(_brief(value) for value in times), ratio, MARKS[r.verdict])
    return table


def regression_table(report: Report) -> Table:
    """Return the comparisons with the baseline as a table."""
    table = _table("against the baseline", ("engine", "target", "low", "value", "high", "limit", "verdict"))
    for r in report.regression:
        unit = " dB" if r.kind == "db_drop" else " x"
        numbers = (_number(v) for v in (r.low, r.value, r.high))
        table.add_row(r.engine, r.subject, *numbers, f"{r.limit:g}{unit}", MARKS[r.verdict])
    return table


def _badness(record: Any) -> tuple[int, float]:
    order = {"fail": 0, "skip": 1, "pass": 2}[record.verdict]
    return order, float("inf") if record.value_db is None else float(record.value_db)


def _brief(value: float) -> str:
    """Write a time or size with about three digits."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:.1e}"


def _table(title: str, columns: Sequence[str]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    words = {
        "severity",
        "artifact",
        "part",
        "what",
        "figure",
        "gate",
        "engine",
        "quantity",
        "tensor",
        "target",
        "verdict",
    }
    for name in columns:
        table.add_column(name, justify="left" if name in words else "right")
    return table
