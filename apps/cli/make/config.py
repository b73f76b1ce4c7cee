"""The recipe of ``flashbulb make``: the configurations of all stages in one."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from flashbulb.compress.stage import CompressConfig
from flashbulb.distill.stage import DistillConfig
from flashbulb.export.stage import ExportConfig


class CheckPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the bundle is checked."""

    threads: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Threads of every engine; 0 takes all cores."""


class BenchPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the bundle is timed."""

    threads: Annotated[int, msgspec.Meta(ge=0)] = 1
    """Threads of every engine, PyTorch included; 0 takes all cores."""
    runs: Annotated[int, msgspec.Meta(ge=5)] = 30
    """Measured runs per engine and target."""
    seconds: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    """Stop a target after this time, but never before ten runs."""
    budget_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Fail when the median from prompt to picture is longer."""
    optimum: bool = True
    """Export the same checkpoint with optimum as well, and time that beside ours."""


class JudgePart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a sticker checkpoint's pictures are judged, beside its teacher's and real ones."""

    pictures: Annotated[int, msgspec.Meta(ge=2)] = 148
    """Pictures to draw of each checkpoint."""
    split: Literal["train", "combination"] = "train"
    """Prompts: training captions, or held-out style x concept combinations."""
    teacher_steps: Annotated[int, msgspec.Meta(gt=1)] = 25
    """Steps of the teacher's good pictures."""
    guidance: Annotated[float, msgspec.Meta(ge=1)] = 3.0
    """Classifier-free guidance of the teacher's good pictures."""


class ReportPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the report shows."""

    prompts: tuple[str, ...] = ()
    """What is drawn; without any, the prompts of the bundle's golden cases."""
    teacher_steps: Annotated[int, msgspec.Meta(gt=1)] = 25
    """Steps of the teacher's good pictures."""
    guidance: Annotated[float, msgspec.Meta(ge=1)] = 4.0
    """Classifier-free guidance of the teacher's good pictures."""


class MakeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All of it: distil, compress, export, check, time, report."""

    out: str = "runs/make"
    """Folder of the run: the bundle lies in OUT/bundle, the report is OUT/report.html and OUT/report.json."""
    dry_run: bool = False
    """Print what would be done and how long it takes, and do nothing."""
    checkpoint: str = "embedded:teacher"
    """Where the path starts: a diffusers folder, a Hub id, embedded:teacher or embedded:student."""
    distill: DistillConfig | None = None
    """How the student is taught; without it the checkpoint is taken as the student."""
    compress: CompressConfig | None = None
    """How the student is made smaller; without it it stays as it is."""
    export: ExportConfig
    """What the student is exported to."""
    judge: JudgePart | None = None
    """How the student's pictures are judged, in the sticker world; without it they are not."""
    check: CheckPart = CheckPart()
    """How the bundle is checked."""
    bench: BenchPart = BenchPart()
    """How the bundle is timed."""
    report: ReportPart = ReportPart()
    """What the report shows."""
