"""Every intermediate value of an ONNX graph, from `.onnx` or `.ort`: a copy has all of them as outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flashbulb.distill.components import TensorSpec
from flashbulb.export.anatomy.decoding import RawGraph, RawNode
from flashbulb.export.anatomy.listing import Array
from flashbulb.export.artifact import Artifact
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.engines.ort import ort_errors

IR_VERSION = 10


def values(path: Path, artifact: Artifact, inputs: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """Run a program without any optimisation and yield the value of every node.

    Args:
        path: the file.
        artifact: what the manifest says of it.
        inputs: arrays by the names of its inputs.

    Raises:
        EngineError: when ONNX Runtime refuses the copy.
    """
    import onnxruntime

    model = _model(path, artifact)
    held = {i.name for i in model.graph.output}
    names = [n for node in model.graph.node for n in node.output if n and n not in held]
    model.graph.output.extend(_untyped(n) for n in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        wanted = [o.name for o in session.get_outputs()]
        found = session.run(wanted, {s.name: inputs[s.name] for s in artifact.inputs})
    except ort_errors() as error:
        raise EngineError(f"ONNX Runtime refused {path.name} with all its values shown: {error}") from error
    yield from ((n, np.asarray(v)) for n, v in zip(wanted, found, strict=True) if isinstance(v, np.ndarray))


def _model(path: Path, artifact: Artifact) -> Any:
    if artifact.format == "onnx":
        import onnx

        return onnx.load(str(path))
    from flashbulb.export.anatomy.ort import raw_ort

    return rebuild(raw_ort(path), artifact)


def rebuild(graph: RawGraph, artifact: Artifact) -> Any:
    """Write a graph that was read from an `.ort` file as an ONNX model."""
    from onnx import helper, numpy_helper

    stored = [numpy_helper.from_array(np.array(load()), name) for name, load in graph.raws.items()]
    nodes = [_node(n) for n in _ordered(graph)]
    inputs = [_typed(s) for s in artifact.inputs]
    made = helper.make_graph(nodes, artifact.component, inputs, [_typed(s) for s in artifact.outputs], stored)
    opsets = [helper.make_opsetid("" if d == "ai.onnx" else d, v) for d, v in graph.opsets.items()]
    return helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION)


def _ordered(graph: RawGraph) -> list[RawNode]:
    from flashbulb.export.anatomy.listing import Node, arrange

    by_output = {n.outputs[0]: n for n in graph.nodes}
    order = arrange(Node(n.op, tuple(i for i in n.inputs if i), n.outputs, "") for n in graph.nodes)
    return [by_output[n.outputs[0]] for n in order]


def _node(node: RawNode) -> Any:
    from onnx import helper, numpy_helper

    domain, _, op = node.op.rpartition(".")
    options = {
        k: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for k, v in node.attributes.items()
    }
    return helper.make_node(op, node.inputs, node.outputs, domain=domain, **options)


def _typed(spec: TensorSpec) -> Any:
    import onnx

    kinds = {"float32": onnx.TensorProto.FLOAT, "int32": onnx.TensorProto.INT32}
    return onnx.helper.make_tensor_value_info(spec.name, kinds[spec.dtype], spec.shape)


def _untyped(name: str) -> Any:
    import onnx

    return onnx.ValueInfoProto(name=name)
