"""Core ML programs of a tiny checkpoint run here: they agree with PyTorch, and faults in them are caught."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.schedule import one_step
from flashbulb.export.artifact import digest, records
from flashbulb.export.bundle import Bundle, read_bundle, write_manifest
from flashbulb.runtimes.engines import Mil
from flashbulb.runtimes.engines.mil import Program
from flashbulb.runtimes.gates import engine_gates
from flashbulb.runtimes.records import Report, SanityRecord
from flashbulb.runtimes.stage import CheckConfig, RunConfig, check, run

pytest.importorskip("coremltools")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("FLASHBULB_SLOW_TESTS") != "1",
        reason="minutes of conversions: FLASHBULB_SLOW_TESTS=1 runs them",
    ),
]


@pytest.fixture(scope="module")
def exported(tiny_sticker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is shipped: fp16 for iOS 16."""
    from flashbulb.export import stage
    from flashbulb.export.backends import Coreml

    out = tmp_path_factory.mktemp("mil") / "bundle"
    return stage.run(stage.ExportConfig(checkpoint=str(tiny_sticker), out=str(out), backends=(Coreml(),)))


@pytest.fixture(scope="module")
def checked(exported: Path) -> Report:
    return check(CheckConfig(bundle=str(exported), threads=1))


def test_a_check_without_a_mac_judges_the_core_ml_programs(checked: Report) -> None:
    assert checked.ok, checked.failures
    assert {p.engine for p in checked.parity} >= {"eager", "mil", "mil-fp16"}
    if sys.platform != "darwin":
        assert any("only macOS has" in s for s in checked.skipped)
    quantities = {p.quantity for p in checked.parity if p.engine == "mil-fp16"}
    assert quantities == {"text_encoder", "unet", "vae_decoder", "x0", "image", "generator"}


def test_rounding_costs_what_fp16_costs_and_no_more(checked: Report) -> None:
    values = {
        name: [p.value_db for p in checked.parity if p.engine == name and p.quantity == "unet"]
        for name in ("mil", "mil-fp16")
    }
    least = {name: min(v for v in found if v is not None) for name, found in values.items()}
    assert 50 < least["mil-fp16"] < least["mil"]  # also without rounding, weights are stored as fp16


@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
def test_fp32_programs_agree_to_rounding(
    exported: Path, tiny_sticker: Path, tmp_path: Path, target: str
) -> None:
    from flashbulb.export.backends import Coreml
    from flashbulb.export.graph import build

    checkpoint = Checkpoint.open(tiny_sticker)
    step = one_step(checkpoint.config("scheduler"), checkpoint.config("vae"))
    backend = Coreml(target=target, precision="float32")  # type: ignore[arg-type]
    graphs = [g for g in build(checkpoint, step, backend.rewrite()) if g.component != "generator"]
    golden = read_bundle(exported).golden()[0]
    for artifact in backend.lower(graphs, {}, tmp_path):
        found = Program.load(tmp_path / artifact.path).predict(
            {s.name: golden[s.name] for s in artifact.inputs}
        )
        for spec in artifact.outputs:
            error = found[spec.name].astype(np.float64) - golden[spec.name]
            power = (np.asarray(golden[spec.name], np.float64) ** 2).mean() / (error**2).mean()
            assert 10 * np.log10(power) > 110, (artifact.component, spec.name)


def test_run_draws_with_the_program(exported: Path, tmp_path: Path) -> None:
    from PIL import Image

    pictures = []
    for engine in ("mil", "eager"):
        out = tmp_path / f"{engine}.png"
        run(RunConfig(bundle=str(exported), prompt="a red apple", engine=engine, out=str(out), threads=1))  # type: ignore[arg-type]
        pictures.append(np.asarray(Image.open(out)).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 8


def rehashed(bundle: Bundle) -> Bundle:
    """Let the manifest vouch for what lies there now."""
    artifacts = []
    for a in bundle.manifest.artifacts:
        files = records(bundle.path(a), bundle.root)
        size = sum(f.size_bytes for f in files)
        artifacts.append(msgspec.structs.replace(a, files=files, sha256=digest(files), size_bytes=size))
    write_manifest(msgspec.structs.replace(bundle.manifest, artifacts=tuple(artifacts)), bundle.root)
    return read_bundle(bundle.root)


def test_a_weight_that_changed_sign_and_a_broken_model_fail_the_check(exported: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(exported, tmp_path / "bundle"))
    weights = root / "coreml/unet.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    data = np.fromfile(weights, np.uint8)
    half = data.size // 2 // 64 * 64
    data[half + 1 : half + 2049 : 2] ^= 0x80
    data.tofile(weights)
    model = root / "coreml/vae_decoder.mlpackage/Data/com.apple.CoreML/model.mlmodel"
    bundle = rehashed(read_bundle(root))
    failed = {
        r.quantity for r in engine_gates(bundle, Mil(), 1) if r.verdict == "fail" and hasattr(r, "quantity")
    }
    assert {"unet", "x0"} <= failed
    assert "text_encoder" not in failed
    model.write_bytes(model.read_bytes()[:-100])
    found = list(engine_gates(rehashed(bundle), Mil(), 1))
    assert [r.gate for r in found if isinstance(r, SanityRecord) and r.verdict == "fail"] == ["load"]
