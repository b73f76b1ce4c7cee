"""ExecuTorch: the program that phones load, run here by the same XNNPACK delegate."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.engines.base import Array, Engine, EngineError, Session, require


class Executorch(Engine, frozen=True, tag="executorch"):
    """Run the methods of the bundle's ``.pte`` program."""

    modules: ClassVar[tuple[str, ...]] = ("executorch", "torch")
    extra: ClassVar[str] = "executorch"
    native: ClassVar[bool] = True

    def warm(self) -> None:
        """Import the runtime's native part as well."""
        importlib.import_module("executorch.runtime")
        super().warm()

    def load(self, bundle: Bundle, *, threads: int = 1, components: Sequence[str] | None = None) -> Session:
        """Open each program once and load its methods."""
        require(self)
        size_thread_pool(threads)
        artifacts = self.artifacts(bundle, components)
        programs = {
            path: _program(path) for path in dict.fromkeys(bundle.path(a) for a in artifacts.values())
        }
        methods = {n: _method(programs[bundle.path(a)], a.method or n) for n, a in artifacts.items()}
        return ExecutorchSession(self, artifacts, methods)


class ExecutorchSession(Session):
    """One loaded method per component."""

    def __init__(self, engine: Engine, artifacts: Mapping[str, Artifact], methods: Mapping[str, Any]) -> None:
        super().__init__(engine, artifacts)
        self.methods = dict(methods)

    def call(self, component: str, arrays: Sequence[Array]) -> Sequence[Array]:
        """Execute one method; outputs are copied, for the next run writes into the same memory."""
        import torch

        try:
            found = self.methods[component].execute([torch.from_numpy(a) for a in arrays])
        except FAULTS as error:
            raise EngineError(f"ExecuTorch could not run {component}: {error}") from error
        return [value.detach().numpy().copy() for value in found]


def size_thread_pool(threads: int) -> None:
    """Give the process-wide pool its size; it must happen before a program is loaded."""
    with quiet_stderr():
        from executorch.extension.pybindings import portable_lib

        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hold back what native code says on standard error about the processor; nothing else runs inside."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


FAULTS = (RuntimeError, ValueError, MemoryError)
"""What its bindings raise on a damaged program; on some it ends the process instead."""


def _program(path: Path) -> Any:
    from executorch.runtime import Runtime, Verification

    try:
        return Runtime.get().load_program(path, verification=Verification.InternalConsistency)
    except FAULTS as error:
        raise EngineError(f"ExecuTorch refused {path.name}: {error or type(error).__name__}") from error


def _method(program: Any, name: str) -> Any:
    try:
        method = program.load_method(name) if name in program.method_names else None
    except FAULTS as error:
        reason = str(error) or type(error).__name__
        raise EngineError(f"ExecuTorch could not load the method {name}: {reason}") from error
    if method is None:
        raise EngineError(
            f"wanted the method {name!r} of the program, got {sorted(program.method_names)}; export again"
        )
    return method
