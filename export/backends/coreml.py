"""Core ML for iOS and macOS: converted on any system, predicted on Apple's only."""

from __future__ import annotations

import contextlib
import io
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from flashbulb.export.artifact import Artifact, BackendName, RuntimeFloor
from flashbulb.export.backends.base import Backend, artifact, need
from flashbulb.export.encodings import count, of_graph, refuse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flashbulb.compress.encoding import EncodedTensor
    from flashbulb.export.graph import Graph
    from flashbulb.export.rewrites import Rewrite

FOLDER = "coreml"


class Coreml(Backend, frozen=True, tag="coreml"):
    """Core ML: one ML program per component, as an `.mlpackage`."""

    name: ClassVar[BackendName] = "coreml"

    target: Literal["iOS16", "iOS17", "iOS18"] = "iOS16"
    """Oldest system to open it."""
    precision: Literal["float16", "float32"] = "float16"
    """Precision of the arithmetic; the affine of the one step is always fp32."""

    def rewrite(self) -> Rewrite:
        """Guard normalisation against fp16 overflow; keep the native resize."""
        from flashbulb.export.rewrites import Rewrite

        return Rewrite(norms="guarded" if self.precision == "float16" else "primitive")

    def check_installed(self) -> None:
        """Raise `MissingExtra` where a package is missing."""
        need("coreml", "coremltools")

    def lower(
        self, graphs: Sequence[Graph], encoded: dict[str, EncodedTensor], root: Path
    ) -> tuple[Artifact, ...]:
        """Convert each graph and save it as a package."""
        self.check_installed()
        return tuple(self._lower(graph, encoded, root) for graph in graphs)

    def _lower(self, graph: Graph, encoded: dict[str, EncodedTensor], root: Path) -> Artifact:
        from flashbulb.export.coreml_weights import compress

        start = time.perf_counter()
        used = of_graph(graph, encoded)
        kinds = ("palettize", "int8_weight_only", self.precision)
        refuse("coreml", used, kinds, self.allow_dequantized)
        program = compress(self.convert(graph), used)
        path = root / FOLDER / f"{graph.component}.mlpackage"
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        program.save(str(path))
        system = {"iOS16": "13.0", "iOS17": "14.0", "iOS18": "15.0"}[self.target]
        platforms = {"ios": self.target.removeprefix("iOS") + ".0", "macos": system}
        return artifact(
            path,
            root,
            graph,
            backend=self.name,
            format="mlpackage",
            precision=self.precision,
            encodings=count(used),
            seconds=round(time.perf_counter() - start, 2),
            floor=RuntimeFloor(runtime="coreml", version=self.target, platforms=platforms),
        )

    def convert(self, graph: Graph) -> Any:
        """Trace and convert one graph; tracing keeps the names and dtypes of inputs and outputs."""
        import coremltools as ct
        import numpy as np
        import torch

        with torch.no_grad():
            traced = torch.jit.trace(graph.module, graph.example(), check_trace=False)
        with quiet():
            return self._convert(ct, np, traced, graph)

    def _convert(self, ct: Any, np: Any, traced: Any, graph: Graph) -> Any:
        from flashbulb.export.coreml_passes import pipeline

        kinds = {"float32": np.float32, "int32": np.int32}
        return ct.convert(
            traced,
            convert_to="mlprogram",
            inputs=[ct.TensorType(name=s.name, shape=s.shape, dtype=kinds[s.dtype]) for s in graph.inputs],
            outputs=[ct.TensorType(name=s.name, dtype=kinds[s.dtype]) for s in graph.outputs],
            minimum_deployment_target=getattr(ct.target, self.target),
            compute_precision=self._precision(ct),
            pass_pipeline=pipeline(ct),
            skip_model_load=True,
        )

    def _precision(self, ct: Any) -> Any:
        if self.precision == "float32":
            return ct.precision.FLOAT32
        return ct.transform.FP16ComputePrecision(op_selector=lambda op: not is_affine(op))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep coremltools' progress bars, which take no option, off the terminal."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_affine(op: Any) -> bool:
    """Tell the operators of the one step's affine: what makes or takes a value that the graph names so."""
    values = [*op.outputs, *(v for v in op.inputs.values() if hasattr(v, "name"))]
    return any("affine_" in value.name for value in values)
