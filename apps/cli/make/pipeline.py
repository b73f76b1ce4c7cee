"""Run stages in order, each only when something that decides its product has changed."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from flashbulb.apps.cli.make.state import StageRecord, digest, read_record, stage_key, write_record

log = logging.getLogger(__name__)

OnStep = Callable[..., None]
RECORDS = "state"


class Stage(NamedTuple):
    """One stage as ``make`` sees it: a configuration in, a product out."""

    name: str
    title: str
    """What it does, for people."""
    config: msgspec.Struct
    """All that decides its product, beside its parents."""
    run: Callable[[OnStep], object]
    """Makes the product; may go on with what a killed run left in its folders."""
    product: str
    """File or folder that it makes, relative to the folder of the run."""
    parents: tuple[str, ...] = ()
    """Stages whose products it reads."""
    estimate_s: float = 0.0
    """How long it takes on two cores."""
    folders: tuple[str, ...] = ()
    """What else belongs to it, and goes when it starts anew."""


class Step(NamedTuple):
    """What is going to happen to a stage."""

    stage: Stage
    action: str
    """``keep``, ``continue`` or ``run``."""
    seconds: float
    """Estimate; zero for what is kept."""


def plan(stages: Sequence[Stage], root: Path, source: str, version: str) -> list[Step]:
    """Say what running ``stages`` would do; a stage behind one that runs is expected to run too."""
    steps: list[Step] = []
    made: dict[str, str] = {"source": source}
    for stage in stages:
        record = read_record(_file(root, stage))
        known = all(name in made for name in stage.parents)
        key = _key(stage, made, version) if known else ""
        action = _action(stage, record, root, key)
        if action == "keep" and record is not None:
            made[stage.name] = record.product_sha256
        expected = record.seconds if record is not None and record.seconds else stage.estimate_s
        steps.append(Step(stage, action, 0.0 if action == "keep" else expected))
    return steps


def run_stages(
    stages: Sequence[Stage],
    root: Path,
    source: str,
    version: str,
    *,
    on_stage: Callable[[str, str], OnStep],
) -> dict[str, float]:
    """Run what has to be run and return the seconds of each stage, kept ones included."""
    made: dict[str, str] = {"source": source}
    seconds: dict[str, float] = {}
    for stage in stages:
        record, key = read_record(_file(root, stage)), _key(stage, made, version)
        action = _action(stage, record, root, key)
        on_step = on_stage(stage.name, action)
        if action != "keep" or record is None:
            record = _run(stage, root, key, on_step, fresh=action == "run")
        made[stage.name], seconds[stage.name] = record.product_sha256, record.seconds
    return seconds


def _run(stage: Stage, root: Path, key: str, on_step: OnStep, *, fresh: bool) -> StageRecord:
    if fresh:
        _clear(stage, root)
    started = StageRecord(stage=stage.name, key=key, status="started")
    write_record(started, _file(root, stage))
    clock = time.monotonic()
    stage.run(on_step)
    sha256 = digest(root / stage.product)
    if not sha256:
        raise RuntimeError(f"the stage {stage.name} ended without its product {root / stage.product}")
    changes: dict[str, Any] = {"status": "done", "product": stage.product, "product_sha256": sha256}
    done = msgspec.structs.replace(started, seconds=round(time.monotonic() - clock, 2), **changes)
    write_record(done, _file(root, stage))
    return done


def _clear(stage: Stage, root: Path) -> None:
    """Remove what an earlier run of the stage left; what no run of ours made is not touched."""
    there = [root / name for name in (stage.product, *stage.folders) if (root / name).exists()]
    if there and not _file(root, stage).exists():
        raise FileExistsError(
            f"{there[0]} is there but no earlier run of make says it made it; "
            "move it away, or give another folder with --out"
        )
    for path in there:
        remove(path)


def _action(stage: Stage, record: StageRecord | None, root: Path, key: str) -> str:
    if record is None or not key or record.key != key:
        return "run"
    if record.status == "started":
        return "continue"
    return "keep" if digest(root / stage.product) == record.product_sha256 else "run"


def _key(stage: Stage, made: dict[str, str], version: str) -> str:
    return stage_key(stage.name, stage.config, [made[name] for name in stage.parents], version)


def _file(root: Path, stage: Stage) -> Path:
    return root / RECORDS / f"{stage.name}.json"


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
