"""``flashbulb make``: plan, run, and say what came of it."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from flashbulb.apps.cli import console, outcome
from flashbulb.apps.cli.commands import DONE, NUMBERS_FAIL
from flashbulb.apps.cli.make.pipeline import OnStep, Stage, Step, plan, run_stages
from flashbulb.apps.cli.make.stages import BENCH, BUNDLE, CHECK, REPORT, stages
from flashbulb.distill.checkpoint import Checkpoint

if TYPE_CHECKING:
    from rich.table import Table

    from flashbulb.apps.cli.make.config import MakeConfig

ACTIONS = {"keep": "[dim]kept[/]", "continue": "[yellow]continues[/]", "run": "runs"}


def run(config: MakeConfig) -> int:
    """Run every stage that has to be run; return 1 when a gate fails."""
    root, wanted = Path(config.out), stages(config)
    source, version = Checkpoint.open(config.checkpoint).sha256(), metadata.version("flashbulb")
    steps = plan(wanted, root, source, version)
    console.out.print(plan_table(steps, root))
    if config.dry_run:
        return DONE
    root.mkdir(parents=True, exist_ok=True)
    _write_recipe(config, root / "config.yaml")
    progress = console.Stages([step.stage.name for step in steps])
    with progress:
        seconds = run_stages(wanted, root, source, version, on_stage=progress.begin)
    return conclude(root, seconds)


def plan_table(steps: list[Step], root: Path) -> Table:
    """Return the plan with its estimates."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        box=SIMPLE_HEAD,
        title=f"flashbulb make, in {root}",
        title_justify="left",
        header_style="bold",
        show_footer=True,
    )
    table.add_column("stage", footer="all")
    table.add_column("what it does")
    table.add_column("now")
    total = sum(step.seconds for step in steps)
    table.add_column("about", justify="right", footer=duration(total))
    for stage, action, seconds in steps:
        table.add_row(stage.name, stage.title, ACTIONS[action], duration(seconds) if seconds else "-")
    return table


def conclude(root: Path, seconds: dict[str, float]) -> int:
    """Say where everything lies and whether the numbers hold."""
    from flashbulb.runtimes.records import read_report

    check, bench = read_report(root / CHECK), read_report(root / BENCH)
    console.out.print(outcome.parity_table(check))
    console.out.print(outcome.latency_table(bench))
    console.out.print(f"bundle  {root / BUNDLE}\nreport  {root / REPORT}", markup=False, soft_wrap=True)
    console.out.print(f"{duration(sum(seconds.values()))} of work in all")
    failures = (*check.failures, *bench.failures)
    for sentence in failures:
        console.complain(sentence)
    return NUMBERS_FAIL if failures or not check.ok else DONE


def duration(seconds: float) -> str:
    """Write a time as people say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _write_recipe(config: MakeConfig, file: Path) -> None:
    import yaml

    file.write_text(yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False), encoding="utf-8")


__all__ = ["OnStep", "Stage", "run"]
