"""`flashbulb check --bisect`: for each program, the first operation that departs from PyTorch, by name."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.export.anatomy.listing import Array, Listing
from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.export.thresholds import amplification_db
from flashbulb.runtimes.bisect.reference import Reference, snr_db, trace
from flashbulb.runtimes.bisect.walk import Finding, Walk, walk
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.gates import sanity
from flashbulb.runtimes.listing_gates import DECODE_ERRORS
from flashbulb.runtimes.opening import label, open_listing, open_source
from flashbulb.runtimes.pipeline import Pipeline
from flashbulb.runtimes.records import SanityRecord
from flashbulb.runtimes.sources import Sources, sources

if TYPE_CHECKING:
    from flashbulb.export.rewrites import Rewrite

log = logging.getLogger(__name__)
FLOOR_DB = 75.0
"""Least likeness of an operation's result to PyTorch's; sound ones have over 100 dB."""
TWIN_DB = 110.0
"""The same of a Core ML program with exact numbers, its float32 twin; measured were 124 to 147 dB."""
INSIDE_DB = 80.0
"""The same inside of it: sound twins have 86 dB and more where values cancel, 95 and more elsewhere."""
SIMULATED_DB = 30.0
"""The same in simulated float16, where sound components have 58 dB and more at their ends."""
ENGINES = {"onnx": "onnx", "ort": "ort", "pte": "executorch", "mlpackage": "mil"}


def bisect(
    bundle: Bundle,
    checkpoint: str | None = None,
    backends: Collection[str] = (),
    refused: Mapping[str, str] | None = None,
) -> Iterator[SanityRecord]:
    """Bisect every component of every program on the first golden case.

    Args:
        bundle: whose files have the recorded hashes.
        checkpoint: where its source is, if not where it was at export.
        backends: only these; none for all.
        refused: label of an engine -> why its programs may not be opened.
    """
    found, reason = open_source(bundle, checkpoint)
    if found is None:
        words = f"nothing can be bisected: {reason}"
        yield SanityRecord(gate="bisect", engine="bundle", verdict="skip", sentence=words)
        return
    chosen = [a for a in bundle.manifest.artifacts if not backends or a.backend in backends]
    wanted = sources(found, bundle.manifest.sampling.one_step, found.components())
    for _, same in itertools.groupby(sorted(chosen, key=_form), key=_form):  # one reference at a time
        reference = None
        for artifact in same:
            if why := (refused or {}).get(ENGINES[artifact.format]):
                yield _refused(artifact, EngineError(why))
                continue
            try:
                reference = reference or reference_of(bundle, found, artifact)
            except DECODE_ERRORS as error:
                yield _refused(artifact, error)
                continue
            yield record(bundle, artifact, reference, wanted)
            if artifact.format == "mlpackage" and artifact.precision == "float16":
                yield simulated(bundle, artifact, reference)


def _form(artifact: Artifact) -> tuple[str, str]:
    """Tell apart what PyTorch runs once for all programs of a kind."""
    return artifact.component, repr(rewrite_of(artifact))


def floor_db(bundle: Bundle, component: str, single_db: float = TWIN_DB) -> float:
    """Return a floor of one component's likeness; the fused program holds the one step, which amplifies."""
    cost = amplification_db(bundle.manifest.sampling.one_step) if component == "generator" else 0.0
    return single_db - cost


def rewrite_of(artifact: Artifact) -> Rewrite:
    """Return the forms in which a backend lowers."""
    from flashbulb.export.backends import Coreml, Executorch, Ort

    if artifact.backend == "coreml":
        return Coreml(precision=artifact.precision).rewrite()
    return Ort().rewrite() if artifact.backend == "ort" else Executorch().rewrite()


def golden_inputs(bundle: Bundle, artifact: Artifact) -> dict[str, Array]:
    """Return the inputs of a component in the first golden case."""
    case = bundle.golden()[0]
    given = {"sample": Pipeline(bundle, None).sample(case["noise"]), **case}
    return {s.name: np.ascontiguousarray(given[s.name], dtype=s.dtype) for s in artifact.inputs}


def reference_of(
    bundle: Bundle, checkpoint: Checkpoint, artifact: Artifact, *, keep: bool = True
) -> Reference:
    """Run a component in PyTorch, in the form in which an artifact was lowered, on the first golden case.

    Raises:
        EngineError: when the artifact's inputs are not those of the component, in their order.
    """
    from flashbulb.export.graph import specs

    inputs, step = golden_inputs(bundle, artifact), bundle.manifest.sampling.one_step
    wanted = [s.name for s in specs(checkpoint)[artifact.component][0]]
    if list(inputs) != wanted:
        raise EngineError(
            f"wanted the inputs {wanted} of {label(artifact)}, the manifest has {list(inputs)}; "
            "export it again"
        )
    given = [inputs[name] for name in wanted]
    return trace(checkpoint, step, artifact.component, rewrite_of(artifact), given, keep=keep)


def record(bundle: Bundle, artifact: Artifact, reference: Reference, wanted: Sources) -> SanityRecord:
    """Bisect one program; a Core ML one with exact numbers, as its twin has them."""
    gate, engine = f"bisect.{artifact.component}", ENGINES[artifact.format]
    single = TWIN_DB if artifact.format == "mlpackage" else FLOOR_DB
    floor = floor_db(bundle, artifact.component, single)
    try:
        listing = open_listing(bundle, artifact)
        inputs = golden_inputs(bundle, artifact)
        if artifact.format == "mlpackage":
            found, runtime = _twin(bundle, artifact, listing, inputs, reference, wanted), None
        else:
            found, runtime = _walk(bundle, artifact, listing, inputs, reference, floor)
    except DECODE_ERRORS as error:
        return _refused(artifact, error)
    if found.finding is None and runtime:
        return sanity(gate, engine, False, f"{label(artifact)}: {runtime}")
    good = found.finding is None and found.compared > 0
    value = found.finding.snr_db if found.finding else None
    return sanity(gate, engine, good, words(artifact, found), value=value, threshold=floor, unit="dB")


def _refused(artifact: Artifact, error: Exception) -> SanityRecord:
    gate, engine = f"bisect.{artifact.component}", ENGINES[artifact.format]
    return sanity(gate, engine, False, f"{label(artifact)} cannot be bisected: {error}")


def simulated(bundle: Bundle, artifact: Artifact, reference: Reference) -> SanityRecord:
    """Follow a Core ML program in simulated float16, and name the operation where it is lost."""
    from flashbulb.runtimes.bisect import coreml
    from flashbulb.runtimes.engines.mil.program import Program

    gate, engine = f"bisect.{artifact.component}", "mil-fp16"
    floor = floor_db(bundle, artifact.component, SIMULATED_DB)
    try:
        listing, inputs = open_listing(bundle, artifact), golden_inputs(bundle, artifact)
        values = coreml.values(Program.load(bundle.path(artifact), "fp16"), listing.nodes, inputs)
        names = [s.name for s in artifact.outputs]
        found = walk(listing.nodes, values, names, reference, floor)
    except DECODE_ERRORS as error:
        return sanity(gate, engine, False, f"{label(artifact)} cannot be followed in float16: {error}")
    good = found.finding is None and found.compared > 0
    value = found.finding.snr_db if found.finding else None
    said = words(artifact, found)
    return sanity(gate, engine, good, f"{said} (float16)", value=value, threshold=floor, unit="dB")


def _twin(
    bundle: Bundle,
    artifact: Artifact,
    listing: Listing,
    inputs: Mapping[str, Array],
    reference: Reference,
    wanted: Sources,
) -> Walk:
    """Run a Core ML program with exact numbers, and compare all its values."""
    from flashbulb.runtimes.bisect import coreml
    from flashbulb.runtimes.twin import twin

    program, _ = twin(bundle, artifact, listing, wanted, reference)
    names = [s.name for s in artifact.outputs]
    inside, outside = (floor_db(bundle, artifact.component, single) for single in (INSIDE_DB, TWIN_DB))
    values = coreml.values(program, listing.nodes, inputs)
    found = walk(listing.nodes, values, names, reference, inside, outside)
    if found.finding is None or found.finding.snr_db < inside:
        return found
    values = coreml.values(program, listing.nodes, inputs)  # too little is lost to be seen at that floor
    return walk(listing.nodes, values, names, reference, outside)


def _walk(
    bundle: Bundle,
    artifact: Artifact,
    listing: Listing,
    inputs: Mapping[str, Array],
    reference: Reference,
    floor: float,
) -> tuple[Walk, str | None]:
    """Run a program with all its values shown, and compare them."""
    path, names = bundle.path(artifact), [s.name for s in artifact.outputs]
    if artifact.format == "pte":
        from flashbulb.export.anatomy.pte import read_method
        from flashbulb.runtimes.bisect import executorch

        method = read_method(path, artifact.method or artifact.component)
        shown = dict(executorch.values(method, inputs, [s.name for s in artifact.inputs]))
        found = walk(method.listing.nodes, shown.items(), method.outputs, reference, floor)
        return found, _kernels(bundle, artifact, inputs, shown[method.outputs[0]], floor)
    from flashbulb.runtimes.bisect import onnx

    return walk(listing.nodes, onnx.values(path, artifact, inputs), names, reference, floor), None


def _kernels(
    bundle: Bundle, artifact: Artifact, inputs: Mapping[str, Array], shown: Array, floor: float
) -> str | None:
    """Say where ExecuTorch itself computes something else than the graph in its file."""
    from flashbulb.runtimes.engines import Executorch

    engine = Executorch()
    if engine.missing():
        return None
    session = engine.load(bundle, components=[artifact.component])
    got = next(iter(session.run(artifact.component, inputs).values()))
    found = snr_db(shown.ravel(), got.ravel())
    if found >= floor:
        return None
    return f"the graph is right, ExecuTorch's kernels depart from it at {found:.1f} dB, wanted {floor:.1f} dB"


def words(artifact: Artifact, found: Walk) -> str:
    """Say what a comparison gave."""
    name = label(artifact)
    if found.finding is None:
        if not found.compared:
            return f"{name}: no operation could be compared"
        told = f"{found.agreed} of {found.compared} have a counterpart in PyTorch"
        poorer = f"; inside, {departure(found.poorer)}" if found.poorer else ""
        return f"{name}: no operation departs at its outputs; {told}{poorer}"
    return f"{name}: {departure(found.finding)}"


def departure(finding: Finding) -> str:
    """Say where a program departs."""
    node, how = finding.node, "is not finite"
    if finding.finite:
        how = (
            "is like no activation of PyTorch"
            if finding.snr_db == -np.inf
            else f"agrees at {finding.snr_db:.1f} dB"
        )
    last = f"; the last that agrees before it is {finding.before}" if finding.before else ""
    return (
        f"the first operation that departs is {node.outputs[0]!r} ({node.op}), which {how}, "
        f"expected {finding.expected}{last}"
    )
