"""Gates of the programs themselves, without running one: what was exported, with the checkpoint's weights.

The structure gate needs the record that an export leaves in the bundle; the weight gate needs the checkpoint.
What is not there is said in a record of its own, which is no pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.export.anatomy import AnatomyError
from flashbulb.export.anatomy.listing import Listing
from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.export.structure import Structure, contract, differences, read_structure
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.gates import sanity
from flashbulb.runtimes.opening import label, open_listing, open_source
from flashbulb.runtimes.records import SanityRecord, Verdict
from flashbulb.runtimes.source_gates import checkpoint_gates, rule_gates
from flashbulb.runtimes.sources import Sources, sources
from flashbulb.runtimes.weights import judge_weights

OPEN_ERRORS = (AnatomyError, ProgramError, EngineError, OSError)
DECODE_ERRORS = (*OPEN_ERRORS, ValueError, IndexError, TypeError)
"""What numpy says of codes, tables and steps that do not fit one another comes on top."""
SHOWN_PROBLEMS = 3


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
        wanted = sources(found, bundle.manifest.sampling.one_step, found.components())
    chosen = [a for a in bundle.manifest.artifacts if not backends or a.backend in backends]
    for artifact in chosen:
        try:
            listing, recorded = open_listing(bundle, artifact), read_structure(bundle.root, artifact)
        except OPEN_ERRORS as error:
            words = f"{label(artifact)} cannot be taken apart: {error}"
            yield sanity(f"structure.{label(artifact)}", "bundle", False, words)
            continue
        yield structure_gate(artifact, listing, recorded)
        if found and wanted:
            yield _weights(wanted, artifact, listing)
            yield from _twin(bundle, artifact, listing, wanted, found)
    if reason:
        yield from _not_judged(bundle, reason, "skip" if checkpoint is None else "fail")


def source_gate(bundle: Bundle) -> SanityRecord:
    """Hold the digest of the checkpoint to the records that the export left of every program."""
    wanted, told, silent = bundle.manifest.source.sha256, dict[str, str](), []
    for artifact in bundle.manifest.artifacts:
        try:
            recorded = read_structure(bundle.root, artifact)
        except AnatomyError as error:
            return sanity("source", "bundle", False, f"the records of {label(artifact)} are damaged: {error}")
        if recorded and recorded.source:
            told[label(artifact)] = recorded.source
        else:
            silent.append(label(artifact))
    if other := next((name for name, source in told.items() if source != wanted), None):
        words = (
            f"the manifest names the checkpoint {wanted[:12]}, {other} was exported from "
            f"{told[other][:12]}; export it again"
        )
        return sanity("source", "bundle", False, words)
    if silent:
        words = f"nothing in the bundle says from which checkpoint {', '.join(silent)} came; export it again"
        return SanityRecord(gate="source", engine="bundle", verdict="skip", sentence=words)
    words = f"all {len(told)} programs were exported from the checkpoint {wanted[:12]} of the manifest"
    return sanity("source", "bundle", True, words, value=float(len(told)))


def structure_gate(artifact: Artifact, listing: Listing, recorded: Structure | None) -> SanityRecord:
    """Hold a program to the record of what was exported, line by line."""
    gate, name = f"structure.{label(artifact)}", label(artifact)
    if recorded is None:
        words = f"{name}: the bundle has no structure record; export it again to have one"
        return SanityRecord(gate=gate, engine="bundle", verdict="skip", sentence=words)
    told = [f"the manifest's {d}" for d in differences(recorded.contract, contract(artifact))]
    found = [*told, *differences(recorded.lines, listing.lines)]
    lines = len(recorded.lines)
    words = f"{name} has the {lines} operations and constants that were exported"
    if found:
        words = f"{name} differs from what was exported in {len(found)} of {lines} lines, first {found[0]}"
    return sanity(gate, "bundle", not found, words, value=float(len(found)), threshold=0.0)


def _weights(wanted: Sources, artifact: Artifact, listing: Listing) -> SanityRecord:
    """Judge the weights of a program; constants are decoded only now, and damaged ones cannot be."""
    try:
        return weight_gate(wanted, artifact, listing)
    except DECODE_ERRORS as error:
        words = f"the weights of {label(artifact)} cannot be read: {error}; export it again"
        return sanity(f"weights.{label(artifact)}", "bundle", False, words)


def weight_gate(wanted: Sources, artifact: Artifact, listing: Listing) -> SanityRecord:
    """Hold every stored weight to the checkpoint, by the rule of its code."""
    found, name = judge_weights(listing, wanted, artifact.component), label(artifact)
    words = f"{name} holds the checkpoint's {found.matched} tensors, {found.values} values"
    if found.problems:
        more = len(found.problems) - SHOWN_PROBLEMS
        words = f"{name}: {'; '.join(found.problems[:SHOWN_PROBLEMS])}" + (
            f"; {more} more" if more > 0 else ""
        )
    good = not found.problems
    return sanity(
        f"weights.{name}", "bundle", good, words, value=float(found.wrong), threshold=0.0, unit="values"
    )


def _not_judged(bundle: Bundle, reason: str, verdict: Verdict) -> Iterator[SanityRecord]:
    """Name each gate that needs the checkpoint; where one was named, it must be the bundle's."""
    missed = {"weights": "no weight", "schedule": "no constant of the one step", "lineage": "no lineage"}
    missed |= {f"tokenizer.{t.folder}": f"no word of {t.folder}" for t in bundle.manifest.tokenizers}
    for gate, what in missed.items():
        words = f"not judged: {what} could be held to the checkpoint: {reason}"
        yield SanityRecord(gate=gate, engine="bundle", verdict=verdict, sentence=words)


def _twin(
    bundle: Bundle, artifact: Artifact, listing: Listing, wanted: Sources, checkpoint: Checkpoint
) -> Iterator[SanityRecord]:
    """Judge the float32 twin of a Core ML component; the fused program is made of the same parts."""
    if artifact.format != "mlpackage" or artifact.component == "generator":
        return
    from flashbulb.runtimes.twin import twin_gate

    try:
        yield twin_gate(bundle, artifact, listing, wanted, checkpoint)
    except DECODE_ERRORS as error:
        words = f"{label(artifact)} has no twin: {error}"
        yield sanity(f"twin.{artifact.component}", "mil", False, words)
