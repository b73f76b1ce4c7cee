"""The bundle's files under imitated Arm processors: the runtimes' own Arm kernels, our C++ runners."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from flashbulb.export.artifact import digest, records
from flashbulb.export.bundle import read_bundle, write_manifest
from flashbulb.runtimes.devices import qemu, toolchain
from flashbulb.runtimes.devices.wire import Link
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.records import Report, read_report
from flashbulb.runtimes.stage import CheckConfig, check

pytest.importorskip("onnxruntime")
pytest.importorskip("executorch")
pytestmark = pytest.mark.slow

CPUS = [model.name for model in qemu.MODELS]


@pytest.fixture(scope="module")
def runners() -> dict[str, Path]:
    if reason := qemu.missing():
        pytest.skip(reason)
    try:
        return {engine: toolchain.runner(engine) for engine in toolchain.KITS}
    except EngineError as error:
        pytest.skip(f"no runtime for Arm here: {error}")


@pytest.fixture(scope="module")
def bundle(runners: dict[str, Path], sticker_bundle: Path) -> Path:
    return sticker_bundle


@pytest.fixture(scope="module")
def checked(bundle: Path) -> Report:
    return check(CheckConfig(bundle=str(bundle), device="qemu", out=str(bundle.parent / "qemu.json")))


def test_every_gate_passes_on_both_processors(checked: Report, bundle: Path):
    assert checked.ok, checked.failures
    labels = {f"{engine}@{cpu}" for engine in ("ort", "executorch") for cpu in CPUS}
    assert {r.engine for r in checked.parity} == labels | {
        f"{label}~{platform.machine()}" for label in labels
    }
    assert {r.engine for r in checked.sanity} == labels | {"bundle"}
    assert read_report(bundle.parent / "qemu.json") == checked


def test_both_kinds_of_kernel_were_there_and_nothing_was_timed(checked: Report):
    assert checked.device.kind == "qemu" and checked.latency == ()
    assert checked.device.attributes == {"cortex-a53": "neon", "cortex-a76": "neon,dotprod,fp16"}
    shown = [r for r in checked.sanity if r.gate == "processor"]
    assert len(shown) == 4 and all(r.verdict == "pass" for r in shown)


def test_a_changed_weight_is_found_against_pytorch(bundle: Path, tmp_path: Path):
    """The file differs from what was exported, and its hash was made to fit: parity must tell."""
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    held = read_bundle(copy)
    artifact = held.artifact("vae_decoder", "ort", "ort")
    file = held.path(artifact)
    data = np.frombuffer(file.read_bytes(), np.uint8).copy()
    whole = data[: len(data) // 4 * 4].view("<f4")
    plain = np.flatnonzero((np.abs(whole) > 1e-3) & (np.abs(whole) < 0.5))
    whole[plain[len(plain) // 2 :: 50]] *= -1.0
    file.write_bytes(data.tobytes())
    files = records(file, held.root)
    size = sum(f.size_bytes for f in files)
    changed = msgspec.structs.replace(artifact, files=files, sha256=digest(files), size_bytes=size)
    every = tuple(changed if a == artifact else a for a in held.manifest.artifacts)
    write_manifest(msgspec.structs.replace(held.manifest, artifacts=every), copy)
    report = check(CheckConfig(bundle=str(copy), device="qemu", engine="ort"))
    failed = {r.quantity for r in report.parity if r.verdict == "fail" and "~" not in r.engine}
    assert {"vae_decoder", "image"} <= failed


@pytest.fixture(params=qemu.MODELS, ids=CPUS)
def launcher(request: pytest.FixtureRequest, runners: dict[str, Path]) -> Iterator[qemu.Qemu]:
    with qemu.processors() as launchers:
        yield next(found for found in launchers if found.model is request.param)


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
    artifact = SimpleNamespace(backend="ort", method=None, component="unet", path="integers.onnx")
    place = SimpleNamespace(path=lambda _: tmp_path / "integers.onnx")
    link: Link = launcher.open(place, artifact, 1)  # type: ignore[arg-type]
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


@pytest.mark.parametrize(("engine", "name"), [("ort", "x.ort"), ("executorch", "x.pte")])
def test_nonsense_is_refused_in_a_sentence(runners: dict[str, Path], tmp_path: Path, engine: str, name: str):
    (tmp_path / name).write_bytes(b"nonsense" * 100)
    artifact = SimpleNamespace(backend=engine, method=None, component="unet", path=name)
    place = SimpleNamespace(path=lambda _: tmp_path / name)
    with qemu.processors() as launchers, pytest.raises(EngineError, match=f"{engine} on cortex-a53, unet: "):
        launchers[0].open(place, artifact, 1)  # type: ignore[arg-type]
