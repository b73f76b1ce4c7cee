"""Integer arithmetic on imitated Arm processors, with and without the int8 dot product."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flashbulb.export.bundle import read_bundle
from flashbulb.runtimes.bisect.reference import snr_db
from flashbulb.runtimes.bisect.stage import golden_inputs
from flashbulb.runtimes.devices import qemu
from flashbulb.runtimes.devices.wire import Link
from flashbulb.runtimes.engines.base import EngineError

pytest.importorskip("onnxruntime")
pytest.importorskip("executorch")
pytestmark = pytest.mark.slow

ORT_DB = 40.0
"""Least ratio between processors of a UNet whose uint8 activations ORT rounds; measured: 49 dB.

Kernels round sums at different places.  With signed activations it is 32 dB: on x86 some operators have
kernels only for unsigned ones, so that graphs are fused in another way there.
"""
XNNPACK_DB = 100.0
"""The same of a network that XNNPACK runs in int8; measured: not a bit of difference."""
FLOAT_DB = 15.0
"""Least ratio of either to float32: here a rounded network shall work, not be good."""

Arrays = Mapping[str, np.ndarray[Any, Any]]


def opened(launcher: qemu.Qemu, engine: str, path: Path, method: str | None = None) -> Link:
    """Start a runner on any file."""
    artifact = SimpleNamespace(backend=engine, method=method, component="unet", path=path.name)
    place = SimpleNamespace(path=lambda _: path)
    return launcher.open(place, artifact, 1)  # type: ignore[arg-type]


def integers(path: Path) -> np.ndarray:
    """Write a model that multiplies int8 matrices exactly, and return its weight."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).integers(-128, 128, (96, 40), dtype=np.int8)
    given = helper.make_tensor_value_info("x", TensorProto.UINT8, [16, 96])
    found = helper.make_tensor_value_info("y", TensorProto.INT32, [16, 40])
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "integers", [given], [found], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return weight


def test_int8_products_are_exact_with_and_without_the_dot_product(launcher: qemu.Qemu, tmp_path: Path):
    weight = integers(tmp_path / "integers.onnx")
    given = np.random.default_rng(1).integers(0, 256, (16, 96), dtype=np.uint8)
    link = opened(launcher, "ort", tmp_path / "integers.onnx")
    (found,) = link.run({"x": given}, ["y"])
    np.testing.assert_array_equal(found, given.astype(np.int32) @ weight.astype(np.int32))
    assert ("dotprod" in link.hello.features) is launcher.model.dotprod
    with pytest.raises(EngineError, match=r"(?i)dimension|shape"):
        link.run({"x": given[:, :5]}, ["y"])
    with pytest.raises(EngineError, match=r"(?i)input"):
        link.run({"z": given}, ["y"])
    np.testing.assert_array_equal(link.run({"x": given}, ["y"])[0], found)
    assert link.peak_rss_bytes() >= link.hello.rss_bytes > 1 << 20
    took = [link.last(), *link.time(3)]
    assert len(took) == 4 and all(0 < t.cpu_ms <= 1.5 * t.wall_ms + 1 for t in took)
    link.close()


def quantized(source: Path, inputs: Arrays, path: Path) -> None:
    """Write a model whose convolutions and products take uint8 activations and int8 weights of seven bits.

    With eight bits the sums of two products saturate on x86 processors that have AVX2 but no VNNI, where it
    is then this processor that is wrong, at 12 dB.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Once(CalibrationDataReader):
        left = [dict(inputs)]

        def get_next(self) -> Arrays | None:
            return self.left.pop() if self.left else None

    quantize_static(
        str(source),
        str(path),
        Once(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
    )


def test_a_unet_with_int8_activations_agrees_with_this_processor(
    launcher: qemu.Qemu, sticker_bundle: Path, tmp_path: Path
):
    import onnxruntime

    bundle = read_bundle(sticker_bundle)
    artifact = bundle.artifact("unet", "ort", "onnx")
    inputs, names = golden_inputs(bundle, artifact), [s.name for s in artifact.outputs]
    path = tmp_path / "unet.onnx"
    quantized(bundle.path(artifact), inputs, path)
    (exact,) = onnxruntime.InferenceSession(str(bundle.path(artifact))).run(names, dict(inputs))
    (here,) = onnxruntime.InferenceSession(str(path)).run(names, dict(inputs))
    (there,) = opened(launcher, "ort", path).run(dict(inputs), names)
    assert FLOAT_DB < snr_db(exact, there) < 60.0  # it is rounded
    assert snr_db(here, there) > ORT_DB


def delegated(path: Path, given: Any) -> Any:
    """Write a small network for XNNPACK, quantized with its own quantizer, and return the float one."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torch import nn
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(8, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(24 * 16, 40),
    ).eval()
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(network, (given,)).module(), quantizer)
    prepared(given)
    program = torch.export.export(convert_pt2e(prepared), (given,))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)
    return network


def test_xnnpacks_int8_agrees_with_this_processor(launcher: qemu.Qemu, tmp_path: Path):
    import torch
    from executorch.extension.pybindings import portable_lib

    given = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 8, 8, 8)).astype(np.float32))
    path = tmp_path / "network.pte"
    exact = delegated(path, given)(given).detach().numpy()
    (here,) = portable_lib._load_for_executorch(str(path)).forward((given,))
    (there,) = opened(launcher, "executorch", path, "forward").run({"x": given.numpy()}, ["y"])
    assert FLOAT_DB < snr_db(exact, there) < 60.0  # it is rounded
    assert snr_db(here.numpy(), there) > XNNPACK_DB
