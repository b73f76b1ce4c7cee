"""The role of every engine, a frozen config that loads a bundle, and of the session it gives.  No torch."""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np

from flashbulb.distill.components import TensorSpec
from flashbulb.distill.errors import MissingExtra
from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle

Array = np.ndarray[Any, Any]


class EngineError(RuntimeError):
    """A runtime refused an artifact, or an artifact does not keep its contract."""


class Session(ABC):
    """A loaded bundle: components that can be called with named numpy arrays."""

    def __init__(self, engine: Engine, artifacts: Mapping[str, Artifact]) -> None:
        self.engine, self.backend = engine.label, engine.backend
        self.artifacts = dict(artifacts)

    @property
    def components(self) -> tuple[str, ...]:
        """The components that it holds, in call order."""
        return tuple(self.artifacts)

    def artifact(self, component: str) -> Artifact:
        """Return the description of one component.

        Raises:
            EngineError: naming the components that there are.
        """
        if component not in self.artifacts:
            raise EngineError(
                f"wanted {component!r} of {self.engine}, it has {list(self.artifacts)}; export it as well"
            )
        return self.artifacts[component]

    def run(self, component: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Call a component; more inputs than it takes may be given, as the golden vectors do.

        Raises:
            EngineError: when an input is missing or misshapen, or the runtime refuses.
        """
        artifact = self.artifact(component)
        arrays = [fitted(spec, inputs, f"{self.engine} {component}") for spec in artifact.inputs]
        found = self.call(component, arrays)
        if len(found) != len(artifact.outputs):
            raise EngineError(
                f"wanted {len(artifact.outputs)} outputs of {self.engine} {component}, got {len(found)}"
            )
        return {
            s.name: _declared(s, a, f"{self.engine} {component}")
            for s, a in zip(artifact.outputs, found, strict=True)
        }

    def placement(self, component: str) -> dict[str, float]:
        """Return the share of a component's cost by device, where the runtime chooses and says so."""
        return {}

    def not_finite(self, component: str) -> tuple[int, str] | None:
        """Return how many values inside a component were NaN or infinite in all runs so far.

        Returns:
            that, with the name of the first operation that made one; None where nobody looks inside.
        """
        return None

    @abstractmethod
    def call(self, component: str, arrays: Sequence[Array]) -> Sequence[Array]:
        """Run one component on arrays in the order of its specs; return its outputs in theirs."""


def fitted(spec: TensorSpec, inputs: Mapping[str, Array], where: str) -> Array:
    """Return one input in the dtype of its spec; the shape must already be right."""
    if spec.name not in inputs:
        raise EngineError(f"wanted the input {spec.name!r} of {where}, got {sorted(inputs)}")
    array = np.ascontiguousarray(inputs[spec.name], dtype=spec.dtype)
    if array.shape != tuple(spec.shape):
        raise EngineError(f"wanted {spec.name} of {where} in shape {tuple(spec.shape)}, got {array.shape}")
    return array


def _declared(spec: TensorSpec, array: Array, where: str) -> Array:
    if array.shape != tuple(spec.shape):
        raise EngineError(
            f"wanted the output {spec.name} of {where} in shape {tuple(spec.shape)}, got {array.shape}"
        )
    return array


class Engine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A runtime and its options.  Subclasses name themselves with ``tag=``."""

    modules: ClassVar[tuple[str, ...]] = ()
    """Python modules that it needs."""
    extra: ClassVar[str] = ""
    """The extra of flashbulb that installs them."""
    native: ClassVar[bool] = False
    """Whether it gives its files to native code, which a damaged one can make end the process."""
    timed: ClassVar[bool] = True
    """Whether its speed says anything; `bench` leaves others out unless they are named."""

    @property
    def name(self) -> str:
        """The word for it, as in ``--engine NAME``."""
        return str(self.__struct_config__.tag)

    @property
    def backend(self) -> str:
        """The backend whose artifacts it opens."""
        return self.name

    @property
    def label(self) -> str:
        """The word for it in records; it tells apart two ways to use one engine."""
        return self.name

    @property
    def watches(self) -> bool:
        """Whether its sessions look at every value inside a component."""
        return False

    def absent_module(self) -> str | None:
        """Name the first module that it needs and that is not installed."""
        return next((m for m in self.modules if importlib.util.find_spec(m) is None), None)

    def missing(self) -> str | None:
        """Say why it cannot run on this machine; None when it can."""
        absent = self.absent_module()
        return absent and f"the {self.name} engine needs {absent}: pip install 'flashbulb[{self.extra}]'"

    def warm(self) -> None:
        """Import what it needs, so that a timed load is a load."""
        for module in self.modules:
            importlib.import_module(module)

    def serves(self, bundle: Bundle) -> str | None:
        """Say why it cannot run this bundle; None when it can."""
        held = sorted({a.backend for a in bundle.manifest.artifacts})
        return None if self.backend in held else f"the bundle holds {held}, nothing for {self.name}"

    def holds(self, bundle: Bundle) -> tuple[str, ...]:
        """Name the components that it has in a bundle."""
        return bundle.components(self.backend)  # type: ignore[arg-type]

    def artifacts(self, bundle: Bundle, components: Sequence[str] | None) -> dict[str, Artifact]:
        """Choose this engine's artifacts of the named components, or of all."""
        names = self.holds(bundle) if components is None else components
        return {name: bundle.artifact(name, self.backend, self.format(bundle)) for name in names}  # type: ignore[arg-type]

    def format(self, bundle: Bundle) -> Any:
        """The file format to choose, where a backend writes several; None for the first."""
        return None

    def variants(self, bundle: Bundle) -> tuple[Engine, ...]:
        """Return one engine per kind of file that it can open, so that a check leaves none out."""
        return (self,)

    def timings(self) -> tuple[Engine, ...]:
        """Return one engine per way to run that is worth a time of its own."""
        return (self,)

    def load(self, bundle: Bundle, *, threads: int = 1, components: Sequence[str] | None = None) -> Session:
        """Open a bundle's artifacts.

        Args:
            bundle: what to open; verify it first.
            threads: threads that one run may use.
            components: which to open; all that there are by default.

        Raises:
            EngineError: when the runtime refuses one.
        """
        raise NotImplementedError


def require(engine: Engine) -> None:
    """Refuse an engine that cannot run here.

    Raises:
        MissingExtra: with what to install.
        EngineError: where no installation would help, with where it does run.
    """
    if absent := engine.absent_module():
        raise MissingExtra(f"the {engine.name} engine needs {absent}", engine.extra)
    if reason := engine.missing():
        raise EngineError(reason)
