"""The table of commands: a word, what it takes, and by name the config and function behind it."""

from __future__ import annotations

from typing import NamedTuple

DONE, NUMBERS_FAIL, USER_ERROR = 0, 1, 2

RECIPE = "recipe"
"""Marks a command whose bare argument is a YAML file with its whole configuration."""


class Command(NamedTuple):
    """One word of the command line."""

    word: str
    summary: str
    config: str
    """``module:Name`` of the configuration; the word's flags are its fields."""
    function: str
    """``module:name`` of the function that takes it."""
    positional: str | None = None
    """Field that the bare argument fills, or `RECIPE`."""
    recipes_of: str | None = None
    """Word whose shipped recipes the command takes, if not its own."""

    @property
    def usage(self) -> str:
        """What stands after ``flashbulb`` in a usage line."""
        shown = f" {self.positional.upper()}" if self.positional else ""
        return f"{self.word}{shown}"


COMMANDS = (
    Command(
        "make",
        "the whole path: distil, compress, export, check, time, and write the report",
        "flashbulb.apps.cli.make.config:MakeConfig",
        "flashbulb.apps.cli.make.stage:run",
    ),
    Command(
        "teach",
        "train the embedded teacher on the embedded stickers",
        "flashbulb.distill.teacher.stage:TeachConfig",
        "flashbulb.distill.teacher.stage:run",
        RECIPE,
    ),
    Command(
        "distill",
        "teach a student to draw in one step what its teacher draws in many",
        "flashbulb.distill.stage:DistillConfig",
        "flashbulb.distill.stage:run",
        RECIPE,
    ),
    Command(
        "cost",
        "measure what a step of a distillation costs, part by part",
        "flashbulb.distill.cost:CostConfig",
        "flashbulb.distill.cost:run",
        RECIPE,
        "distill",
    ),
    Command(
        "compress",
        "prune, palettize or quantise a checkpoint",
        "flashbulb.compress.stage:CompressConfig",
        "flashbulb.compress.stage:run",
        RECIPE,
    ),
    Command(
        "export",
        "write a checkpoint as Core ML, ONNX Runtime and ExecuTorch programs in one bundle",
        "flashbulb.export.stage:ExportConfig",
        "flashbulb.export.stage:run",
        RECIPE,
    ),
    Command(
        "run",
        "draw a prompt with one engine of a bundle",
        "flashbulb.runtimes.stage:RunConfig",
        "flashbulb.runtimes.stage:run",
        "bundle",
    ),
    Command(
        "check",
        "compare every program of a bundle with the PyTorch reference",
        "flashbulb.runtimes.stage:CheckConfig",
        "flashbulb.runtimes.stage:check",
        "bundle",
    ),
    Command(
        "bench",
        "time every program of a bundle beside PyTorch",
        "flashbulb.runtimes.stage:BenchConfig",
        "flashbulb.runtimes.stage:bench",
        "bundle",
    ),
    Command(
        "doctor",
        "examine a bundle's programs for what breaks or slows a phone, without running them",
        "flashbulb.export.doctor:DoctorConfig",
        "flashbulb.export.doctor:run",
        "bundle",
    ),
    Command(
        "eval",
        "judge a checkpoint's pictures beside real ones",
        "flashbulb.distill.metrics.stage:EvalConfig",
        "flashbulb.distill.metrics.stage:run",
        "checkpoint",
    ),
    Command(
        "table",
        "distil by every objective at one budget and judge all alike; also `eval --table`",
        "flashbulb.distill.table.stage:TableConfig",
        "flashbulb.distill.table.stage:run",
    ),
    Command(
        "vote",
        "ask people which of two models' pictures they prefer, on a page in the browser",
        "flashbulb.apps.vote.stage:VoteConfig",
        "flashbulb.apps.vote.stage:run",
        "folders",
    ),
    Command(
        "elo",
        "rate models from the votes of people",
        "flashbulb.distill.metrics.preference:EloConfig",
        "flashbulb.distill.metrics.preference:run",
        "votes",
    ),
    Command(
        "report",
        "put a bundle, its records and its pictures on one page",
        "flashbulb.runtimes.report:ReportConfig",
        "flashbulb.runtimes.report:report",
        "bundle",
    ),
    Command(
        "list",
        "show the objectives, methods, backends, engines and checkpoints there are",
        "flashbulb.apps.cli.catalogue:ListConfig",
        "flashbulb.apps.cli.catalogue:run",
    ),
)


def find(word: str) -> Command | None:
    """Return the command of that word, if there is one."""
    return next((command for command in COMMANDS if command.word == word), None)


def overview() -> str:
    """Return the text of ``flashbulb --help``."""
    rows = [f"  {command.usage:<18} {command.summary}" for command in COMMANDS]
    lines = [
        "usage: flashbulb COMMAND [ARGUMENT] [--flag value ...]",
        "",
        "Diffusion models distilled to one step, made smaller, and proven on Core ML,",
        "ONNX Runtime and ExecuTorch.",
        "",
        "commands:",
        *rows,
        "",
        "A RECIPE is a YAML file; flags override it. `flashbulb COMMAND --help` lists the flags,",
        "`--debug` shows where an error came from. Start with `flashbulb make`.",
        "Exit codes: 0 done, 1 the numbers fail, 2 something to put right in the input.",
    ]
    return "\n".join(lines) + "\n"
