"""`flashbulb check --bisect`: for each program, the first operation that departs from PyTorch, by name."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.export.anatomy import AnatomyError
from flashbulb.export.anatomy.listing import Array, Listing
from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.bisect.reference import Reference, snr_db, trace
from flashbulb.runtimes.bisect.walk import Finding, Walk, walk
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.gates import sanity
from flashbulb.runtimes.opening import label, open_listing, open_source
from flashbulb.runtimes.pipeline import Pipeline
from flashbulb.runtimes.records import SanityRecord

if TYPE_CHECKING:
    from flashbulb.export.rewrites import Rewrite

log = logging.getLogger(__name__)
FLOOR_DB = {"float32": 75.0, "float16": 60.0}
"""Least likeness of an operation's result to PyTorch's; sound ones have over 100 dB, or 70 where rounded."""
SIMULATED_DB = 30.0
"""The same in simulated float16, where sound components have 58 dB and more at their ends."""
ENGINES = {"onnx": "onnx", "ort": "ort", "pte": "executorch", "mlpackage": "mil"}
ERRORS = (AnatomyError, ProgramError, EngineError)


def bisect(
    bundle: Bundle,
    checkpoint: str | None = None,
    backends: Iterable[str] = (),
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
    chosen, references = set(backends), dict[tuple[str, str], Reference]()
    for artifact in bundle.manifest.artifacts:
        if chosen and artifact.backend not in chosen:
            continue
        if artifact.component == "generator":
            yield _whole(artifact)
            continue
        if reason := (refused or {}).get(ENGINES[artifact.format]):
            yield _refused(artifact, EngineError(reason))
            continue
        rewrite = rewrite_of(artifact)
        key = (artifact.component, repr(rewrite))
        try:
            if key not in references:
                references[key] = reference_of(bundle, found, artifact)
        except ERRORS as error:
            yield _refused(artifact, error)
            continue
        yield record(bundle, artifact, references[key])
        if artifact.format == "mlpackage" and artifact.precision == "float16":
            yield simulated(bundle, artifact, references[key])


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


def record(bundle: Bundle, artifact: Artifact, reference: Reference) -> SanityRecord:
    """Bisect one program."""
    gate, engine = f"bisect.{artifact.component}", ENGINES[artifact.format]
    floor = FLOOR_DB[artifact.precision]
    try:
        listing = open_listing(bundle, artifact)
        inputs = golden_inputs(bundle, artifact)
        found, runtime = _walk(bundle, artifact, listing, inputs, reference, floor)
    except ERRORS as error:
        return _refused(artifact, error)
    if found.finding is None and runtime:
        return sanity(gate, engine, False, f"{label(artifact)}: {runtime}")
    good = found.finding is None and found.compared > 0
    value = found.finding.snr_db if found.finding else None
    return sanity(gate, engine, good, words(artifact, found), value=value, threshold=floor, unit="dB")


def _whole(artifact: Artifact) -> SanityRecord:
    """Say that the fused generator is not followed."""
    words = (
        f"{label(artifact)} is not bisected: it is made of the components, which are where they are present"
    )
    gate, engine = "bisect.generator", ENGINES[artifact.format]
    return SanityRecord(gate=gate, engine=engine, verdict="skip", sentence=words)


def _refused(artifact: Artifact, error: Exception) -> SanityRecord:
    gate, engine = f"bisect.{artifact.component}", ENGINES[artifact.format]
    return sanity(gate, engine, False, f"{label(artifact)} cannot be bisected: {error}")


def simulated(bundle: Bundle, artifact: Artifact, reference: Reference) -> SanityRecord:
    """Follow a Core ML program in simulated float16, and name the operation where it is lost."""
    from flashbulb.runtimes.bisect import coreml
    from flashbulb.runtimes.engines.mil.program import Program

    gate, engine = f"bisect.{artifact.component}", "mil-fp16"
    try:
        listing, inputs = open_listing(bundle, artifact), golden_inputs(bundle, artifact)
        values = coreml.values(Program.load(bundle.path(artifact), "fp16"), listing.nodes, inputs)
        names = [s.name for s in artifact.outputs]
        found = walk(listing.nodes, values, names, reference, SIMULATED_DB)
    except ERRORS as error:
        return sanity(gate, engine, False, f"{label(artifact)} cannot be followed in float16: {error}")
    good = found.finding is None and found.compared > 0
    value = found.finding.snr_db if found.finding else None
    said = words(artifact, found)
    return sanity(gate, engine, good, f"{said} (float16)", value=value, threshold=SIMULATED_DB, unit="dB")


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
    if artifact.format == "mlpackage":
        from flashbulb.runtimes.bisect import coreml
        from flashbulb.runtimes.engines.mil.program import Program

        values = coreml.values(Program.load(path, "fp32"), listing.nodes, inputs)
        return walk(listing.nodes, values, names, reference, floor), None
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
        return (
            f"{name}: no operation departs; {found.agreed} of {found.compared} have a counterpart in PyTorch"
        )
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
