"""Gates of the programs themselves, without running one: what was exported, with the checkpoint's weights.

The structure gate needs the record that an export leaves in the bundle; the weight gate needs the checkpoint.
What is not there is said in a record of its own, which is no pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.export.anatomy import AnatomyError
from flashbulb.export.anatomy.listing import Listing
from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.export.structure import Structure, contract, differences, read_structure
from flashbulb.runtimes.codes import code_gate
from flashbulb.runtimes.gates import sanity
from flashbulb.runtimes.listing_gates import (
    DECODE_ERRORS,
    OPEN_ERRORS,
    lines_gate,
    unopened_gate,
    weight_gate,
)
from flashbulb.runtimes.opening import label, open_listing, open_source
from flashbulb.runtimes.optimum_gates import optimum_gates
from flashbulb.runtimes.questions import has_optimum, twinned
from flashbulb.runtimes.records import SanityRecord, Verdict
from flashbulb.runtimes.source_gates import checkpoint_gates, rule_gates
from flashbulb.runtimes.sources import Sources, sources


def program_gates(
    bundle: Bundle, checkpoint: str | None = None, backends: Collection[str] = ()
) -> Iterator[SanityRecord]:
    """Judge every artifact's structure and weights, then what else follows from the checkpoint.

    Args:
        bundle: whose files have the recorded hashes.
        checkpoint: where its source is, if not where it was at export.
        backends: judge only the programs of these; none for all.
    """
    yield from rule_gates(bundle)
    yield source_gate(bundle)
    found, reason = open_source(bundle, checkpoint)
    wanted = None
    if found:
        yield from checkpoint_gates(bundle, found)
        yield code_gate(found)
        wanted = sources(found, bundle.manifest.sampling.one_step, found.components())
    chosen = [a for a in bundle.manifest.artifacts if not backends or a.backend in backends]
    for artifact in chosen:
        try:
            listing, recorded = open_listing(bundle, artifact), read_structure(bundle.root, artifact)
        except OPEN_ERRORS as error:
            yield unopened_gate(label(artifact), error)
            continue
        yield structure_gate(artifact, listing, recorded)
        if found and wanted:
            yield weight_gate(wanted, artifact.component, label(artifact), listing)
            yield from _twin(bundle, artifact, listing, wanted, found)
    if not backends or "ort" in backends:
        yield from optimum_gates(bundle, found)
    if reason:
        verdict: Verdict = "skip" if checkpoint is None else "fail"
        missed = {**_of_source(bundle), **_of_programs(chosen, has_optimum(bundle, backends))}
        for gate, (engine, what) in missed.items():
            words = f"not judged: {what} could be held to the checkpoint: {reason}"
            yield SanityRecord(gate=gate, engine=engine, verdict=verdict, sentence=words)


def source_gate(bundle: Bundle) -> SanityRecord:
    """Hold the digest of the checkpoint to the records that the export left of every program."""
    wanted, told, silent = bundle.manifest.source.sha256, dict[str, str](), []
    for artifact in bundle.manifest.artifacts:
        try:
            recorded = read_structure(bundle.root, artifact)
        except AnatomyError as error:
            words = f"the records of {label(artifact)} are damaged: {error}"
            return sanity("source", "bundle", False, words, value=1.0, threshold=0.0, unit="programs")
        if recorded and recorded.source:
            told[label(artifact)] = recorded.source
        else:
            silent.append(label(artifact))
    if others := [name for name, source in told.items() if source != wanted]:
        words = (
            f"the manifest names the checkpoint {wanted[:12]}, {others[0]} was exported from "
            f"{told[others[0]][:12]}; export it again"
        )
        count = float(len(others))
        return sanity("source", "bundle", False, words, value=count, threshold=0.0, unit="programs")
    if silent:
        words = f"nothing in the bundle says from which checkpoint {', '.join(silent)} came; export it again"
        return SanityRecord(gate="source", engine="bundle", verdict="skip", sentence=words)
    words = f"all {len(told)} programs were exported from the checkpoint {wanted[:12]} of the manifest"
    return sanity("source", "bundle", True, words, value=0.0, threshold=0.0, unit="programs")


def structure_gate(artifact: Artifact, listing: Listing, recorded: Structure | None) -> SanityRecord:
    """Hold an artifact to the record of what was exported, line by line."""
    told = differences(recorded.contract, contract(artifact)) if recorded else ()
    return lines_gate(label(artifact), listing, recorded, [f"the manifest's {d}" for d in told])


def _of_source(bundle: Bundle) -> dict[str, tuple[str, str]]:
    """Name each gate that holds the manifest to the checkpoint, with its engine and its subject."""
    missed = {"weights": "no weight", "schedule": "no constant of the one step", "lineage": "no lineage"}
    missed["codes"] = "no code of a compressed weight"
    missed |= {f"tokenizer.{t.folder}": f"no word of {t.folder}" for t in bundle.manifest.tokenizers}
    return {gate: ("bundle", what) for gate, what in missed.items()}


def _of_programs(chosen: Sequence[Artifact], optimum: bool) -> dict[str, tuple[str, str]]:
    """Name each gate that needs the checkpoint for some kinds of programs, with its engine and subject."""
    missed = {"optimum": ("bundle", "no setting for optimum")} if optimum else {}
    return missed | ({"twin": ("mil", "no twin of a Core ML program")} if twinned(chosen) else {})


def _twin(
    bundle: Bundle, artifact: Artifact, listing: Listing, wanted: Sources, checkpoint: Checkpoint
) -> Iterator[SanityRecord]:
    """Judge the float32 twin of a Core ML component."""
    if not twinned([artifact]):
        return
    from flashbulb.runtimes.twin import twin_gate

    try:
        yield twin_gate(bundle, artifact, listing, wanted, checkpoint)
    except DECODE_ERRORS as error:
        words = f"{label(artifact)} has no twin: {error}"
        yield sanity(f"twin.{artifact.component}", "mil", False, words)
