"""The engine that runs a bundle's Core ML programs on any system, by the interpreter of this folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import msgspec

from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.engines.base import Array, Engine, EngineError, Session, require
from flashbulb.runtimes.engines.mil.contract import told
from flashbulb.runtimes.engines.mil.program import Program


class Mil(Engine, frozen=True, tag="mil"):
    """Run the bundle's saved Core ML programs operation by operation; it says nothing of a device's speed."""

    mode: Literal["fp32", "fp16"] = "fp32"
    """`fp32` rounds nothing: is the graph right?  `fp16` rounds what is declared so: what does it lose?"""
    low_memory: bool = False
    """Keep weights in their files and decompress each when it is used."""

    modules: ClassVar[tuple[str, ...]] = ("torch",)
    extra: ClassVar[str] = "coreml"
    timed: ClassVar[bool] = False

    @property
    def backend(self) -> str:
        """It opens what the Core ML backend wrote."""
        return "coreml"

    @property
    def label(self) -> str:
        """Tell the two modes apart."""
        return self.name if self.mode == "fp32" else f"{self.name}-{self.mode}"

    @property
    def watches(self) -> bool:
        """Float16 overflows at 65504, float32 does not."""
        return self.mode == "fp16"

    def variants(self, bundle: Bundle) -> tuple[Engine, ...]:
        """Return one engine that rounds nothing, and for fp16 programs one that rounds as declared."""
        halves = any(
            a.backend == self.backend and a.precision == "float16" for a in bundle.manifest.artifacts
        )
        modes: tuple[Literal["fp32", "fp16"], ...] = ("fp32", "fp16") if halves else ("fp32",)
        return tuple(msgspec.structs.replace(self, mode=mode) for mode in modes)

    def load(self, bundle: Bundle, *, threads: int = 1, components: Sequence[str] | None = None) -> Session:
        """Read and compile one program per component."""
        require(self)
        import torch

        torch.set_num_threads(threads)
        artifacts = self.artifacts(bundle, components)
        programs = {n: self._open(bundle, a) for n, a in artifacts.items()}
        return MilSession(self, artifacts, programs)

    def _open(self, bundle: Bundle, artifact: Artifact) -> Program:
        program = Program.load(bundle.path(artifact), self.mode, low_memory=self.low_memory)
        if other := told(program.interface, artifact.inputs, artifact.outputs):
            raise EngineError(
                f"wanted {artifact.path} to say of itself what the manifest does: {'; '.join(other)}; "
                "export it again"
            )
        return program


class NotFinite:
    """Counts what overflows on the way: a later operation can make finite numbers of it again."""

    def __init__(self) -> None:
        self.count, self.first = 0, ""

    def __call__(self, op: str, name: str, value: Any) -> None:
        """Look at one tensor."""
        if not value.is_floating_point():
            return
        finite = value.isfinite()
        if not finite.all():
            self.first = self.first or f"{name!r} ({op})"
            self.count += int((~finite).sum())


class MilSession(Session):
    """One compiled program per component."""

    def __init__(
        self, engine: Engine, artifacts: Mapping[str, Artifact], programs: Mapping[str, Any]
    ) -> None:
        super().__init__(engine, artifacts)
        self.programs = dict(programs)
        self._watched = {n: NotFinite() for n, p in self.programs.items() if p.mode == "fp16"}

    def call(self, component: str, arrays: Sequence[Array]) -> Sequence[Array]:
        """Run one program."""
        artifact = self.artifacts[component]
        found = self.programs[component].predict(
            {spec.name: array for spec, array in zip(artifact.inputs, arrays, strict=True)},
            watch=self._watched.get(component),
        )
        if absent := [s.name for s in artifact.outputs if s.name not in found]:
            raise EngineError(
                f"wanted the outputs {absent} of {component}, the program gave {sorted(found)}; export again"
            )
        return [found[s.name] for s in artifact.outputs]

    def not_finite(self, component: str) -> tuple[int, str] | None:
        """Return what overflowed in simulated float16, where float32 does not."""
        watched = self._watched.get(component)
        return None if watched is None else (watched.count, watched.first)
