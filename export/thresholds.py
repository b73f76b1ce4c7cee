"""Set the gates of a bundle by rule: arithmetic precision, and what one step does to it.  No torch here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flashbulb.export.bundle import Gate, Quantity

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flashbulb.distill.schedule import OneStep
    from flashbulb.export.artifact import Artifact, BackendName, Precision

COMPONENT_DB = {"float32": 90.0, "float16": 45.0}
"""Signal-to-noise ratio of a component fed with golden inputs.

Measured on small models: fp32 runtimes reach 118 to 139 dB, fp16 arithmetic 61 to 76 dB.
"""
RUNTIME_DB = 100.0
"""The same of float32 programs of ONNX Runtime and ExecuTorch, whose codes decode to the checkpoint's floats.

Measured: 115 to 139 dB; a gelu by tanh in place of the exact one costs them down to 91 to 104 dB.
"""
IMAGE_DB = {"float32": 60.0, "float16": 30.0}
"""Peak signal-to-noise ratio of a picture, before the share that one step takes."""
RUNTIME_IMAGE_DB = 90.0
"""The same of float32 programs of ONNX Runtime and ExecuTorch; measured: 123 and more, split and fused."""


def amplification_db(step: OneStep) -> float:
    """Return how many decibels the step from the UNet's output to x0 may cost: 20 log10 of the factor."""
    return max(0.0, 20.0 * math.log10(max(abs(step.coefficients()[1]), 1e-12)))


def gates(artifacts: Iterable[Artifact], step: OneStep) -> tuple[Gate, ...]:
    """Return the thresholds for every backend and precision among some artifacts."""
    found = []
    for backend, precision in sorted({(a.backend, a.precision) for a in artifacts}):
        components = {a.component for a in artifacts if (a.backend, a.precision) == (backend, precision)}
        found += _of(backend, precision, sorted(components), step)
    return tuple(found)


def _floors_db(backend: BackendName, precision: Precision) -> tuple[float, float]:
    """Return what a component and a picture must reach; a float32 twin is held to more for Core ML."""
    if backend == "coreml" or precision == "float16":
        return COMPONENT_DB[precision], IMAGE_DB[precision]
    return RUNTIME_DB, RUNTIME_IMAGE_DB


def _of(backend: BackendName, precision: Precision, components: list[str], step: OneStep) -> list[Gate]:
    (base, image), cost = _floors_db(backend, precision), amplification_db(step)

    def gate(quantity: str, metric: str, minimum_db: float) -> Gate:
        return Gate(
            backend=backend,
            precision=precision,
            quantity=quantity,  # type: ignore[arg-type]
            metric=metric,  # type: ignore[arg-type]
            minimum_db=round(minimum_db, 2),
        )

    singles = [gate(name, "snr_db", base) for name in components if name != "generator"]
    # A picture saturates, so that an error of x0 beyond its own size costs it less than the full factor.
    drawn = max(image - cost / 2, 15.0)
    whole: list[tuple[Quantity, str, float]] = [("x0", "snr_db", base - cost), ("image", "psnr_db", drawn)]
    if "generator" in components:
        whole.append(("generator", "psnr_db", drawn))
    return singles + [gate(*row) for row in whole]
