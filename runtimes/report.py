"""Write what was made, measured and drawn as one page for people and one file for machines.

``report.html`` stands alone: pictures, charts and styles are inside, nothing is fetched.  ``report.json``
holds the records.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from flashbulb.distill.checkpoint import Checkpoint, CheckpointError
from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle, read_bundle
from flashbulb.runtimes.charts import chart, read_curves
from flashbulb.runtimes.engines import Eager
from flashbulb.runtimes.merge import merge
from flashbulb.runtimes.pictures import Drawn, Row, draw_all, engine_row, rows, teacher_row
from flashbulb.runtimes.records import (
    Report,
    host,
    now,
    read_report,
    runtime_versions,
    write_report,
)
from flashbulb.runtimes.stage import OnStep, available, identity, named
from flashbulb.runtimes.tables import (
    KINDS,
    QUANTITIES,
    condition,
    engine_name,
    headline,
    latency_tables,
    overview,
    parity_table,
    with_twin,
)

log = logging.getLogger(__name__)

FORMATS = {"mlpackage": "Core ML", "onnx": "ONNX", "ort": "ONNX Runtime", "pte": "ExecuTorch"}
STUDENT = "student, 1 step"


class ReportConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Put a bundle, its records and its history on one page."""

    bundle: str
    """Folder that `export` wrote."""
    out: str = "report.html"
    """Page to write; the records go beside it as `.json`."""
    title: str = "flashbulb"
    """Heading."""
    reports: tuple[str, ...] = ()
    """Reports of `check` and `bench` on this bundle, as JSON, from any number of devices."""
    stats: dict[str, str] = {}
    """Heading -> `stats.jsonl` of a training."""
    teacher: str | None = None
    """Checkpoint to draw the teacher's rows with."""
    teacher_steps: int = 25
    """Steps of the teacher's first row."""
    teacher_guidance: float = 5.0
    """Classifier-free guidance of the teacher's first row."""
    checkpoint: str | None = None
    """The student's checkpoint, if it is not where it was at export."""
    prompts: tuple[str, ...] = ()
    """What to draw; by default the golden prompts."""
    seed: int = 0
    """Seed of the first picture; the others follow."""
    figures: dict[str, list[dict[str, float | int | str]]] = {}
    """Further tables: heading -> rows of column -> value; the first column names the row."""


def report(config: ReportConfig, on_step: OnStep | None = None) -> Path:
    """Write the page and the file; return where the page lies.

    Raises:
        ValueError: when the reports are of another bundle.
    """
    bundle = read_bundle(config.bundle)
    records = joined(bundle, [read_report(Path(p)) for p in config.reports])
    prompts = config.prompts or tuple(c.prompt for c in bundle.manifest.golden.cases)
    seeds = [config.seed + i for i in range(len(prompts))]
    if not config.prompts:
        seeds = [c.seed for c in bundle.manifest.golden.cases]
    drawn, reasons = draw_all(_announced(sources(config, bundle, prompts, seeds), on_step))
    grid = rows(drawn, STUDENT)
    html = render(config, bundle, records, prompts, seeds, grid, reasons)
    out = Path(config.out)
    write_report(records, out.with_suffix(".json"))
    temporary = out.with_name(f".{out.name}.partial")
    temporary.write_text(html)
    return temporary.replace(out)


def joined(bundle: Bundle, found: Sequence[Report]) -> Report:
    """Join reports on this bundle.

    Raises:
        ValueError: when one is of another bundle.
    """
    this = identity(bundle)
    empty = Report(command="report", created=now(), bundle=this, device=host(), versions=runtime_versions())
    return merge([empty, *found]) if found else empty


def sources(
    config: ReportConfig, bundle: Bundle, prompts: Sequence[str], seeds: Sequence[int]
) -> list[tuple[str, Callable[[], Drawn]]]:
    """Return what draws the rows: teacher at many steps and at one, student, each runtime."""
    found: list[tuple[str, Callable[[], Drawn]]] = []
    if config.teacher:
        draw = functools.partial(teacher_row, config.teacher, bundle, prompts, seeds)
        many = functools.partial(draw, steps=config.teacher_steps, guidance=config.teacher_guidance)
        found += [
            ("teacher, many steps", many),
            ("teacher, 1 step", functools.partial(draw, steps=1, guidance=0.0)),
        ]
    for name, reason in available(bundle, config.checkpoint).items():
        if reason is None:
            engine = named(name, config.checkpoint)
            found.append((name, functools.partial(engine_row, engine, bundle, prompts, seeds)))
    return found


def _announced(
    found: Sequence[tuple[str, Callable[[], Drawn]]], on_step: OnStep | None
) -> list[Callable[[], Drawn]]:
    def announce(index: int, name: str, draw: Callable[[], Drawn]) -> Drawn:
        if on_step:
            on_step(index, len(found), f"draw: {name}")
        return draw()

    return [functools.partial(announce, i, name, draw) for i, (name, draw) in enumerate(found)]


def render(
    config: ReportConfig,
    bundle: Bundle,
    records: Report,
    prompts: Sequence[str],
    seeds: Sequence[int],
    grid: Sequence[Row],
    reasons: Sequence[str],
) -> str:
    """Fill the template."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": human_bytes,
        "condition": condition,
        "engine": engine_name,
        "ms": human_ms,
        "number": number,
        "zip": zip,
        "short": short,
    }
    return environment.get_template("report.html.jinja").render(
        config=config,
        manifest=bundle.manifest,
        report=records,
        prompts=list(zip(prompts, seeds, strict=True)),
        grid=grid,
        reasons=[*reasons, *missing_engines(bundle, config.checkpoint)],
        size=tile(bundle.manifest.image.width),
        headline=headline(records),
        overview=overview(records),
        kinds=KINDS,
        attributes=dict.fromkeys(k for part in records.parts for k in part.device.attributes),
        parity=parity_table(records),
        agreement=parity_table(records, with_twin),
        latency=latency_tables(records),
        charts=charts(config.stats),
        sizes=size_table(bundle),
        weights=weight_bytes(bundle, config.checkpoint),
    )


def missing_engines(bundle: Bundle, checkpoint: str | None) -> list[str]:
    """Say which of the bundle's artifacts no engine of this machine can run."""
    held = {a.backend for a in bundle.manifest.artifacts} | {"eager"}
    refused = {n: r for n, r in available(bundle, checkpoint).items() if r}
    return [f"{n}: {r}" for n, r in refused.items() if named(n, checkpoint).backend in held]


def tile(width: int) -> int:
    """Return the side of a shown picture: a whole multiple of its pixels, up to 128 and a bit."""
    return 144 if width > 144 else width * max(1, round(128 / width))


def charts(stats: Mapping[str, str]) -> dict[str, list[tuple[str, str, str]]]:
    """Draw every curve of every training: heading -> (name, SVG, last value)."""
    found = {}
    for heading, path in stats.items():
        curves = [c for c in read_curves(Path(path)) if len(c.steps) > 1]
        if curves:
            found[heading] = [(c.name, chart(c), f"{c.values[-1]:.4g}") for c in curves]
    return found


def size_table(bundle: Bundle) -> dict[str, Any]:
    """Arrange the sizes of the artifacts by component (row) and format (column)."""
    held = bundle.manifest.artifacts
    formats = [f for f in FORMATS if any(a.format == f for a in held)]
    names = [n for n in QUANTITIES if any(a.component == n for a in held)]
    cells = {
        n: [next((a for a in held if (a.component, a.format) == (n, f)), None) for f in formats]
        for n in names
    }
    return {
        "formats": [FORMATS[f] for f in formats],
        "rows": cells,
        "totals": [_total(held, f) for f in formats],
    }


def _total(held: Sequence[Artifact], kind: str) -> int:
    return sum({f.path: f.size_bytes for a in held if a.format == kind for f in a.files}.values())


def weight_bytes(bundle: Bundle, checkpoint: str | None) -> dict[str, int]:
    """Return the sizes of the checkpoint's weights, where it can be opened."""
    try:
        found = Eager(checkpoint=checkpoint).open(bundle)
    except CheckpointError as error:
        log.info("%s", error)
        return {}
    return {c: folder_weights(found, c) for c in found.components()}


def folder_weights(checkpoint: Checkpoint, component: str) -> int:
    """Return the bytes of one component's safetensors; the decoder shares its file with the encoder.

    Variants (``.fp16.``, ``.non_ema.``) are the same once more: they count only where there is nothing else.
    """
    files = list((checkpoint.path / component.replace("vae_decoder", "vae")).glob("*.safetensors"))
    plain = [file for file in files if "." not in file.stem]
    return sum(file.stat().st_size for file in plain or files)


def human_bytes(value: int | None) -> str:
    """Write a size in decimal units."""
    if value is None:
        return "–"
    amount, units = float(value), ["B", "kB", "MB", "GB"]
    while amount >= 999.5 and len(units) > 1:
        amount, units = amount / 1000.0, units[1:]
    return f"{amount:.0f} {units[0]}" if units[0] == "B" or amount >= 100 else f"{amount:.1f} {units[0]}"


def human_ms(value: float | None) -> str:
    """Write a time with three significant digits."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def number(value: object) -> str:
    """Write any figure briefly."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def short(value: object) -> str:
    """Write the first dozen characters of a digest."""
    return str(value)[:12]
