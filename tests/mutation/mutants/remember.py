"""Let the gates of programs do once what does not change from fault to fault."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from mutants.reuse import Memory


def remember(gates: Any, memory: Memory) -> None:
    """Wrap functions of `flashbulb.runtimes.program_gates`: what they gave for clean files is kept.

    A file is known by its SHA-256 in the manifest, to which the file gate held it before.
    """
    known: dict[tuple[object, ...], Any] = {}

    def once(keep: bool, key: tuple[object, ...], make: Callable[[], Any]) -> Any:
        if key not in known:
            found = make()
            if not keep:
                return found
            known[key] = found
        return known[key]

    open_source, sources, open_listing = gates.open_source, gates.sources, gates.open_listing
    weight_gate, twin, optimum_gates = gates.weight_gate, gates._twin, gates.optimum_gates
    code_gate = gates.code_gate

    def opened(bundle: Bundle, checkpoint: str | None) -> Any:
        key = ("checkpoint", msgspec.json.encode((bundle.manifest.source, checkpoint)))
        return once(True, key, lambda: open_source(bundle, checkpoint))

    def wanted(checkpoint: Any, step: Any, components: Iterable[str]) -> Any:
        names = tuple(components)
        key = ("sources", msgspec.json.encode((str(checkpoint.path), step, names)))
        return once(True, key, lambda: sources(checkpoint, step, names))

    def listed(bundle: Bundle, artifact: Artifact) -> Any:
        return once(memory.clean, ("listing", _contents(artifact)), lambda: open_listing(bundle, artifact))

    def weighed(wanted: Any, component: str, name: str, listing: Any) -> Any:
        key = ("weights", id(wanted), name, id(listing))
        return once(memory.clean, key, lambda: weight_gate(wanted, component, name, listing))

    def for_optimum(bundle: Bundle, checkpoint: Any) -> Any:
        files = tuple((f.path, f.sha256) for f in bundle.manifest.files if "optimum" in f.path)
        key = ("optimum", files, checkpoint and str(checkpoint.path))
        return once(True, key, lambda: tuple(optimum_gates(bundle, checkpoint)))

    def twinned(bundle: Bundle, artifact: Artifact, listing: Any, wanted: Any, checkpoint: Any) -> Any:
        manifest = bundle.manifest
        golden = next(f.sha256 for f in manifest.files if f.path == manifest.golden.tensors)
        key = ("twin", id(wanted), golden, msgspec.json.encode(manifest.sampling), _contents(artifact))
        return once(memory.clean, key, lambda: tuple(twin(bundle, artifact, listing, wanted, checkpoint)))

    def coded(checkpoint: Any) -> Any:
        return once(True, ("codes", str(checkpoint.path)), lambda: code_gate(checkpoint))

    gates.code_gate = coded
    gates.open_source, gates.sources, gates.open_listing = opened, wanted, listed
    gates.weight_gate, gates._twin, gates.optimum_gates = weighed, twinned, for_optimum


def _contents(artifact: Artifact) -> bytes:
    return msgspec.json.encode(artifact)
