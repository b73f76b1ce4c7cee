"""Core ML: prediction with the system's own framework, which only macOS has."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.engines.base import Array, Engine, EngineError, Session, require

log = logging.getLogger(__name__)

Units = Literal["ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"]
LABELS: dict[Units, str] = {
    "ALL": "coreml",
    "CPU_ONLY": "coreml-cpu",
    "CPU_AND_GPU": "coreml-gpu",
    "CPU_AND_NE": "coreml-ne",
}
"""Where operators may run -> the word in records."""


class Coreml(Engine, frozen=True, tag="coreml"):
    """Predict with the bundle's ``.mlpackage`` directories, on a Mac."""

    compute_units: Units = "ALL"
    """Where Core ML may place operators; a check and a benchmark go through all four."""

    modules: ClassVar[tuple[str, ...]] = ("coremltools",)
    extra: ClassVar[str] = "coreml"

    @property
    def label(self) -> str:
        """Tell the compute units apart: each has kernels and rounding of its own."""
        return LABELS[self.compute_units]

    def variants(self, bundle: Bundle) -> tuple[Engine, ...]:
        """Return one engine for each choice of compute units."""
        return self.timings()

    def timings(self) -> tuple[Engine, ...]:
        """Return one engine for each choice of compute units."""
        return tuple(msgspec.structs.replace(self, compute_units=units) for units in LABELS)

    def absent_module(self) -> str | None:
        """Elsewhere than on a Mac, no installation helps."""
        return super().absent_module() if platform.system() == "Darwin" else None

    def missing(self) -> str | None:
        """Only macOS has the framework; Linux converts and saves, but never predicts."""
        if platform.system() != "Darwin":
            return (
                f"the coreml engine predicts with the Core ML framework, which only macOS has; this is "
                f"{platform.system()}. Copy the bundle to a Mac and repeat the command there"
            )
        return super().missing()

    def load(self, bundle: Bundle, *, threads: int = 1, components: Sequence[str] | None = None) -> Session:
        """Compile and open one model per component; Core ML chooses its threads itself."""
        require(self)
        artifacts = self.artifacts(bundle, components)
        models = {name: _open(bundle.path(a), self.compute_units) for name, a in artifacts.items()}
        return CoremlSession(self, artifacts, models)


class CoremlSession(Session):
    """One ``MLModel`` per component."""

    def __init__(self, engine: Coreml, artifacts: Mapping[str, Artifact], models: Mapping[str, Any]) -> None:
        super().__init__(engine, artifacts)
        self.models, self.units = dict(models), engine.compute_units

    def placement(self, component: str) -> dict[str, float]:
        """Read Core ML's compute plan; empty, with a warning, on a macOS before 14.4, which gives none."""
        from flashbulb.runtimes.coreml_plan import placement

        try:
            return placement(self.models[component].get_compiled_model_path(), self.units)
        except (RuntimeError, ValueError, AttributeError) as error:
            log.warning("Core ML gave no compute plan of %s: %s", component, error)
            return {}

    def call(self, component: str, arrays: Sequence[Array]) -> Sequence[Array]:
        """Predict once."""
        artifact = self.artifacts[component]
        feeds = {spec.name: array for spec, array in zip(artifact.inputs, arrays, strict=True)}
        try:
            found = self.models[component].predict(feeds)
        except RuntimeError as error:
            raise EngineError(f"Core ML could not run {component}: {error}") from error
        if absent := [s.name for s in artifact.outputs if s.name not in found]:
            raise EngineError(
                f"wanted the outputs {absent} of {component}, Core ML gave {sorted(found)}; export again"
            )
        return [np.asarray(found[s.name]) for s in artifact.outputs]


def _open(path: Path, units: str) -> Any:
    import coremltools

    try:
        return coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit[units])
    except RuntimeError as error:
        raise EngineError(f"Core ML refused {path.name}: {error}") from error
