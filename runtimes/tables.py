"""Arrange the records of a report for the page: what holds, and the tables by device.  No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from flashbulb.runtimes.machine import number
from flashbulb.runtimes.records import Device, LatencyRecord, Measured, ParityRecord, Report, Verdict

QUANTITIES = ("text_encoder", "text_encoder_2", "unet", "x0", "vae_decoder", "image", "generator")
WHOLE = ("generator", "pipeline")
TWIN = "~"
"""In an engine's label: ``ort@phone~x86_64`` is held to the same file on an x86-64, not to PyTorch."""
VERDICTS = ("pass", "fail", "undecided", "skip")
ENGINES = {
    "eager": "PyTorch eager",
    "ort": "ONNX Runtime",
    "onnx": "ONNX Runtime, .onnx",
    "executorch": "ExecuTorch",
    "coreml": "Core ML",
    "coreml-cpu": "Core ML, CPU",
    "coreml-gpu": "Core ML, CPU and GPU",
    "coreml-ne": "Core ML, CPU and Neural Engine",
    "optimum": "optimum's own export",
}
KINDS = {
    "host": "computer",
    "adb": "Android device, by adb",
    "ios": "iOS device, by its app",
    "qemu": "emulated, so never timed",
}
PLACES = {
    "host": "in a process of its own on the computer itself",
    "adb": "on the device itself, by a runner that takes the times there",
    "ios": "on the device itself, by the app, which takes the times there",
    "qemu": "emulated",
}


class Headline(msgspec.Struct, frozen=True, kw_only=True):
    """What came out, in one sentence."""

    words: str
    style: str
    """``good`` where the report is ok, and only there; else ``bad``, or ``muted`` for nothing at all."""
    beside: str = ""
    """What else is to be said, without a judgement."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """The worst of several comparisons."""

    text: str
    threshold: str
    max_abs: str
    verdict: Verdict
    share: float
    """How much of the bar it fills: half is the threshold."""


def counts(records: Iterable[Any]) -> dict[str, int]:
    """Count verdicts."""
    found = [r.verdict for r in records]
    return {v: found.count(v) for v in VERDICTS}


def headline(report: Report) -> Headline:
    """Say what came out; it is good news exactly when the report is ok."""
    found = counts(report.records)
    judged = found["pass"] + found["fail"] + found["undecided"]
    beside = f"{found['skip']} could not be judged." if found["skip"] else ""
    if not report.records:
        return Headline(words="Nothing was checked or timed yet.", style="muted")
    if not judged:
        return Headline(words="Nothing could be judged, which proves nothing.", style="bad", beside=beside)
    if report.ok:
        words = "The one condition holds." if judged == 1 else f"All {judged} conditions hold."
        return Headline(words=words, style="good", beside=beside)
    wrong = {"failed": found["fail"], "undecided": found["undecided"]}
    first, *rest = [f"{count} {{}}{what}" for what, count in wrong.items() if count]
    words = ", ".join([first.format(f"of {judged} conditions "), *(word.format("") for word in rest)])
    note = ", and undecided is not passed" if found["undecided"] else ""
    return Headline(words=f"{words}{note}.", style="bad", beside=beside)


def engine_name(label: str, device: Device | None = None) -> str:
    """Write an engine's label for people; where it ran is left out for the device's own number or name."""
    label, _, twin = label.partition(TWIN)
    for told in (number(device), device.name) if device else ():
        label = label.removesuffix(f"@{told}")
    base, _, where = label.partition("@")
    name = ENGINES.get(base, base) + (f" @ {where}" if where else "")
    return f"{name}, against {twin}" if twin else name


def with_pytorch(records: Iterable[ParityRecord]) -> list[ParityRecord]:
    """Return the comparisons with the outputs of PyTorch."""
    return [r for r in records if TWIN not in r.engine]


def with_twin(records: Iterable[ParityRecord]) -> list[ParityRecord]:
    """Return the comparisons with the same file on another machine."""
    return [r for r in records if TWIN in r.engine]


def overview(report: Report) -> list[dict[str, Any]]:
    """Return one row per device: what holds there, its worst picture, its fastest way to one."""
    rows = []
    for title, part in zip(report.titles, report.parts, strict=True):
        pictures = [p for p in with_pytorch(part.parity) if p.quantity in ("image", "generator")]
        whole = [r for t in WHOLE for r in part.latency if r.target == t and r.engine != "eager"]
        first = [r for r in whole if r.target == whole[0].target]
        fastest = min(first, key=lambda r: r.p50_ms, default=None)
        row = {"title": title, "device": part.device, "counts": counts(part.own)}
        rows.append(row | {"picture": worst(pictures), "fastest": fastest})
    return rows


def parity_table(report: Report, choose: Callable[..., list[ParityRecord]] = with_pytorch) -> dict[str, Any]:
    """Arrange the worst comparison of each quantity (row) on each device by each engine (column).

    Args:
        report: whose records.
        choose: which comparisons: `with_pytorch` or `with_twin`.
    """
    chosen = [(part, choose(part.parity)) for part in report.parts]
    columns = [
        (part, found, key)
        for part, found in chosen
        for key in dict.fromkeys((p.engine, p.precision) for p in found)
    ]
    names = list(dict.fromkeys(p.quantity for _, found in chosen for p in found))
    names.sort(key=lambda name: QUANTITIES.index(name) if name in QUANTITIES else len(QUANTITIES))
    spans = {
        title: sum(part is owner for owner, *_ in columns)
        for title, part in zip(report.titles, report.parts, strict=True)
    }
    return {
        "devices": {title: span for title, span in spans.items() if span},
        "engines": [
            (engine_name(engine, part.device), precision) for part, _, (engine, precision) in columns
        ],
        "rows": {
            name: [
                worst([p for p in found if (p.quantity, p.engine, p.precision) == (name, *key)])
                for _, found, key in columns
            ]
            for name in names
        },
    }


def worst(records: Sequence[ParityRecord]) -> Cell | None:
    """Return the comparison that failed, or else has the least room above its threshold."""
    if not records:
        return None
    least = min(records, key=_badness)
    value, name = least.value_db, "PSNR" if least.metric == "psnr_db" else "SNR"
    text = "not finite" if not least.finite else "exact" if least.exact else f"{value:.1f} dB {name}"
    share = 1.0 if least.exact else max(0.0, min(1.0, (value or 0.0) / (2.0 * max(least.threshold_db, 1.0))))
    return Cell(
        text=text if least.exact or not least.finite or value is not None else "not comparable",
        threshold=f"{least.threshold_db:.0f} dB",
        max_abs="" if least.max_abs is None else f"{least.max_abs:.1e}",
        verdict=least.verdict,
        share=share,
    )


def _badness(found: ParityRecord) -> tuple[int, float]:
    return ("fail", "skip", "pass").index(found.verdict), _room(found)


def _room(found: ParityRecord) -> float:
    if found.exact:
        return float("inf")
    return float("-inf") if found.value_db is None else found.value_db - found.threshold_db


def latency_tables(report: Report) -> list[dict[str, Any]]:
    """Arrange timings by device, and there by what was timed: whole pictures first."""
    return [
        {
            "title": title,
            "device": part.device,
            "ways": ways(part),
            "targets": by_target(part.latency),
            "components": component_timings(part.latency),
        }
        for title, part in zip(report.titles, report.parts, strict=True)
        if part.latency
    ]


def way(kind: str, record: LatencyRecord) -> str:
    """Say how one figure was measured."""
    if record.engine.partition("@")[0] == "eager":
        return f"{PLACES[kind]}; it is the reference"
    if record.ratio_to_eager is not None:
        return f"{PLACES[kind]}, in turns with PyTorch eager at the same threads"
    return f"{PLACES[kind]}, without PyTorch eager beside it, so that there is no ratio"


def ways(part: Measured) -> dict[str, list[str]]:
    """Gather the ways in which a device's figures were measured: way -> names of engines."""
    found: dict[str, list[str]] = {}
    for record in part.latency:
        engines = found.setdefault(way(part.device.kind, record), [])
        if (name := engine_name(record.engine, part.device)) not in engines:
            engines.append(name)
    return found


def condition(record: LatencyRecord) -> str:
    """Say on which cores, under which governors, how warm and how cold a figure was taken; empty for none."""
    told = [record.thermal_before, record.thermal_after]
    before, after = ("not told" if status is None else status for status in told)
    parts = [
        f"cores: {record.cores}" if record.cores else "",
        ", ".join(f"{governor} on {cores}" for cores, governor in record.governors.items()),
        f"thermal status {before} before, {after} after" if told != [None, None] else "",
        {None: "", True: "opened cold", False: "not opened cold"}[record.cold],
    ]
    return "; ".join(part for part in parts if part)


def by_target(latency: Sequence[LatencyRecord]) -> dict[str, list[LatencyRecord]]:
    """Arrange timings by what was timed, the fastest first."""
    order = dict.fromkeys((*WHOLE, *QUANTITIES, *(r.target for r in latency)))
    found = {t: [r for r in latency if r.target == t] for t in order}
    return {t: sorted(r, key=lambda x: x.p50_ms) for t, r in found.items() if r}


def component_timings(latency: Sequence[LatencyRecord]) -> dict[str, Any]:
    """Arrange timings of components: component (row), engine, precision, threads and cores (column)."""
    found = [r for r in latency if r.target not in WHOLE]
    engines = list(dict.fromkeys((r.engine, r.precision, r.threads, r.cores) for r in found))
    cells = {(r.target, r.engine, r.precision, r.threads, r.cores): r for r in found}
    names = [t for t in by_target(latency) if t not in WHOLE]
    return {"engines": engines, "rows": {n: [cells.get((n, *e)) for e in engines] for n in names}}
