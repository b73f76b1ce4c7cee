"""The stages of ``make``: which function, which configuration, which product, which parents."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from flashbulb.apps.cli.dispatch import watched
from flashbulb.apps.cli.make.pipeline import OnStep, Stage

if TYPE_CHECKING:
    from flashbulb.apps.cli.make.config import BenchPart, CheckPart, MakeConfig, ReportPart

log = logging.getLogger(__name__)

DISTILL, COMPRESS, JUDGE, BUNDLE, OPTIMUM = "distill", "compress", "judge", "bundle", "optimum"
CHECK, BENCH, REPORT = "check.json", "bench.json", "report.html"
STUDENT, TEACHER = "student", "teacher"

# Estimates in seconds, measured on two cores with the embedded checkpoints; a stage that has run before
# is expected to take as long as it took then.
STEP_S = {"distill": 1.5}
ESTIMATES_S = {
    "compress": 60.0,
    "judge": 90.0,
    "export": 110.0,
    "optimum": 20.0,
    "check": 20.0,
    "report": 40.0,
}
BENCH_TARGETS = 20


def stages(config: MakeConfig) -> list[Stage]:
    """Return the stages that ``config`` asks for, in order."""
    root = Path(config.out)
    parent, folder = "source", config.checkpoint
    found: list[Stage] = []
    if config.distill is not None:
        found.append(_distill(config, root, parent))
        parent, folder = "distill", str(root / DISTILL / STUDENT)
    if config.compress is not None:
        found.append(_compress(config, root, parent, folder))
        parent, folder = "compress", str(root / COMPRESS)
    if config.judge is not None:
        found.append(_judge(config, root, parent, folder))
    found.append(_export(config, root, parent, folder))
    found.append(_check(config.check, root))
    if config.bench.optimum:
        found.append(_optimum(config, root, parent, folder))
    found.append(_bench(config.bench, root))
    found.append(_report(config, config.report, root, [stage.name for stage in found]))
    return found


def _distill(config: MakeConfig, root: Path, parent: str) -> Stage:
    from flashbulb.distill.stage import run

    assert config.distill is not None
    wanted = replace(config.distill, teacher=config.checkpoint, out=DISTILL)

    def make(on_step: OnStep) -> None:
        watched(run, replace(wanted, out=str(root / DISTILL)), on_step)

    return Stage(
        name="distill",
        title="teach the student to draw in one step",
        config=wanted,
        run=make,
        product=f"{DISTILL}/{STUDENT}",
        parents=(parent,),
        estimate_s=wanted.loop.steps * STEP_S["distill"],
        folders=(DISTILL,),
    )


def _compress(config: MakeConfig, root: Path, parent: str, folder: str) -> Stage:
    from flashbulb.compress.stage import run

    assert config.compress is not None
    wanted = replace(config.compress, checkpoint=parent, out=COMPRESS)

    def make(on_step: OnStep) -> None:
        run(replace(wanted, checkpoint=_absolute(folder), out=str(root / COMPRESS)), on_step=on_step)

    return Stage(
        name="compress",
        title="make it smaller",
        config=wanted,
        run=make,
        product=COMPRESS,
        parents=(parent,),
        estimate_s=ESTIMATES_S["compress"],
    )


def _judge(config: MakeConfig, root: Path, parent: str, folder: str) -> Stage:
    from flashbulb.distill.metrics.stage import EvalConfig, run_all

    assert config.judge is not None
    part = config.judge

    def wanted(checkpoint: str, name: str, steps: int, guidance: float) -> EvalConfig:
        return EvalConfig(
            checkpoint=_absolute(checkpoint),
            split=part.split,
            pictures=part.pictures,
            steps=steps,
            guidance=guidance,
            out=str(root / JUDGE / name),
        )

    def make(on_step: OnStep) -> None:
        on_step(0, 1, "draw and judge")
        configs = [wanted(folder, STUDENT, 1, 1.0)]
        if config.distill is not None:
            configs.append(wanted(config.checkpoint, TEACHER, part.teacher_steps, part.guidance))
        run_all(configs)

    return Stage(
        name="judge",
        title="judge the student's pictures beside real ones",
        config=part,
        run=make,
        product=JUDGE,
        parents=tuple(dict.fromkeys(("source", parent))),
        estimate_s=ESTIMATES_S["judge"],
    )


def _export(config: MakeConfig, root: Path, parent: str, folder: str) -> Stage:
    from flashbulb.export.stage import run

    wanted = replace(config.export, checkpoint=parent, out=BUNDLE, name=config.export.name or "student")

    def make(on_step: OnStep) -> None:
        run(replace(wanted, checkpoint=_absolute(folder), out=str(root / BUNDLE)), on_step=on_step)

    return Stage(
        name="export",
        title="write the programs and the bundle",
        config=wanted,
        run=make,
        product=BUNDLE,
        parents=(parent,),
        estimate_s=ESTIMATES_S["export"],
    )


def _check(part: CheckPart, root: Path) -> Stage:
    from flashbulb.runtimes.stage import CheckConfig, check

    def make(on_step: OnStep) -> None:
        check(
            CheckConfig(bundle=str(root / BUNDLE), threads=part.threads, out=str(root / CHECK)),
            on_step=on_step,
        )

    return Stage(
        name="check",
        title="compare every program with PyTorch",
        config=part,
        run=make,
        product=CHECK,
        parents=("export",),
        estimate_s=ESTIMATES_S["check"],
    )


def _optimum(config: MakeConfig, root: Path, parent: str, folder: str) -> Stage:
    def make(on_step: OnStep) -> None:
        on_step(0, 1, "export with optimum")
        export_with_optimum(folder, root / OPTIMUM)

    return Stage(
        name="optimum",
        title="export the same checkpoint with optimum, as the baseline",
        config=replace(config.bench, runs=5, seconds=1.0, threads=1, budget_ms=None),
        run=make,
        product=OPTIMUM,
        parents=(parent,),
        estimate_s=ESTIMATES_S["optimum"],
    )


def _bench(part: BenchPart, root: Path) -> Stage:
    from flashbulb.runtimes.stage import BenchConfig, bench

    def make(on_step: OnStep) -> None:
        baseline = str(root / OPTIMUM) if part.optimum else None
        wanted = BenchConfig(
            bundle=str(root / BUNDLE),
            threads=part.threads,
            runs=part.runs,
            seconds=part.seconds,
            budget_ms=part.budget_ms,
            optimum=baseline,
            out=str(root / BENCH),
        )
        bench(wanted, on_step=on_step)

    return Stage(
        name="bench",
        title="time every program beside PyTorch",
        config=part,
        run=make,
        product=BENCH,
        parents=("export", "optimum") if part.optimum else ("export",),
        estimate_s=part.seconds * BENCH_TARGETS,
    )


def _report(config: MakeConfig, part: ReportPart, root: Path, parents: list[str]) -> Stage:
    from flashbulb.runtimes.report import ReportConfig, report

    def make(on_step: OnStep) -> None:
        stats = {} if config.distill is None else {"distillation": str(root / DISTILL / "stats.jsonl")}
        wanted = ReportConfig(
            bundle=str(root / BUNDLE),
            out=str(root / REPORT),
            reports=(str(root / CHECK), str(root / BENCH)),
            stats=stats,
            teacher=config.checkpoint,
            teacher_steps=part.teacher_steps,
            teacher_guidance=part.guidance,
            prompts=part.prompts,
            figures=_figures(root) if config.judge is not None else {},
        )
        report(wanted, on_step=on_step)

    return Stage(
        name="report",
        title="draw the pictures and write the report",
        config=part,
        run=make,
        product=REPORT,
        parents=("source", *parents),
        estimate_s=ESTIMATES_S["report"],
        folders=("report.json",),
    )


FIGURES = {
    "retrieval_at_1": "R@1",
    "retrieval_at_10": "R@10",
    "style": "style",
    "background": "background",
    "frechet": "Frechet",
    "precision": "precision",
    "recall": "recall",
    "sharpness": "sharpness",
    "diversity": "diversity",
}


def _figures(root: Path) -> dict[str, list[dict[str, float | int | str]]]:
    """Return the judge's table: one row a checkpoint, and what real pictures reach."""
    files = [f for name in (STUDENT, TEACHER) if (f := root / JUDGE / name / "eval.json").is_file()]
    records = {file.parent.name: json.loads(file.read_text()) for file in files}
    shown = {title: field for field, title in FIGURES.items() if field in records[STUDENT]["figures"]}
    rows: list[dict[str, float | int | str]] = [
        {"pictures of": f"{name}, {r['steps']} step{'s' * (r['steps'] > 1)}"}
        | {title: r["figures"][field]["value"] for title, field in shown.items()}
        for name, r in records.items()
    ]
    real = records[STUDENT]
    reached: dict[str, float | int | str] = {"pictures of": "real stickers"}
    for title, field in shown.items():
        found = real["figures"][field]["real"]
        reached[title] = "–" if found is None else found
    rows.append(reached)
    return {f"judged on {real['pictures']} prompts ({real['split']})": rows}


def export_with_optimum(checkpoint: str, out: Path) -> Path:
    """Export a checkpoint with optimum's own exporter, through a temporary name.

    Raises:
        MissingExtra: when optimum is not installed.
    """
    from flashbulb.distill.checkpoint import Checkpoint, replace_folder
    from flashbulb.distill.errors import MissingExtra

    try:
        from optimum.exporters.onnx import main_export
    except ImportError as error:
        raise MissingExtra("the baseline of the bench needs optimum-onnx", "onnx") from error
    temporary = out.with_name(f".{out.name}.partial")
    temporary.mkdir(parents=True, exist_ok=True)
    main_export(
        str(Checkpoint.open(checkpoint).path), output=temporary, task="text-to-image", do_validation=False
    )
    replace_folder(temporary, out)
    return out


def _absolute(checkpoint: str) -> str:
    """Make a local folder absolute, so that the bundle finds it from anywhere; keep other names."""
    path = Path(checkpoint)
    return str(path.resolve()) if path.exists() else checkpoint
