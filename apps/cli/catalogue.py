"""``flashbulb list``: what can be plugged in, derived from the same unions as the flags."""

from __future__ import annotations

import importlib
import typing
from importlib import metadata
from pathlib import Path

import msgspec

from flashbulb.apps.cli import console
from flashbulb.apps.cli.commands import DONE

UNIONS = {
    "objectives": "flashbulb.distill.objectives:AnyObjective",
    "methods": "flashbulb.compress.methods:AnyMethod",
    "backends": "flashbulb.export.backends:AnyBackend",
    "engines": "flashbulb.runtimes.engines:AnyEngine",
}

EXTRAS = {
    "coreml": ("coremltools",),
    "onnx": ("onnx", "onnxruntime", "onnxscript", "optimum-onnx"),
    "executorch": ("executorch",),
    "train": ("efficientnet-lite-pytorch", "resvg-py"),
}

Kind = typing.Literal["objectives", "methods", "backends", "engines", "recipes", "checkpoints", "extras"]
KINDS: tuple[Kind, ...] = typing.get_args(Kind)


class ListConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to list."""

    kinds: tuple[Kind, ...] = KINDS
    """The lists to show."""


class Entry(typing.NamedTuple):
    """One thing that can be named in a recipe."""

    name: str
    summary: str


def run(config: ListConfig) -> int:
    """Print the lists."""
    from rich.table import Table

    for kind in config.kinds:
        table = Table(title=kind, title_justify="left", show_header=False, box=None, pad_edge=True)
        table.add_column(min_width=14, style="bold")
        table.add_column()
        for entry in entries(kind):
            table.add_row(entry.name, entry.summary)
        console.out.print(table, "")
    return DONE


def entries(kind: Kind) -> list[Entry]:
    """Return what there is of a kind."""
    if kind == "checkpoints":
        return _checkpoints()
    if kind == "recipes":
        return _recipes()
    return _extras() if kind == "extras" else variants(UNIONS[kind])


def variants(name: str) -> list[Entry]:
    """Return tag and first docstring line of each member of a union of configs."""
    module, _, attribute = name.partition(":")
    union = getattr(importlib.import_module(module), attribute)
    members = typing.get_args(union) or (union,)
    return [
        Entry(str(m.__struct_config__.tag), (m.__doc__ or "").strip().partition("\n")[0]) for m in members
    ]


def _recipes() -> list[Entry]:
    """Return the shipped recipes, as one types them: `distill student` is `distill-student.yaml`."""
    files = sorted((Path(__file__).parent / "recipes").glob("*.yaml"))
    return [
        Entry(f.stem.replace("-", " "), f.read_text().partition("\n")[0].removeprefix("# ")) for f in files
    ]


def _checkpoints() -> list[Entry]:
    from flashbulb.distill import checkpoint

    assets = Path(checkpoint.__file__).parent / "assets"
    texts = {"teacher": "draws stickers in many steps", "student": "draws stickers in one step"}
    return [Entry(f"embedded:{name}", text) for name, text in texts.items() if (assets / name).is_dir()]


def _extras() -> list[Entry]:
    return [Entry(name, ", ".join(map(_version, packages))) for name, packages in EXTRAS.items()]


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} (not installed)"
