"""A report as Markdown, for the page that a continuous integration shows.  No torch here.

Names in a report come from a bundle that may be a stranger's: everything is escaped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from flashbulb.runtimes.records import (
    Device,
    Measured,
    ParityRecord,
    RegressionRecord,
    Report,
    SanityRecord,
)
from flashbulb.runtimes.tables import condition, counts, ways, with_pytorch, with_twin

VARIABLE = "GITHUB_STEP_SUMMARY"
"""GitHub's runner names a file here, and shows what is appended to it."""
MOST_BYTES = 900_000
"""GitHub refuses a step's summary above one mebibyte."""
SEVERITY = ("fail", "undecided", "skip", "pass")
MARKS = {"pass": "✅", "fail": "❌", "skip": "⏭️", "undecided": "❓"}


def markdown(report: Report) -> str:
    """Return a report as GitHub-flavoured Markdown: verdict, failures, one table per kind of record."""
    parts = [
        f"## flashbulb {report.command}: {verdict(report)}",
        about(report),
        sentences("Failed", "fail", report.failures),
        sentences("Undecided, which is not passed", "undecided", report.undecided),
        *(text for title, part in named(report) for text in tables(part, title)),
        sentences("Not judged here", "skip", report.skipped),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def named(report: Report) -> list[tuple[str, Measured]]:
    """Pair what was measured with the device's name; one device alone needs none."""
    titles = report.titles if report.others else ("",)
    return list(zip(titles, report.parts, strict=True))


def tables(part: Measured, title: str) -> tuple[str, ...]:
    """Return one table per kind of record of a device."""
    on = f" on {title}" if title else ""
    return (
        parity(with_pytorch(part.parity), f"Parity with PyTorch, worst case{on}"),
        parity(with_twin(part.parity), f"Agreement with the same file on another machine, worst case{on}"),
        sanity(part.sanity, f"Conditions{on}"),
        latency(part, f"Latency{on}"),
        regression(part.regression, f"Against the baseline{on}"),
    )


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
    bundle = report.bundle
    which = f"{escape(bundle.name)} ({bundle.manifest_sha256[:12]})" if bundle else "no readable bundle"
    if not report.others:
        return f"{which} on {place(report.device, report.device.name)}; {escape(report.created)}"
    lines = [
        f"- {place(part.device, title)}: {tally(part)}"
        for title, part in zip(report.titles, report.parts, strict=True)
    ]
    return "\n".join([f"{which} on {len(lines)} devices; {escape(report.created)}", "", *lines])


def place(device: Device, title: str) -> str:
    """Say what a device is."""
    return ", ".join(escape(words) for words in (title, device.cpu, device.os))


def tally(part: Measured) -> str:
    """Count the verdicts of one device."""
    words = {"pass": "passed", "fail": "failed", "undecided": "undecided", "skip": "not judged"}
    return ", ".join(f"{n} {words[v]}" for v, n in counts(part.own).items() if n) or "nothing"


def sentences(title: str, mark: str, found: Sequence[str]) -> str:
    """List sentences under a heading; nothing for none."""
    lines = [f"- {MARKS[mark]} {escape(sentence)}" for sentence in dict.fromkeys(found)]
    return "\n".join([f"### {title}", "", *lines]) if lines else ""


def parity(records: Sequence[ParityRecord], title: str) -> str:
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
    return table(title, ("engine", "quantity", "dB", "at least", "largest error", ""), rows)


def badness(record: ParityRecord) -> tuple[int, float]:
    """Sort failures first, then by decibels: what has none comes first, and exact last."""
    value = float("-inf") if record.value_db is None else record.value_db
    return SEVERITY.index(record.verdict), float("inf") if record.exact else value


def decibels(record: ParityRecord) -> str:
    """Write a record's value with the decibel that it is."""
    if record.exact:
        return "exact"
    if not record.finite or record.value_db is None:
        return "not finite" if not record.finite else "-"
    return f"{record.value_db:.1f} {'PSNR' if record.metric == 'psnr_db' else 'SNR'}"


def sanity(records: Sequence[SanityRecord], title: str) -> str:
    """One row per gate, one column per engine, with the worst of its verdicts."""
    engines = list(dict.fromkeys(r.engine for r in records))
    cells: dict[tuple[str, str], str] = {}
    for r in sorted(records, key=lambda r: SEVERITY.index(r.verdict)):
        cells.setdefault((r.gate, r.engine), MARKS[r.verdict])
    rows = [
        (gate, *(cells.get((gate, engine), "") for engine in engines))
        for gate in dict.fromkeys(r.gate for r in records)
    ]
    return table(title, ("gate", *engines), rows)


def latency(part: Measured, title: str) -> str:
    """One row per engine and target, and how they were measured."""
    rows = [
        (
            r.engine,
            r.target,
            str(r.threads),
            r.cores or "-",
            f"{r.p50_ms:.2f}",
            f"{r.p90_ms:.2f}",
            "-" if r.ratio_to_eager is None else f"{r.ratio_to_eager:.2f}",
            MARKS[r.verdict],
        )
        for r in part.latency
    ]
    columns = ("engine", "target", "threads", "cores", "p50 ms", "p90 ms", "of eager", "")
    told = [f"- {escape('; '.join(engines))}: {how}" for how, engines in ways(part).items()]
    told += [f"- {escape(', '.join(names))}: {escape(how)}" for how, names in conditions(part).items()]
    return "\n".join([table(title, columns, rows), "", *told]) if rows else ""


def conditions(part: Measured) -> dict[str, list[str]]:
    """Gather the conditions in which a device's figures were taken: condition -> engine and target."""
    found: dict[str, list[str]] = {}
    for record in part.latency:
        if how := condition(record):
            found.setdefault(how, []).append(f"{record.engine} {record.target}")
    return found


def regression(records: Sequence[RegressionRecord], title: str) -> str:
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
    return table(title, columns, rows)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table under a heading; nothing for no rows."""
    lines = ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in rows]
    if not lines:
        return ""
    head = ["| " + " | ".join(escape(c) for c in columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join([f"### {escape(title)}", "", *head, *lines])


def escape(text: str) -> str:
    """Make text harmless in a Markdown table: one line, no markup, no HTML, no control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + c if c in "\\`*_[]|#!~@" else c for c in line)
