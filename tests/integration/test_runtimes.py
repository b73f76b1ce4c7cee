"""A real bundle of a tiny checkpoint: engines agree with PyTorch, faults inside programs are caught."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from flashbulb.export.artifact import digest, records
from flashbulb.export.bundle import Bundle, read_bundle, write_manifest
from flashbulb.runtimes.engines import Ort
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.gates import engine_gates
from flashbulb.runtimes.records import Report, SanityRecord, read_report
from flashbulb.runtimes.report import ReportConfig, report
from flashbulb.runtimes.stage import BenchConfig, CheckConfig, RunConfig, bench, check, run

pytest.importorskip("onnxruntime")
pytest.importorskip("executorch")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(sticker_bundle: Path) -> Path:
    return sticker_bundle


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def checked(exported: Path) -> Report:
    return check(CheckConfig(bundle=str(exported), threads=1, out=str(exported.parent / "check.json")))


def test_every_engine_passes_every_gate(checked: Report, exported: Path) -> None:
    assert checked.ok, checked.failures
    assert {p.engine for p in checked.parity} == {"eager", "ort", "onnx", "executorch"}
    fused = {p.engine for p in checked.parity if p.quantity == "generator"}
    assert fused == {"eager", "ort", "onnx", "executorch"}
    assert read_report(exported.parent / "check.json") == checked


def test_float32_runtimes_agree_far_above_their_thresholds(checked: Report) -> None:
    values = [p.value_db for p in checked.parity if p.quantity == "image" and not p.exact]
    assert min(v for v in values if v is not None) > 90.0


@pytest.mark.parametrize("prompt", ["", "a cat 🐸", "一只红苹果", "apple " * 500])
def test_all_engines_draw_the_same_picture_from_any_prompt(
    exported: Path, tmp_path: Path, prompt: str
) -> None:
    from PIL import Image

    pictures = []
    for engine in ("eager", "ort", "executorch"):
        out = tmp_path / f"{engine}.png"
        run(RunConfig(bundle=str(exported), prompt=prompt, seed=5, engine=engine, out=str(out), threads=1))
        pictures.append(np.asarray(Image.open(out)).astype(int))
    assert pictures[0].shape == (64, 64, 3)
    assert max(np.abs(p - pictures[0]).max() for p in pictures) <= 1


def test_components_and_generator_draw_one_picture_enlarged_or_not(exported: Path, tmp_path: Path) -> None:
    from PIL import Image

    shape = []
    for fused, scale in ((True, 1), (False, 3)):
        config = RunConfig(
            bundle=str(exported), prompt="a", out=str(tmp_path / "x.png"), fused=fused, scale=scale
        )
        shape.append(np.asarray(Image.open(run(config)))[::scale, ::scale].astype(int))
    assert np.abs(shape[0] - shape[1]).max() <= 1


@pytest.mark.parametrize(
    "name", ["onnx/unet.ort", "onnx/vae_decoder.onnx", "executorch/model.pte", "golden/vectors.safetensors"]
)
def test_one_flipped_bit_in_a_file_fails_the_check_and_stops_a_run(copied: Path, name: str) -> None:
    path = copied / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    found = check(CheckConfig(bundle=str(copied), engine="ort"))
    assert not found.ok
    assert name in found.failures[0]
    assert not found.parity
    with pytest.raises(ValueError, match=name):
        run(RunConfig(bundle=str(copied), prompt="a", out=str(copied.parent / "x.png")))


def planted(root: Path, component: str, change: Callable[[Any], None]) -> dict[str, str]:
    """Edit the weights of one ``.onnx``, make the manifest vouch for it, and return what fails."""
    import onnx

    path = root / f"onnx/{component}.onnx"
    model = onnx.load(path)
    change({w.name: w for w in model.graph.initializer})
    onnx.save(model, path)
    bundle = rehashed(read_bundle(root))
    found = {}
    for item in engine_gates(bundle, Ort(artifact_format="onnx"), 1):
        if item.verdict == "fail":
            found[item.gate if isinstance(item, SanityRecord) else item.quantity] = item.sentence
    return found


def rehashed(bundle: Bundle) -> Bundle:
    artifacts = []
    for a in bundle.manifest.artifacts:
        files = records(bundle.path(a), bundle.root)
        size = sum(f.size_bytes for f in files)
        artifacts.append(msgspec.structs.replace(a, files=files, sha256=digest(files), size_bytes=size))
    write_manifest(msgspec.structs.replace(bundle.manifest, artifacts=tuple(artifacts)), bundle.root)
    return read_bundle(bundle.root)


def rewrite(weight: Any, change: Callable[[np.ndarray], np.ndarray]) -> None:
    from onnx import numpy_helper

    value = change(numpy_helper.to_array(weight).copy())
    weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), weight.name))


def matching(weights: dict[str, Any], part: str) -> list[Any]:
    found = [w for name, w in weights.items() if part in name]
    assert found, sorted(weights)
    return found


def test_an_untouched_copy_passes(copied: Path) -> None:
    assert planted(copied, "unet", lambda weights: None) == {}


def test_nan_in_a_weight(copied: Path) -> None:
    def change(weights: dict[str, Any]) -> None:
        rewrite(matching(weights, "conv_out.bias")[0], lambda v: v * np.float32(np.nan))

    found = planted(copied, "unet", change)
    assert "NaN or infinite" in found["unet"]
    assert {"x0", "image", "range.pipeline"} <= set(found)


def test_swapped_output_channels(copied: Path) -> None:
    def change(weights: dict[str, Any]) -> None:
        for weight in matching(weights, "conv_out"):
            rewrite(weight, lambda v: v[::-1])

    found = planted(copied, "vae_decoder", change)
    assert "order BGR" in found["vae_decoder"]
    assert "fused" in found


def test_conditioning_cut_off(copied: Path) -> None:
    def change(weights: dict[str, Any]) -> None:
        for weight in matching(weights, "token_embedding"):
            rewrite(weight, np.zeros_like)

    found = planted(copied, "generator", change)
    assert {"prompt_sensitivity.generator", "generator", "fused"} <= set(found)
    assert "noise_sensitivity.generator" not in found


def test_a_black_picture(copied: Path) -> None:
    def change(weights: dict[str, Any]) -> None:
        for weight in matching(weights, "conv_out.weight"):
            rewrite(weight, np.zeros_like)
        for weight in matching(weights, "conv_out.bias"):
            rewrite(weight, lambda v: v * 0 - 5)

    found = planted(copied, "vae_decoder", change)
    assert {"vae_decoder", "variance.pipeline", "noise_sensitivity.pipeline", "image"} <= set(found)
    assert "one colour" in found["image"]


def test_the_baseline_pipeline_draws_our_picture_from_our_files(copied: Path) -> None:
    pytest.importorskip("optimum.onnxruntime")
    from flashbulb.runtimes.baseline import Optimum
    from flashbulb.runtimes.parity import measure

    # A scheduler that ends at x0 itself, as those of our students do; this test's one stops short of it.
    scheduler = copied / "optimum/scheduler/scheduler_config.json"
    scheduler.write_text(
        scheduler.read_text().replace('"set_alpha_to_one": false', '"set_alpha_to_one": true')
    )
    bundle = read_bundle(copied)
    session = Optimum(folder=str(copied / "optimum")).load(bundle)
    case = bundle.golden()[0]
    found = measure(case["image"], session.run("generator", case)["image"])
    assert found.psnr_db is not None
    assert found.psnr_db > 60.0


def test_bench_times_every_engine_beside_eager(exported: Path, checked: Report, tmp_path: Path) -> None:
    found = bench(BenchConfig(bundle=str(exported), runs=10, seconds=2, out=str(tmp_path / "bench.json")))
    assert found.ok, found.failures
    timed = {(r.engine, r.target) for r in found.latency}
    assert {
        ("eager", "generator"),
        ("ort", "generator"),
        ("ort", "unet"),
        ("executorch", "pipeline"),
    } <= timed
    assert all(r.ratio_to_eager and r.p50_ms <= r.p90_ms <= r.p99_ms for r in found.latency)
    assert all(r.peak_rss_bytes > r.baseline_rss_bytes > 10_000_000 for r in found.latency)
    by_engine = {r.engine: r.peak_rss_bytes for r in found.latency}
    assert by_engine["ort"] < by_engine["eager"]
    page = report(
        ReportConfig(
            bundle=str(exported),
            out=str(tmp_path / "report.html"),
            reports=(str(exported.parent / "check.json"), str(tmp_path / "bench.json")),
            teacher=read_bundle(exported).manifest.source.checkpoint,
            teacher_steps=2,
        )
    ).read_text()
    assert page.count("<img") == 4 * 5
    assert "teacher, 2 steps" in page


def test_a_budget_that_is_not_met_fails(exported: Path) -> None:
    config = BenchConfig(bundle=str(exported), engine="ort", runs=5, seconds=1, budget_ms=1e-6)
    late = [r for r in bench(config).latency if r.target in ("generator", "pipeline")]
    assert late
    assert all(r.verdict in ("fail", "skip") for r in late)


def test_a_moved_checkpoint_leaves_everything_but_eager(copied: Path) -> None:
    bundle = read_bundle(copied)
    source = msgspec.structs.replace(bundle.manifest.source, checkpoint="gone/away")
    write_manifest(msgspec.structs.replace(bundle.manifest, source=source), copied)
    found = check(CheckConfig(bundle=str(copied)))
    assert found.ok
    assert any("gone/away is not on this machine" in s for s in found.skipped)
    with pytest.raises(EngineError, match="gone/away"):
        check(CheckConfig(bundle=str(copied), engine="eager"))


def test_another_checkpoint_is_not_taken_for_the_bundles(exported: Path, tiny_sd: Path) -> None:
    with pytest.raises(EngineError, match="that the bundle was exported from"):
        check(CheckConfig(bundle=str(exported), engine="eager", checkpoint=str(tiny_sd)))
