"""The same file on two processors: what another one computes is held to what this one does.

The golden vectors tell whether a device is right; they allow for what lowering changed.  The same file run
twice allows for the order of sums alone, so this bound is far tighter and finds a wrong kernel.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator

from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.engines.base import EngineError, Session
from flashbulb.runtimes.parity import Subject, Threshold, judge
from flashbulb.runtimes.pipeline import Pipeline
from flashbulb.runtimes.records import ParityRecord

FLOAT32_DB = 100.0
"""Signal-to-noise ratio of one float32 file on two processors; measured: 121 to 141 dB."""
FLOAT16_DB = 45.0
"""The same for float16 arithmetic, whose sums round at a thousandth."""
INT8_DB = 90.0
"""The same where weights are stored as int8, which the runtimes multiply out to float32 before they use them;
measured: 125 to 140 dB.  Files with int8 activations are not exported; kernels may round them elsewhere:
measured 49 dB in ONNX Runtime with unsigned activations, 32 dB with signed ones, no difference in XNNPACK."""


def tolerance_db(artifact: Artifact) -> float:
    """Return the smallest ratio that passes for an artifact."""
    if any(name.startswith("int8") for name in artifact.encodings):
        return INT8_DB
    return FLOAT32_DB if artifact.precision == "float32" else FLOAT16_DB


def agreement(bundle: Bundle, here: Session, there: Session, cases: int | None) -> Iterator[ParityRecord]:
    """Compare two sessions on the golden inputs of every component that the device holds.

    Args:
        bundle: whose golden inputs.
        here: the reference.
        there: what is judged.
        cases: how many golden cases; None for all.

    Raises:
        EngineError: when one cannot run it.
    """
    for component in there.components:
        artifact = there.artifact(component)
        if here.artifact(component) != artifact:
            raise EngineError(f"wanted the same file here and there, got {here.artifact(component).path!r}")
        for index, case in enumerate(bundle.golden()[:cases]):
            told = bundle.manifest.golden.cases[index]
            given = {"sample": Pipeline(bundle, None).sample(case["noise"]), **case}
            wanted, got = here.run(component, given), there.run(component, given)
            for tensor in wanted:
                subject = Subject(
                    engine=f"{there.engine}~{platform.machine()}",
                    precision=artifact.precision,
                    quantity=component,
                    tensor=tensor,
                    case=index,
                    prompt=told.prompt,
                    seed=told.seed,
                )
                threshold = Threshold(metric="snr_db", minimum_db=tolerance_db(artifact))
                yield judge(subject, threshold, wanted[tensor], got[tensor])
