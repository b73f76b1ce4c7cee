"""The float32 twin of a Core ML program: its own graph with the checkpoint's float32 numbers, interpreted.

A float16 package agrees with PyTorch only as far as its rounded constants let it, and a wrong operation can
hide under that.  The twin has no rounding left: what it loses, the graph loses.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.export.anatomy.listing import Array, Listing
from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.bisect.reference import Reference, snr_db
from flashbulb.runtimes.bisect.stage import floor_db, golden_inputs, reference_of
from flashbulb.runtimes.engines.mil.program import Program
from flashbulb.runtimes.gates import sanity
from flashbulb.runtimes.records import SanityRecord
from flashbulb.runtimes.sources import Sources
from flashbulb.runtimes.weights import UNDER_ROOTS, nearly

PLAIN = (0.0, 1.0, -1.0, -np.inf, np.inf, *UNDER_ROOTS)
"""Numbers that a converter may write where no operator has one; infinite is the bound that a clamp lacks."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """Gives the float32 numbers behind rounded ones."""

    sources: Sources
    component: str
    scalars: frozenset[float]
    strange: list[str] = field(default_factory=list)
    """Single numbers that were asked for and that no operator in PyTorch has."""

    def exact(self, name: str, values: Array) -> Array | None:
        """Return a constant as the checkpoint, or the operator that it belongs to, has it."""
        if values.size == 1:
            return self._scalar(name, values)
        for wanted in (self.sources.wanted[n] for n in self.sources.named(values)):
            if self.component not in (wanted.component, "generator"):
                continue
            for form in wanted.forms():
                rounded = form.astype(values.dtype).ravel()
                if np.array_equal(rounded, values.ravel()):
                    return form.reshape(values.shape).astype(np.float32)
        folded = [w for w in self.sources.of(self.component) if w.folded]
        close = nearly(values, folded)
        return None if close is None else close.reshape(values.shape).astype(np.float32)

    def _scalar(self, name: str, values: Array) -> Array | None:
        if values.dtype == np.float16 and float(values.flat[0]) == UNDER_ROOTS[1]:
            return np.full(values.shape, UNDER_ROOTS[0], np.float32)
        with np.errstate(over="ignore"):
            found = [s for s in self.scalars if values.dtype.type(s) == values.flat[0]]
        if not found and float(values.flat[0]) not in PLAIN:
            self.strange.append(f"{name} = {values.flat[0]:.4g}")
        return np.full(values.shape, found[0], np.float32) if len(found) == 1 else None


def twin(
    bundle: Bundle, artifact: Artifact, listing: Listing, sources: Sources, told: Reference
) -> tuple[Program, list[str]]:
    """Open a package with exact numbers; also name the single numbers in it that PyTorch has nowhere.

    Raises:
        ProgramError: when it is damaged, or not supported.
    """
    from flashbulb.runtimes.engines.mil.exact import exact_program

    numbers = Numbers(sources, artifact.component, frozenset(told.scalars))
    return exact_program(bundle.path(artifact), listing, numbers.exact), numbers.strange


def twin_gate(
    bundle: Bundle, artifact: Artifact, listing: Listing, sources: Sources, checkpoint: Checkpoint
) -> SanityRecord:
    """Hold the twin of a program to the golden outputs of the first case.

    Raises:
        ProgramError: when it cannot run.
    """
    told = reference_of(bundle, checkpoint, artifact, keep=False)
    (program, strange), case = twin(bundle, artifact, listing, sources, told), bundle.golden()[0]
    found = program.predict(golden_inputs(bundle, artifact))
    floor = floor_db(bundle, artifact.component)
    least = min(snr_db(case[s.name].ravel(), found[s.name].ravel()) for s in artifact.outputs)
    shown = "equals PyTorch" if least == np.inf else f"agrees with PyTorch at {least:.1f} dB"
    words = f"the float32 twin of {artifact.component}.{artifact.format} {shown}, wanted {floor:.1f} dB"
    if strange:
        words += f"; no operator of PyTorch has its number {strange[0]}"
    good, gate = least >= floor and not strange, f"twin.{artifact.component}"
    return sanity(gate, "mil", good, words, value=least, threshold=floor, unit="dB")
