"""A bundle is whole, is checked as its readers check it, and survives being killed half-way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.export import encodings
from flashbulb.export.backends import AnyBackend, Ort
from flashbulb.export.backends.base import Backend
from flashbulb.export.bundle import Bundle, BundleError, read_bundle, verify
from flashbulb.export.doctor import DoctorConfig
from flashbulb.export.doctor import run as diagnose
from flashbulb.export.noise import gaussian
from flashbulb.export.stage import ExportConfig, run
from flashbulb.export.thresholds import amplification_db, gates

pytest.importorskip("onnxruntime")


def test_bundle_is_whole(ort_bundle: Bundle, tiny_sticker: Path) -> None:
    verify(ort_bundle)
    manifest = ort_bundle.manifest
    assert manifest.source.sha256 == Checkpoint.open(tiny_sticker).sha256()
    assert manifest.image.latent_shape == (16, 8, 8)
    assert not (ort_bundle.root / ".state").exists()
    assert len(manifest.golden.cases) == 4
    assert {g.quantity for g in manifest.gates} >= {"unet", "x0", "image", "generator"}


def test_golden_vectors_follow_from_the_manifest_alone(ort_bundle: Bundle) -> None:
    sampling = ort_bundle.manifest.sampling
    for case, vectors in zip(ort_bundle.manifest.golden.cases, ort_bundle.golden(), strict=True):
        noise = gaussian(case.seed, ort_bundle.manifest.noise.shape)
        assert np.array_equal(noise, vectors["noise"])
        x0 = sampling.noise_coefficient * vectors["sample"] + sampling.output_coefficient * vectors["out"]
        np.testing.assert_allclose(x0, vectors["x0"], atol=1e-5)
        np.testing.assert_allclose(vectors["latent"] * sampling.one_step.latent_scale, x0, atol=1e-5)
        assert case.token_ids["input_ids"] == tuple(vectors["input_ids"][0])


def test_golden_ids_follow_from_tokenizer_json_alone(ort_bundle: Bundle) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(ort_bundle.root / "tokenizer/tokenizer.json"))
    for case in ort_bundle.manifest.golden.cases:
        assert tuple(tokenizer.encode(case.prompt).ids) == case.token_ids["input_ids"]


def test_golden_image_is_that_of_the_diffusers_modules(ort_bundle: Bundle, tiny_sticker: Path) -> None:
    import torch

    vae = Checkpoint.open(tiny_sticker).load("vae")
    case = ort_bundle.golden()[2]
    with torch.no_grad():
        decoded = vae.decode(torch.from_numpy(case["latent"])).sample  # type: ignore[operator]
    np.testing.assert_allclose((decoded / 2 + 0.5).clamp(0, 1).numpy(), case["image"], atol=1e-6)


def test_doctor_has_no_errors(ort_bundle: Bundle) -> None:
    found = diagnose(DoctorConfig(bundle=str(ort_bundle.root)))
    assert not [f for f in found.findings if f.severity != "info"]
    assert found.passed
    assert not diagnose(DoctorConfig(bundle=str(ort_bundle.root), max_bytes=10)).passed


class Killed(Exception):
    pass


def test_killed_run_continues_and_changed_files_are_made_again(
    tiny_sticker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExportConfig(
        checkpoint=str(tiny_sticker),
        out=str(tmp_path / "bundle"),
        backends=(Ort(generator=False, ort_format=False, optimum=False),),
    )
    lowered: list[str] = []
    original = Ort._lower

    def counted(self: Ort, graph: Any, encoded: Any, root: Path) -> Any:
        lowered.append(str(graph.component))
        if graph.component == "vae_decoder" and lowered.count("vae_decoder") == 1:
            raise Killed
        return original(self, graph, encoded, root)

    monkeypatch.setattr(Ort, "_lower", counted)
    with pytest.raises(Killed):
        run(config)
    assert not (tmp_path / "bundle").exists()
    (tmp_path / ".bundle.partial/onnx/unet.onnx").write_bytes(b"torn")
    verify(read_bundle(run(config)))
    assert lowered == ["text_encoder", "unet", "vae_decoder", "unet", "vae_decoder"]


def test_flipped_byte_in_a_real_bundle(ort_bundle: Bundle, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "bundle"
    shutil.copytree(ort_bundle.root, copy)
    for artifact in ort_bundle.manifest.artifacts:
        path = copy / artifact.path
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(BundleError, match=r"wanted sha256"):
            verify(read_bundle(copy))
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    verify(read_bundle(copy))


def test_encodings_of_a_changed_checkpoint_are_stale(encoded_checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    from flashbulb.compress.encoding import EncodingError

    copy = tmp_path / "checkpoint"
    shutil.copytree(encoded_checkpoint, copy)
    path = next((copy / "unet").glob("*.safetensors"))
    weights = {n: np.array(v) * 1.01 for n, v in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(EncodingError, match=r"stale"):
        encodings.read(copy)


def test_gates_allow_for_what_one_step_costs(ort_bundle: Bundle) -> None:
    step = msgspec.structs.replace(
        ort_bundle.manifest.sampling.one_step, prediction_type="epsilon", alpha=0.0683, sigma=0.9977
    )
    assert 23.2 < amplification_db(step) < 23.4
    x0 = next(g for g in gates(ort_bundle.manifest.artifacts, step) if g.quantity == "x0")
    assert 76.6 < x0.minimum_db < 76.8


def test_float32_programs_are_held_to_what_the_tanh_form_of_gelu_does_not_reach(ort_bundle: Bundle) -> None:
    found = {g.quantity: g.minimum_db for g in ort_bundle.manifest.gates}
    assert {found[name] for name in ("text_encoder", "unet", "vae_decoder")} == {100.0}
    artifacts = [msgspec.structs.replace(a, backend="coreml") for a in ort_bundle.manifest.artifacts]
    of_coreml = gates(artifacts, ort_bundle.manifest.sampling.one_step)
    assert {g.minimum_db for g in of_coreml if g.quantity == "unet"} == {90.0}  # its twin is held to 100


def test_every_backend_is_one_frozen_config() -> None:
    for backend in AnyBackend.__args__:
        made = backend()
        assert isinstance(made, Backend)
        assert msgspec.json.decode(msgspec.json.encode(made), type=AnyBackend) == made
        assert made.name == made.__struct_config__.tag


def test_config_refuses_few_prompts() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"length >= 4"):
        msgspec.convert({"prompts": ["a", "b"]}, ExportConfig)


def test_two_processes_make_the_same_bundle(tiny_sticker: Path, tmp_path: Path) -> None:
    """Two configurations of one backend stand for two backends, so that the test stays short."""
    from flashbulb.distill.schedule import one_step
    from flashbulb.export.lowering import STATE, lower_all, plan

    checkpoint = Checkpoint.open(tiny_sticker)
    step = one_step(checkpoint.config("scheduler"), checkpoint.config("vae"))
    quick = {"generator": False, "ort_format": False, "optimum": False}
    tasks = [
        t for t in plan((Ort(**quick), Ort(opset=21, **quick)), checkpoint) if "unet" not in t.components
    ]
    found, said = {}, []
    for jobs in (1, 2):
        (tmp_path / str(jobs)).mkdir()
        artifacts = lower_all(
            tasks, checkpoint, step, tmp_path / str(jobs), jobs=jobs, say=lambda i, what: said.append(what)
        )
        found[jobs] = [(a.component, a.floor.version) for a in artifacts]
        assert len(list((tmp_path / str(jobs) / STATE).iterdir())) == len(tasks)
    assert found[1] == found[2]
    assert said[-1] == "ort is done"
