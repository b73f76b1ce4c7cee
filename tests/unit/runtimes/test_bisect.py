"""A fault that is planted in the middle of a network is named, in every format; sound programs have none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flashbulb.export.anatomy.listing import AnatomyError, Node
from flashbulb.export.bundle import Bundle, read_bundle
from flashbulb.runtimes.bisect.reference import Activation, Reference
from flashbulb.runtimes.bisect.walk import walk
from flashbulb.runtimes.records import SanityRecord

pytest.importorskip("onnxruntime")
pytest.importorskip("executorch")
pytest.importorskip("coremltools")
slow = pytest.mark.slow
WEIGHT = "up_blocks.0.resnets.0.conv2.bias"
PLACE = "up_blocks.0.resnets.0.conv2 (aten.convolution)"
Found = dict[tuple[str, str], SanityRecord]


def found(root: Path) -> Found:
    from flashbulb.runtimes.bisect.stage import bisect

    records = bisect(read_bundle(root))
    return {(r.engine, r.gate.removeprefix("bisect.")): r for r in records}


@pytest.fixture
def copied(programs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(programs, tmp_path / "bundle"))


def bias(root: Path) -> np.ndarray[Any, Any]:
    """The bias of a convolution in the middle of the UNet, as the checkpoint has it."""
    from safetensors.numpy import load_file

    source = Path(read_bundle(root).manifest.source.checkpoint)
    return load_file(next((source / "unet").glob("*.safetensors")))[WEIGHT]


@slow
def test_sound_programs_depart_nowhere(programs: Path) -> None:
    records = found(programs)
    assert {engine for engine, _ in records} == {"onnx", "ort", "executorch", "mil", "mil-fp16"}
    assert [r.sentence for r in records.values() if r.verdict != "pass"] == []
    assert len(records) == 5 * 3


@slow
@pytest.mark.parametrize(
    ("path", "dtype"),
    [
        ("onnx/unet.onnx", "<f4"),
        ("onnx/unet.ort", "<f4"),
        ("executorch/model.pte", "<f4"),
        ("coreml/unet.mlpackage/Data/com.apple.CoreML/weights/weight.bin", "<f2"),
    ],
)
def test_a_wrong_bias_is_named_by_operation_and_layer(
    copied: Path, resign: Callable[[Path], Bundle], path: str, dtype: str
) -> None:
    old = bias(copied).astype(dtype)
    new = old.copy()
    new[3] += 0.5
    data = (copied / path).read_bytes()
    assert data.count(old.tobytes()) == 1
    (copied / path).write_bytes(data.replace(old.tobytes(), new.tobytes()))
    resign(copied)
    failed = [r for r in found(copied).values() if r.verdict == "fail" and r.engine != "mil-fp16"]
    assert len(failed) == 1
    assert failed[0].gate == "bisect.unet"
    assert f"expected {PLACE}" in failed[0].sentence
    assert "(Conv" in failed[0].sentence or "(conv)" in failed[0].sentence


@slow
def test_a_wrong_activation_of_a_core_ml_program_is_named_and_its_twin_fails(
    copied: Path, resign: Callable[[Path], Bundle]
) -> None:
    from coremltools.proto import Model_pb2

    path = copied / "coreml/unet.mlpackage/Data/com.apple.CoreML/model.mlmodel"
    model = Model_pb2.Model()
    model.ParseFromString(path.read_bytes())
    function = model.mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    planted = [o for o in operations if o.type == "silu"][6]
    planted.type = "relu"
    path.write_bytes(model.SerializeToString())
    bundle = resign(copied)
    record = found(copied)["mil", "unet"]
    assert record.verdict == "fail"
    assert f"departs is {planted.outputs[0].name!r} (relu)" in record.sentence
    from flashbulb.runtimes.program_gates import program_gates

    verdicts = {r.gate: r.verdict for r in program_gates(bundle)}
    assert verdicts["twin.unet"] == "fail"
    assert verdicts["twin.text_encoder"] == verdicts["twin.vae_decoder"] == "pass"


@slow
def test_what_simulated_float16_loses_is_named_where_it_happens(
    copied: Path, resign: Callable[[Path], Bundle]
) -> None:
    old = bias(copied).astype("<f2")
    new = old.copy()
    new[3] = 60000.0
    path = copied / "coreml/unet.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    path.write_bytes(path.read_bytes().replace(old.tobytes(), new.tobytes()))
    resign(copied)
    record = found(copied)["mil-fp16", "unet"]
    assert record.verdict == "fail"
    assert f"expected {PLACE}" in record.sentence


@slow
def test_a_wrong_attribute_of_an_onnx_graph_is_named(copied: Path, resign: Callable[[Path], Bundle]) -> None:
    import onnx

    path = copied / "onnx/unet.onnx"
    model = onnx.load(path)
    planted = [n for n in model.graph.node if n.op_type == "LayerNormalization"][2]
    next(a for a in planted.attribute if a.name == "epsilon").f = 0.1
    onnx.save(model, path)
    resign(copied)
    record = found(copied)["onnx", "unet"]
    assert f"departs is {planted.output[0]!r} (LayerNormalization)" in record.sentence


@slow
def test_check_bisects_when_asked(programs: Path) -> None:
    from flashbulb.runtimes.stage import CheckConfig, check

    report = check(CheckConfig(bundle=str(programs), engine="ort", bisect=True, threads=1))
    gates = {(r.engine, r.gate) for r in report.sanity if r.gate.startswith("bisect")}
    assert gates == {
        (e, f"bisect.{c}") for e in ("ort", "onnx") for c in ("text_encoder", "unet", "vae_decoder")
    }
    assert report.ok, report.failures


def chain(*faults: int) -> Any:
    """Walk a chain of four doublings and a branch, with wrong results from some of them on."""
    values = [np.arange(8, dtype=np.float32) * 2**i + i for i in range(5)]
    told = [Activation(f"layer{i}", "aten.mul", v) for i, v in enumerate(values) if i != 2]
    nodes = tuple(Node("double", (f"v{i}",), (f"v{i + 1}",), "") for i in range(4))
    got = {f"v{i + 1}": values[i + 1] for i in range(4)}
    got |= {f"v{i}": got[f"v{i}"][::-1] * 1.5 for i in faults}
    return walk(nodes, got.items(), ["v4"], Reference(told), 60.0)


def test_an_operation_without_counterpart_is_no_departure() -> None:
    sound = chain()
    assert sound.finding is None
    assert (sound.compared, sound.agreed) == (4, 3)


def test_the_first_departed_operation_is_named() -> None:
    finding = chain(3, 4).finding
    assert finding.node.outputs == ("v2",)  # without a counterpart, hence within what departed
    assert "layer1" in finding.before
    assert chain(4).finding.node.outputs == ("v4",)
    assert "layer3" in chain(4).finding.before


def test_an_operation_that_is_poorer_inside_is_named_though_the_outputs_agree() -> None:
    values = [np.arange(8, dtype=np.float32) + i for i in range(4)]
    told = Reference([Activation(f"layer{i}", "aten.add", v) for i, v in enumerate(values)])
    nodes = tuple(Node("add", (f"v{i}",), (f"v{i + 1}",), "") for i in range(3))
    got = {"v1": values[1], "v2": values[2] * np.float32(1.01), "v3": values[3]}
    found = walk(nodes, got.items(), ["v3"], told, 60.0)
    assert (found.finding, found.compared, found.agreed) == (None, 3, 2)
    assert found.poorer is not None
    assert found.poorer.node.outputs == ("v2",)
    assert found.poorer.snr_db == pytest.approx(40.0, abs=0.1)
    assert "layer2" in found.poorer.expected
    poor = {"v1": values[1], "v2": values[2], "v3": values[3] * np.float32(1.01)}
    assert walk(nodes, poor.items(), ["v3"], told, 30.0).finding is None
    finding = walk(nodes, poor.items(), ["v3"], told, 30.0, 60.0).finding  # more is wanted of outputs
    assert finding is not None and finding.node.outputs == ("v3",)
    got["v2"] = values[2][::-1]  # like no activation: a step inside a fused operation
    assert walk(nodes, got.items(), ["v3"], told, 60.0).poorer is None


def test_a_part_of_an_operation_is_not_poorer_than_it() -> None:
    """A product is nearly what it is with its bias, and PyTorch has no activation without it."""
    x, whole = np.arange(8, dtype=np.float32), np.arange(8, dtype=np.float32) * 3 + 1
    told = Reference([Activation("", "input", x), Activation("linear", "aten.linear", whole * np.float32(1))])
    nodes = (Node("MatMul", ("x", "w"), ("p",), ""), Node("Add", ("p", "b"), ("y",), ""))
    got = {"p": whole * np.float32(1.01), "y": whole}
    assert walk(nodes, got.items(), ["y"], told, 60.0).poorer is None


def test_arguments_of_a_delegate_are_in_the_order_of_their_external_ids() -> None:
    from flashbulb.export.anatomy.xnnpack import Graph, _externs

    graph = Graph("d1.")
    graph.externs = {"d1.0": 34, "d1.2": 0, "d1.3": 1}
    root: Any = SimpleNamespace(array=lambda number, kind: np.asarray([0, 2, 3]))
    assert _externs(graph, root, 4) == ["d1.2", "d1.3", "d1.0"]
    assert graph.lines["d1.(inputs)"] == "d1.0, d1.2, d1.3"


def test_an_output_of_one_value_departs() -> None:
    """A black picture is like no picture, however many tensors of zeros there are."""
    told = Reference(
        [Activation("zeros", "aten.zeros", np.zeros(8, np.float32)), Activation("", "input", np.arange(8.0))]
    )
    nodes = (Node("double", ("x",), ("y",), ""), Node("cut", ("y",), ("z",), ""))
    got = [("y", np.arange(8, dtype=np.float32)), ("z", np.zeros(8, np.float32))]
    finding = walk(nodes, got, ["z"], told, 60.0).finding
    assert finding is not None and finding.node.op == "cut"


def test_an_output_that_is_not_shown_is_an_error() -> None:
    told = Reference([Activation("", "input", np.arange(8.0))])
    nodes = (Node("double", ("x",), ("y",), ""),)
    with pytest.raises(AnatomyError, match="every output"):
        walk(nodes, [("x", np.arange(8, dtype=np.float32))], ["y"], told, 60.0)


def test_values_that_are_not_finite_are_said_to_be() -> None:
    told = Reference([Activation("", "input", np.arange(4, dtype=np.float32))])
    broken = np.full(4, np.nan, np.float32)
    finding = walk((Node("log", ("x",), ("y",), ""),), [("y", broken)], ["y"], told, 60.0).finding
    assert finding is not None
    assert not finding.finite


def test_activations_are_found_in_any_order_of_axes() -> None:
    values = np.random.default_rng(0).standard_normal((1, 3, 4, 5)).astype(np.float32)
    told = Reference([Activation("conv", "aten.convolution", values)])
    assert told.like(np.ascontiguousarray(values.transpose(0, 2, 3, 1)), 90.0) == 0
    assert told.like(values + np.float32(0.01), 90.0) == -1
    assert told.nearest(values + np.float32(0.01))[1] == pytest.approx(40.0, abs=1.0)
