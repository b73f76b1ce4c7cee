"""The bundle's files under imitated Arm processors: the runtimes' own Arm kernels, our C++ runners."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from flashbulb.export.bundle import read_bundle
from flashbulb.runtimes.devices import qemu
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.records import Report, read_report
from flashbulb.runtimes.stage import CheckConfig, check

pytest.importorskip("onnxruntime")
pytest.importorskip("executorch")
pytestmark = pytest.mark.slow

CPUS = [model.name for model in qemu.MODELS]


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


def test_a_changed_weight_is_found_against_pytorch(bundle: Path, tmp_path: Path, resign):
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
    resign(copy)
    report = check(CheckConfig(bundle=str(copy), device="qemu", engine="ort"))
    failed = {r.quantity for r in report.parity if r.verdict == "fail" and "~" not in r.engine}
    assert {"vae_decoder", "image"} <= failed


@pytest.mark.parametrize(("engine", "name"), [("ort", "x.ort"), ("executorch", "x.pte")])
def test_nonsense_is_refused_in_a_sentence(runners: dict[str, Path], tmp_path: Path, engine: str, name: str):
    (tmp_path / name).write_bytes(b"nonsense" * 100)
    artifact = SimpleNamespace(backend=engine, method=None, component="unet", path=name)
    place = SimpleNamespace(path=lambda _: tmp_path / name)
    with qemu.processors() as launchers, pytest.raises(EngineError, match=f"{engine} on cortex-a53, unet: "):
        launchers[0].open(place, artifact, 1)  # type: ignore[arg-type]
