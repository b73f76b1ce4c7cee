"""ONNX Runtime for Android, iOS, desktop and the web."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec

from flashbulb.export.artifact import Artifact, BackendName, RuntimeFloor
from flashbulb.export.backends.base import Backend, BackendError, artifact, need
from flashbulb.export.encodings import count, of_graph, refuse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flashbulb.compress.encoding import EncodedTensor
    from flashbulb.export.graph import Graph
    from flashbulb.export.rewrites import Rewrite

log = logging.getLogger(__name__)
FOLDER = "onnx"
OPERATORS = "required_operators_and_types.config"
LIMIT_BYTES = 2**31 - 1
PLATFORMS = {"android": "7.0", "ios": "15.1", "macos": "13.4"}


class Ort(Backend, frozen=True, tag="ort"):
    """ONNX Runtime: an `.onnx` and an `.ort` file per component, in fp32 arithmetic."""

    name: ClassVar[BackendName] = "ort"

    opset: Annotated[int, msgspec.Meta(ge=18, le=23)] = 20
    """ONNX opset to write; 20 is the first with Gelu as one operator."""
    weights: Literal["lossless_float16", "float32"] = "lossless_float16"
    """Storage in `.onnx`: fp16 where each value of a weight is exact in it, cast while loading; or fp32."""
    codes: bool = True
    """Store encoded weights as codes and tables; false stores their floats: larger, several times faster."""
    ort_format: bool = True
    """Also write `.ort`, which reduced builds of the runtime need; the web wants `.onnx`."""
    optimum: bool = True
    """Also write `optimum/`, the folder that optimum's pipelines open."""

    def rewrite(self) -> Rewrite:
        """Keep native normalisation and resizing: the runtime has fast kernels for them."""
        from flashbulb.export.rewrites import Rewrite

        return Rewrite()

    def check_installed(self) -> None:
        """Raise `MissingExtra` where a package is missing."""
        need("onnx", "onnx", "onnxscript", "onnxruntime")

    def lower(
        self, graphs: Sequence[Graph], encoded: dict[str, EncodedTensor], root: Path
    ) -> tuple[Artifact, ...]:
        """Write each graph as `.onnx` and `.ort`."""
        self.check_installed()
        return tuple(a for graph in graphs for a in self._lower(graph, encoded, root))

    def _lower(self, graph: Graph, encoded: dict[str, EncodedTensor], root: Path) -> list[Artifact]:
        from flashbulb.export.onnx_weights import apply_encodings

        start = time.perf_counter()
        used = of_graph(graph, encoded) if self.codes else {}
        refuse("ort", used, ("palettize", "int8_weight_only", "float16", "float32"), self.allow_dequantized)
        model = to_onnx(graph, self.opset)
        apply_encodings(model, graph, used)
        onnx_path, ort_path = (root / FOLDER / f"{graph.component}.{s}" for s in ("onnx", "ort"))
        onnx_path.parent.mkdir(parents=True, exist_ok=True)
        written = [onnx_path]
        if self.ort_format and model.ByteSize() < LIMIT_BYTES:
            save_ort(model, ort_path, fold=not any(e.encoding.coded for e in used.values()))
            written.append(ort_path)
        self.save(model, onnx_path)
        seconds = round(time.perf_counter() - start, 2)
        return [self._record(p, root, graph, used, seconds) for p in written]

    def save(self, model: Any, path: Path) -> None:
        """Write one checked model."""
        import onnx

        from flashbulb.export.onnx_weights import halve

        if self.weights == "lossless_float16":
            halve(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        large = model.ByteSize() >= LIMIT_BYTES
        onnx.save(model, path, save_as_external_data=large, location=path.name + ".data")
        onnx.checker.check_model(str(path))

    def _record(
        self, path: Path, root: Path, graph: Graph, used: dict[str, EncodedTensor], seconds: float
    ) -> Artifact:
        suffix: Any = path.suffix[1:]
        # Opset 20 came with runtime 1.17, 21 with 1.18; `.ort` files are read from 1.13 on, opset permitting.
        version = {18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18", 22: "1.20", 23: "1.22"}[self.opset]
        record = artifact(
            path,
            root,
            graph,
            backend=self.name,
            format=suffix,
            precision="float32",
            encodings=count(used),
            seconds=seconds,
            floor=RuntimeFloor(runtime="onnxruntime", version=version, platforms=PLATFORMS),
        )
        return _with_external(record, path, root)


def _with_external(found: Artifact, path: Path, root: Path) -> Artifact:
    """Add the external data of a model over 2 GB to its record."""
    from flashbulb.export.artifact import digest, record

    data = path.with_name(path.name + ".data")
    if path.suffix != ".onnx" or not data.is_file():
        return found
    files = tuple(sorted((*found.files, record(data, root)), key=lambda r: r.path))
    return msgspec.structs.replace(
        found, files=files, sha256=digest(files), size_bytes=sum(f.size_bytes for f in files)
    )


def to_onnx(graph: Graph, opset: int) -> Any:
    """Export a graph as an ONNX model without traces of the machine that did it."""
    import torch

    inputs, outputs = [s.name for s in graph.inputs], [s.name for s in graph.outputs]
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                graph.module,
                graph.example(),
                dynamo=True,
                opset_version=opset,
                input_names=inputs,
                output_names=outputs,
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
    if program is None:
        raise BackendError(f"wanted an ONNX program of {graph.component}, got none; export with torch 2.13")
    return own_scales(strip(program.model_proto))


def strip(model: Any) -> Any:
    """Remove stack traces and module paths, which tell about the exporting machine and change with it."""
    del model.metadata_props[:]
    graph = model.graph
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        item.doc_string = ""
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]
    del graph.value_info[:]
    del model.functions[:]
    return model


def own_scales(model: Any) -> Any:
    """Give each Resize its own scales: fp16 converters cast shared ones once per node, under one name."""
    seen: set[str] = set()
    constants = {t.name: t for t in model.graph.initializer}
    for index, node in enumerate(n for n in model.graph.node if n.op_type == "Resize"):
        name = node.input[2] if len(node.input) > 2 else ""
        if name in seen and name in constants:
            copy = model.graph.initializer.add()
            copy.CopyFrom(constants[name])
            copy.name = node.input[2] = f"{name}.{index}"
        seen.add(name)
    return model


def save_ort(model: Any, path: Path, *, fold: bool) -> None:
    """Write the runtime's own format: level EXTENDED is portable, ALL would bind it to this processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.log_severity_level = 3
    # Folding would decode compressed weights into the file.
    disabled = None if fold else ["ConstantFolding"]
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
    )
    if not path.is_file() or path.stat().st_size == 0:
        raise BackendError(f"wanted an .ort file at {path}, the runtime wrote nothing; is the disk full?")


def write_operators(root: Path) -> Path | None:
    """List the operators and types of all `.ort` files, for reduced builds (`--include_ops_by_config`)."""
    import contextlib
    import io

    found = sorted((root / FOLDER).glob("*.ort"))
    if not found:
        return None
    target = root / FOLDER / OPERATORS
    with contextlib.redirect_stdout(io.StringIO()):
        from onnxruntime.tools.ort_format_model import create_config_from_models

        create_config_from_models(found, target, True)
    lines = [line for line in target.read_text().splitlines() if not line.startswith("#")]
    target.write_text("\n".join([f"# Operators of {', '.join(p.name for p in found)}", *lines]) + "\n")
    return target
