"""Checkpoints: what opens, what is refused and how, and that diffusers opens what we write."""

import json
import shutil

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from flashbulb.distill.checkpoint import (
    HUB_PATTERNS,
    Checkpoint,
    CheckpointError,
    replace_folder,
    stored_dtype,
)
from flashbulb.distill.untrusted_folder import index_faults


@pytest.fixture
def copy(tiny_sd, tmp_path):
    return shutil.copytree(tiny_sd, tmp_path / "copy")


def test_opens_a_stable_diffusion_folder(tiny_sd):
    checkpoint = Checkpoint.open(tiny_sd)
    assert checkpoint.components() == ("text_encoder", "unet", "vae_decoder")
    assert not checkpoint.is_sdxl
    assert checkpoint.latent_shape == (4, 8, 8)
    assert checkpoint.text_length == 77
    assert not any(p.requires_grad for p in checkpoint.load("unet").parameters())


def test_opens_a_stable_diffusion_xl_folder(tiny_sdxl):
    checkpoint = Checkpoint.open(tiny_sdxl)
    assert checkpoint.is_sdxl
    assert checkpoint.components()[1] == "text_encoder_2"


def test_derive_writes_what_diffusers_opens(tiny_sd, tmp_path):
    from diffusers import DiffusionPipeline

    parent = Checkpoint.open(tiny_sd)
    unet = parent.load("unet")
    with torch.no_grad():
        unet.conv_out.weight.mul_(2)
    child = parent.derive(
        tmp_path / "child", stage="test", config={"a": 1}, replace={"unet": unet}, metrics={"m": 1.5}
    )
    opened = DiffusionPipeline.from_pretrained(child.path, use_safetensors=True)
    assert torch.equal(opened.unet.conv_out.weight, unet.conv_out.weight)
    entry = child.lineage.entries[-1]
    assert (entry.stage, entry.parent_sha256, entry.metrics) == ("test", parent.sha256(), {"m": 1.5})
    assert child.sha256() != parent.sha256()
    assert str(tmp_path.parent) not in (child.path / "unet" / "config.json").read_text()


@pytest.fixture
def hub_like(copy):
    """As on the Hub: a half-precision variant beside the weights, single-file models at the root."""
    from safetensors.torch import load_file, save_file

    for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        tensors = load_file(copy / part / f"{name}.safetensors")
        save_file({k: v.half() for k, v in tensors.items()}, copy / part / f"{name}.fp16.safetensors", {})
    for name in ("v1-5-pruned.safetensors", "model.safetensors"):
        save_file(load_file(copy / "unet" / "diffusion_pytorch_model.safetensors"), copy / name)
    return copy


def test_weights_at_the_root_stay_behind(hub_like, tmp_path):
    parent = Checkpoint.open(hub_like)
    child = parent.derive(tmp_path / "child", stage="test", config={}, replace={"unet": parent.load("unet")})
    assert not list(child.path.glob("*.safetensors"))
    assert (child.path / "text_encoder" / "model.safetensors").is_file()
    assert [f.name for f in (child.path / "unet").glob("*.safetensors")] == [
        "diffusion_pytorch_model.safetensors"
    ]
    listing = ["v1-5-pruned.safetensors", "model_index.json", "unet/config.json", "unet/model.safetensors"]
    assert list(filter_repo_objects(listing, allow_patterns=list(HUB_PATTERNS))) == listing[1:]


def test_weights_keep_the_dtype_of_the_file_that_is_opened_not_of_a_variant(hub_like, tmp_path):
    assert stored_dtype(hub_like / "unet") == stored_dtype(hub_like / "text_encoder") == "float32"
    parent = Checkpoint.open(hub_like)
    unet = parent.load("unet")
    child = parent.derive(tmp_path / "child", stage="test", config={}, replace={"unet": unet})
    assert stored_dtype(child.path / "unet") == "float32"
    for file in hub_like.glob("unet/*model.safetensors"):
        file.unlink()
    assert stored_dtype(hub_like / "unet") == "float16"


def test_lineage_is_appended_to_never_rewritten(tiny_sd, tmp_path):
    first = Checkpoint.open(tiny_sd).derive(tmp_path / "a", stage="one", config={})
    second = first.derive(tmp_path / "b", stage="two", config={})
    assert second.lineage.entries[:-1] == first.lineage.entries
    assert [e.stage for e in second.lineage.entries] == ["one", "two"]


def test_hash_sees_every_byte(copy):
    before = Checkpoint.open(copy).sha256()
    file = copy / "tokenizer" / "merges.txt"
    file.write_text(file.read_text() + "\n")
    assert Checkpoint.open(copy).sha256() != before


def test_pickled_weights_are_refused_by_name(copy):
    weights = next((copy / "unet").glob("*.safetensors"))
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin.*can run code"):
        Checkpoint.open(copy)


@pytest.mark.parametrize(
    "missing", ["unet", "vae", "text_encoder", "tokenizer", "scheduler", "model_index.json"]
)
def test_a_missing_part_is_named(copy, missing):
    target = copy / missing
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(CheckpointError, match=missing):
        Checkpoint.open(copy)


def test_a_file_that_is_no_safetensors(copy):
    next((copy / "unet").glob("*.safetensors")).write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        Checkpoint.open(copy)


@pytest.mark.parametrize("value", [["this", "Zen"], ["stable_diffusion", "X"], {"this": 1, "Zen": 2}, "qx"])
def test_no_module_is_imported_that_the_index_names(copy, value):
    index = json.loads((copy / "model_index.json").read_text()) | {"feature_extractor": value}
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match="wanted a class of diffusers or transformers for 'feature_extr"
    ):
        Checkpoint.open(copy)


def test_a_safety_checker_is_named_as_diffusers_does(tiny_sd):
    named = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    index = json.loads((tiny_sd / "model_index.json").read_text()) | named
    assert not list(index_faults(index))
    (fault,) = index_faults(index | {"safety_checker": ["this", "Zen"]})
    assert "wanted a class of diffusers or transformers or stable_diffusion for 'safety_checker'" in fault


def test_broken_json_is_named(copy):
    (copy / "model_index.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"model_index\.json is not valid JSON"):
        Checkpoint.open(copy)


def test_no_such_checkpoint(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="no checkpoint 'nobody/nothing'"):
        Checkpoint.open("nobody/nothing")


def test_unknown_embedded_name():
    with pytest.raises(CheckpointError, match="teacher"):
        Checkpoint.open("embedded:critic")


def test_a_wrong_lineage_is_named(copy):
    (copy / "lineage.json").write_text(json.dumps({"schema_version": 999}))
    with pytest.raises(CheckpointError, match=r"lineage\.json"):
        Checkpoint.open(copy)


def test_replacing_leaves_no_debris(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert [p.name for p in (tmp_path / "old").iterdir()] == ["new"]


def test_a_student_draws_its_x0_in_one_step_of_any_pipeline(tiny_sd, tmp_path):
    from diffusers import DiffusionPipeline

    from flashbulb.distill.denoiser import Denoiser, Schedule
    from flashbulb.distill.stage import ONE_STEP_SCHEDULER
    from flashbulb.distill.text import text_function, token_ids

    parent = Checkpoint.open(tiny_sd)
    student = parent.derive(tmp_path / "student", stage="test", config={}, scheduler=ONE_STEP_SCHEDULER)
    noise = torch.randn(1, *student.latent_shape)
    pipeline = DiffusionPipeline.from_pretrained(student.path, use_safetensors=True)
    drawn = pipeline(
        "a fox", num_inference_steps=1, guidance_scale=1.0, latents=noise.clone(), output_type="latent"
    ).images
    states = text_function(student)(token_ids(student, ["a fox"]))[0]
    denoiser = Denoiser(student.load("unet"), Schedule(student.config("scheduler")))
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        out = denoiser.unet(noise, torch.tensor([999]), states).sample
        x0 = denoiser.schedule.to_x0(noise, out, torch.tensor([999]))
    assert torch.allclose(drawn, x0, atol=1e-3 * x0.abs().max())
