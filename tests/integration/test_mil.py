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


Outputs = dict[str, list[np.ndarray]]


def eager(checkpoint: Path, bundle: Bundle, dtype: str) -> Outputs:
    """Run in PyTorch what was converted: `float16`, or only weights of it (`weights`), or neither."""
    import torch

    from flashbulb.export.backends import Coreml
    from flashbulb.export.graph import build

    opened, found = Checkpoint.open(checkpoint), {}
    step = one_step(opened.config("scheduler"), opened.config("vae"))
    for graph in build(opened, step, Coreml().rewrite(), generator=False):
        module = graph.module if dtype == "float32" else graph.module.half()
        module = module.float() if dtype == "weights" else module
        given = [[torch.from_numpy(case[s.name]) for s in graph.inputs] for case in bundle.golden()]
        if dtype == "float16":
            given = [[t.half() if t.is_floating_point() else t for t in row] for row in given]
        with torch.no_grad():
            found[graph.component] = [module(*row).float().numpy() for row in given]
    return found


def interpreted(bundle: Bundle, mode: str) -> Outputs:
    session = {a.component: a for a in bundle.manifest.artifacts if a.component != "generator"}
    found: Outputs = {}
    for name, artifact in session.items():
        program = Program.load(bundle.path(artifact), mode)  # type: ignore[arg-type]
        rows = [{s.name: case[s.name] for s in artifact.inputs} for case in bundle.golden()]
        found[name] = [program.predict(row)[artifact.outputs[0].name] for row in rows]
    return found


def noise(found: Outputs, wanted: Outputs) -> dict[str, float]:
    """Return the power of the error over that of the signal for each component, mean of all cases."""

    def one(f: np.ndarray, w: np.ndarray) -> float:
        return float(((f.astype(np.float64) - w) ** 2).mean() / (w.astype(np.float64) ** 2).mean())

    return {n: float(np.mean([one(f, w) for f, w in zip(found[n], wanted[n], strict=True)])) for n in wanted}


@pytest.fixture(scope="module")
def exact(exported: Path, tiny_sticker: Path) -> Outputs:
    return eager(tiny_sticker, read_bundle(exported), "float32")


def test_without_rounding_only_the_stored_weights_differ(
    exported: Path, tiny_sticker: Path, exact: Outputs
) -> None:
    """A weight of fp16 is off by up to 2**-11 of itself, which leaves some 64 dB here, in PyTorch as well.

    Given the same weights PyTorch must agree; what is left are fp16 scalars such as gelu's 1.702.  Less than
    a hundredth of the error's power may be anything else than the weights.
    """
    bundle = read_bundle(exported)
    found = interpreted(bundle, "fp32")
    whole, rest = noise(found, exact), noise(found, eager(tiny_sticker, bundle, "weights"))
    assert whole.keys() == {"text_encoder", "unet", "vae_decoder"}
    for name in whole:
        assert rest[name] < whole[name] / 100, (name, whole, rest)


def test_rounding_costs_what_it_costs_pytorch(
    exported: Path, tiny_sticker: Path, exact: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both round each result once, at the same places but for what Core ML folds and PyTorch fuses.

    The error's power is then the same up to chance; a factor of two either way is not chance.
    """
    import torch

    from flashbulb.runtimes.engines.mil import plan

    bundle = read_bundle(exported)
    wanted = noise(eager(tiny_sticker, bundle, "float16"), exact)

    def ratios() -> list[float]:
        found = noise(interpreted(bundle, "fp16"), exact)
        return [found[name] / wanted[name] for name in wanted]

    assert all(0.5 < r < 2 for r in ratios()), ratios()
    monkeypatch.setattr(plan, "half", lambda x: x.to(torch.bfloat16).to(torch.float32))
    assert min(ratios()) > 2
    monkeypatch.setattr(plan, "half", lambda x: x)
    assert max(ratios()) < 0.5


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
