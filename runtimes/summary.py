"""A report as Markdown, for the page that a continuous integration shows.  No torch here.

Names in a report come from a bundle that may be a stranger's: everything is escaped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from flashbulb.runtimes.records import LatencyRecord, ParityRecord, RegressionRecord, Report, SanityRecord

VARIABLE = "GITHUB_STEP_SUMMARY"
"""GitHub's runner names a file here, and shows what is appended to it."""
MOST_BYTES = 900_000
"""GitHub refuses a step's summary above one mebibyte."""
MARKS = {"pass": "✅", "fail": "❌", "skip": "⏭️", "undecided": "❓"}


def markdown(report: Report) -> str:
    """Return a report as GitHub-flavoured Markdown: verdict, failures, one table per kind of record."""
    parts = [
        f"## flashbulb {report.command}: {verdict(report)}",
        about(report),
        sentences("Failed", "fail", report.failures),
        sentences("Undecided, which is not passed", "undecided", report.undecided),
        parity(report.parity),
        sanity(report.sanity),
        latency(report.latency),
        regression(report.regression),
        sentences("Not judged here", "skip", report.skipped),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def publish(text: str, path: Path | None = None) -> None:
    """Write a summary to a file, and append it to the step's summary where the environment names one."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    if named := os.environ.get(VARIABLE):
        with Path(named).open("a", encoding="utf-8") as stream:
            stream.write(shortened(text) + "\n")


def shortened(text: str) -> str:
    """Cut a summary that is too long to be shown, and say so."""
    data = text.encode()
    if len(data) <= MOST_BYTES:
        return text
    return data[:MOST_BYTES].decode(errors="ignore") + "\n\n(cut: the whole summary is in the report)"


def verdict(report: Report) -> str:
    """Say in a few words what came out."""
    if report.ok:
        return f"passed, {len(report.skipped)} not judged" if report.skipped else "passed"
    if not report.failures and not report.undecided:
        return "nothing could be judged"
    counts = {"failed": len(report.failures), "undecided": len(report.undecided)}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def about(report: Report) -> str:
    """Say what was asked of what, where and when."""
    device = report.device
    bundle = report.bundle
    which = f"{escape(bundle.name)} ({bundle.manifest_sha256[:12]})" if bundle else "no readable bundle"
    where = ", ".join(escape(words) for words in (device.name, device.cpu, device.os))
    return f"{which} on {where}; {escape(report.created)}"


def sentences(title: str, mark: str, found: Sequence[str]) -> str:
    """List sentences under a heading; nothing for none."""
    lines = [f"- {MARKS[mark]} {escape(sentence)}" for sentence in dict.fromkeys(found)]
    return "\n".join([f"### {title}", "", *lines]) if lines else ""


def parity(records: Sequence[ParityRecord]) -> str:
    """One row per engine and tensor, with the worst of its cases."""
    worst: dict[tuple[str, str, str, str], ParityRecord] = {}
    for record in records:
        key = (record.engine, record.quantity, record.tensor, record.metric)
        if key not in worst or badness(record) < badness(worst[key]):
            worst[key] = record
    rows = [
        (
            r.engine,
            r.quantity if r.tensor == r.quantity else f"{r.quantity} ({r.tensor})",
            decibels(r),
            f"{r.threshold_db:.1f}",
            "-" if r.max_abs is None else f"{r.max_abs:.2g}",
            MARKS[r.verdict],
        )
        for r in worst.values()
    ]
    return table(
        "Parity with PyTorch, worst case", ("engine", "quantity", "dB", "at least", "largest error", ""), rows
    )


def badness(record: ParityRecord) -> tuple[int, float]:
    """Sort failures first, then by decibels; exact comes last."""
    value = record.value_db
    return (0 if record.verdict == "fail" else 1, float("inf") if value is None else value)


def decibels(record: ParityRecord) -> str:
    """Write a record's value with the decibel that it is."""
    if record.exact:
        return "exact"
    if not record.finite or record.value_db is None:
        return "not finite" if not record.finite else "-"
    return f"{record.value_db:.1f} {'PSNR' if record.metric == 'psnr_db' else 'SNR'}"


def sanity(records: Sequence[SanityRecord]) -> str:
    """One row per gate, one column per engine."""
    engines = list(dict.fromkeys(r.engine for r in records))
    cells = {(r.gate, r.engine): MARKS[r.verdict] for r in records}
    rows = [
        (gate, *(cells.get((gate, engine), "") for engine in engines))
        for gate in dict.fromkeys(r.gate for r in records)
    ]
    return table("Conditions", ("gate", *engines), rows)


def latency(records: Sequence[LatencyRecord]) -> str:
    """One row per engine and target."""
    rows = [
        (
            r.engine,
            r.target,
            str(r.threads),
            f"{r.p50_ms:.2f}",
            f"{r.p90_ms:.2f}",
            "-" if r.ratio_to_eager is None else f"{r.ratio_to_eager:.2f}",
            MARKS[r.verdict],
        )
        for r in records
    ]
    return table("Latency", ("engine", "target", "threads", "p50 ms", "p90 ms", "of eager", ""), rows)


def regression(records: Sequence[RegressionRecord]) -> str:
    """One row per comparison with the baseline."""
    rows = [
        (
            r.engine,
            r.subject,
            {"slowdown": "times the baseline's time", "db_drop": "dB lost"}[r.kind],
            "-" if r.value is None else f"{r.value:.3f}",
            "-" if r.low is None or r.high is None else f"{r.low:.3f} to {r.high:.3f}",
            f"{r.limit:g}",
            MARKS[r.verdict],
        )
        for r in records
    ]
    columns = ("engine", "what", "in", "value", "95 % interval", "allowed", "")
    return table("Against the baseline", columns, rows)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table under a heading; nothing for no rows."""
    lines = ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in rows]
    if not lines:
        return ""
    head = ["| " + " | ".join(escape(c) for c in columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join([f"### {title}", "", *head, *lines])


def escape(text: str) -> str:
    """Make text harmless in a Markdown table: one line, no markup, no HTML, no control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + c if c in "\\`*_[]|#!~@" else c for c in line)
