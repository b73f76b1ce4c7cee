"""Gates of the layout that optimum's pipelines open, which no engine here runs: files, structure, weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.export.anatomy import read
from flashbulb.export.bundle import Bundle
from flashbulb.export.structure import OPTIMUM, OPTIMUM_PROGRAMS, loose_name, read_record
from flashbulb.runtimes.gates import sanity
from flashbulb.runtimes.listing_gates import OPEN_ERRORS, lines_gate, unopened_gate, weight_gate
from flashbulb.runtimes.records import SanityRecord
from flashbulb.runtimes.sources import Sources, tensors, traits

if TYPE_CHECKING:
    from flashbulb.export.graph import Graph


def optimum_gates(bundle: Bundle, checkpoint: Checkpoint | None) -> Iterator[SanityRecord]:
    """Judge the layout in a bundle, where there is one; without a checkpoint only its structure."""
    root = bundle.root
    if not (root / OPTIMUM).is_dir():
        return
    graphs = dict[str, "Graph"]()
    if checkpoint:
        from flashbulb.export import optimum
        from flashbulb.export.backends.ort import Ort

        yield settings_gate(root / OPTIMUM, optimum.settings(checkpoint))
        graphs = optimum.graphs(checkpoint, Ort())
    for component, path in OPTIMUM_PROGRAMS.items():
        yield from _program_gates(root, component, path, graphs.get(component))


def settings_gate(folder: Path, wanted: dict[str, bytes]) -> SanityRecord:
    """Every file beside the programs must be what an export of the checkpoint writes there."""
    wrong = [name for name, data in sorted(wanted.items()) if not _is(folder / name, data)]
    words = f"the {len(wanted)} settings in {folder.name}/ are the checkpoint's"
    if wrong:
        words = f"{folder.name}/{wrong[0]} is not the checkpoint's; export it again"
    return sanity("optimum", "bundle", not wrong, words, value=float(len(wrong)), threshold=0.0)


def _is(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


def _program_gates(root: Path, component: str, path: str, graph: Graph | None) -> Iterator[SanityRecord]:
    """Hold one program to its record and to the checkpoint's weights."""
    name = f"{OPTIMUM}.{component}.onnx"
    try:
        listing, recorded = read(root / path, "onnx"), read_record(root / loose_name(path))
    except OPEN_ERRORS as error:
        yield unopened_gate(name, error)
        return
    yield lines_gate(name, listing, recorded)
    if graph:
        held = {w.name: w for w in tensors(component, graph.module)}
        wanted = Sources(held, {component: traits(graph.module)})
        yield weight_gate(wanted, component, name, listing)
