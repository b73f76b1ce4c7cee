"""ONNX Runtime: the files that Android, iOS and the web load, on this machine's processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec

from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.engines.base import Array, Engine, EngineError, Session, require


class Ort(Engine, frozen=True, tag="ort"):
    """Run the bundle's ``.ort`` (or ``.onnx``) files with ONNX Runtime's CPU provider."""

    artifact_format: Literal["ort", "onnx"] | None = None
    """Which file to open: phones take ``ort``, the web ``onnx``; by default ``ort`` where there is one."""
    spinning: bool = False
    """Let idle threads spin: a tenth faster on an idle machine, twice as slow on a busy one."""

    modules: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    extra: ClassVar[str] = "onnx"
    native: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """Tell the two files of a component apart."""
        return "onnx" if self.artifact_format == "onnx" else self.name

    def format(self, bundle: Bundle) -> Any:
        """The file format to open; a model over 2 GB has no ``.ort``."""
        held = {a.format for a in bundle.manifest.artifacts}
        return self.artifact_format or ("ort" if "ort" in held else "onnx")

    def variants(self, bundle: Bundle) -> tuple[Engine, ...]:
        """Return one engine for ``.ort`` files and one for ``.onnx``."""
        held = {a.format for a in bundle.manifest.artifacts}
        return tuple(msgspec.structs.replace(self, artifact_format=f) for f in ("ort", "onnx") if f in held)

    def load(self, bundle: Bundle, *, threads: int = 1, components: Sequence[str] | None = None) -> Session:
        """Open one inference session per component."""
        require(self)
        artifacts = self.artifacts(bundle, components)
        sessions = {name: open_file(bundle.path(a), threads, self.spinning) for name, a in artifacts.items()}
        return OrtSession(self, artifacts, sessions)


class OrtSession(Session):
    """One ``onnxruntime.InferenceSession`` per component."""

    def __init__(
        self, engine: Engine, artifacts: Mapping[str, Artifact], sessions: Mapping[str, Any]
    ) -> None:
        super().__init__(engine, artifacts)
        self.sessions = dict(sessions)
        for name, session in self.sessions.items():
            _check_names(name, self.artifacts[name], session)

    def call(self, component: str, arrays: Sequence[Array]) -> Sequence[Array]:
        """Run one session."""
        artifact = self.artifacts[component]
        feeds = {spec.name: array for spec, array in zip(artifact.inputs, arrays, strict=True)}
        try:
            found: Sequence[Array] = self.sessions[component].run([s.name for s in artifact.outputs], feeds)
        except ort_errors() as error:
            raise EngineError(f"ONNX Runtime could not run {component}: {error}") from error
        return found


def open_file(path: Path, threads: int, spinning: bool) -> Any:
    """Open one file with a fixed number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except ort_errors() as error:
        raise EngineError(f"ONNX Runtime {onnxruntime.__version__} refused {path.name}: {error}") from error


def ort_errors() -> tuple[type[Exception], ...]:
    """The exception types of ONNX Runtime, which share no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception)]
    return (RuntimeError, ValueError, MemoryError, *own)


def _check_names(component: str, artifact: Artifact, session: Any) -> None:
    wanted = ([s.name for s in artifact.inputs], [s.name for s in artifact.outputs])
    got = ([i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()])
    if sorted(wanted[0]) != sorted(got[0]) or not set(wanted[1]) <= set(got[1]):
        raise EngineError(
            f"wanted {component} with inputs and outputs {wanted}, the file has {got}; export it again"
        )
