"""A whole run: what is written opens in diffusers, decodes exactly, and holds its floor."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
import torch

from flashbulb.compress import stage
from flashbulb.compress.encoding import EncodingError, check_current, read_encoded, read_plan, split_key
from flashbulb.compress.methods import Palettize, QuantizeInt8
from flashbulb.compress.methods.channels import ChannelPrune
from flashbulb.compress.sensitivity import Probe, Response, compare
from flashbulb.compress.stage import CompressConfig, list_layers, run
from flashbulb.distill.checkpoint import Checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")


def config(source, out, **options):
    defaults = {"min_weights": 256, "floor_psnr_db": None, "probe": "component", "prompts": ("a red apple",)}
    return CompressConfig(checkpoint=str(source), out=str(out), **(defaults | options))


def parameters(path, folder):
    return Checkpoint.open(path).load(folder).state_dict()


def test_weights_are_what_the_codes_decode_to_and_the_rest_is_untouched(tiny_sd, tmp_path):
    out = run(config(tiny_sd, tmp_path / "out", by_kind={"linear": QuantizeInt8()}))
    encoded = read_encoded(out)
    kinds = {value.encoding.kind for value in encoded.values()}
    assert kinds == {"palettize", "int8_weight_only"}
    for component, folder in (("text_encoder", "text_encoder"), ("unet", "unet"), ("vae_decoder", "vae")):
        before, after = parameters(tiny_sd, folder), parameters(out, folder)
        coded = {split_key(key)[1]: value for key, value in encoded.items() if split_key(key)[0] == component}
        assert coded
        for name, value in after.items():
            wanted = torch.from_numpy(coded[name].decode()) if name in coded else before[name]
            assert torch.equal(value, wanted), name


def test_the_result_opens_in_diffusers(tiny_sd, tmp_path):
    from diffusers import DiffusionPipeline

    out = run(config(tiny_sd, tmp_path / "out"))
    pipeline = DiffusionPipeline.from_pretrained(out, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a red apple", num_inference_steps=1, guidance_scale=1.0, output_type="np").images
    assert np.isfinite(image).all()


def test_sdxl_has_both_text_encoders_encoded(tiny_sdxl, tmp_path):
    out = run(config(tiny_sdxl, tmp_path / "out"))
    plan = read_plan(out)
    assert plan.of("text_encoder")
    assert plan.of("text_encoder_2")
    assert Checkpoint.open(out).lineage.entries[-1].metrics["encode_image_psnr_db"] > 10


@pytest.mark.parametrize("method", [Palettize(bits=6), QuantizeInt8()])
def test_a_float16_checkpoint_still_decodes_exactly(tiny_sd, tmp_path, method):
    parent = Checkpoint.open(tiny_sd)
    half = parent.load("unet", "float16")
    parent.derive(tmp_path / "half", stage="test", config={}, replace={"unet": half}, keep_dtype=False)
    out = run(config(tmp_path / "half", tmp_path / "out", default=method))
    check_current(out)  # raises unless equal bit by bit
    held = parameters(out, "unet")
    assert all(
        torch.equal(held[name], torch.from_numpy(value.decode()))
        for name, value in (
            (split_key(k)[1], v) for k, v in read_encoded(out).items() if k.startswith("unet/")
        )
    )


def test_a_run_is_deterministic(tiny_sd, tmp_path):
    one, two = (run(config(tiny_sd, tmp_path / name)) for name in ("one", "two"))
    for name in ("compress.json", "encodings.safetensors", "sensitivity.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_embeddings_norms_biases_encoder_and_delicate_layers_stay_floats(tiny_sd, tmp_path):
    names = read_plan(run(config(tiny_sd, tmp_path / "out", min_weights=1))).layers
    assert names
    words = ("bias", "norm", "embed", "conv_in", "conv_out", "time_emb", "/encoder.", "/quant_conv")
    assert not [key for key in names if any(word in key for word in words)]


def test_the_floor_keeps_the_worst_layers_as_floats(tiny_sd, tmp_path):
    free = run(config(tiny_sd, tmp_path / "free", default=Palettize(bits=2), probe="layer"))
    response = msgspec.json.decode((free / "sensitivity.json").read_bytes(), type=list[Response])
    floor = response[0].image_psnr_db + 3
    held = run(
        config(tiny_sd, tmp_path / "held", default=Palettize(bits=2), probe="layer", floor_psnr_db=floor)
    )
    kept, total = set(read_plan(held).layers), set(read_plan(free).layers)
    assert kept < total
    metrics = Checkpoint.open(held).lineage.entries[-1].metrics
    assert metrics["encode_image_psnr_db"] >= floor
    assert metrics["layers_left_float"] == len(total - kept)
    alone = {record.name: record.robustness for record in response[1:]}
    assert min(alone[key] for key in kept) >= max(alone[key] for key in total - kept)


def test_the_recorded_response_is_that_of_the_written_folder(tiny_sd_v, tmp_path):
    out = run(config(tiny_sd_v, tmp_path / "out", default=Palettize(bits=4)))
    probes = []
    for path in (tiny_sd_v, out):
        checkpoint = Checkpoint.open(path)
        modules = {"text_encoder": "text_encoder", "unet": "unet", "vae_decoder": "vae"}
        loaded = {component: checkpoint.load(folder) for component, folder in modules.items()}
        probes.append(Probe(checkpoint, loaded, ("a red apple",), 0))
    again = compare("all", "", *((probe.x0, probe.image) for probe in probes))
    metrics = Checkpoint.open(out).lineage.entries[-1].metrics
    assert again.x0_snr_db == pytest.approx(metrics["encode_x0_snr_db"], abs=0.01)
    assert again.image_psnr_db == pytest.approx(metrics["encode_image_psnr_db"], abs=0.01)


def test_names_below_the_floor_are_an_error(tiny_sd, tmp_path):
    with pytest.raises(ValueError, match="by_name alone"):
        run(config(tiny_sd, tmp_path / "out", by_name={"unet/*": Palettize(bits=1)}, floor_psnr_db=90.0))
    assert not (tmp_path / "out").exists()


def test_compressing_nothing_leaves_no_plan(tiny_sd, tmp_path):
    first = run(config(tiny_sd, tmp_path / "first"))
    second = run(config(first, tmp_path / "second", default=None))
    assert read_plan(second).layers == {}
    assert not (second / "encodings.safetensors").exists()


def test_a_stale_plan_is_noticed(tiny_sd, tmp_path):
    out = run(config(tiny_sd, tmp_path / "out"))
    parent = Checkpoint.open(out)
    unet = parent.load("unet")
    unet.mid_block.resnets[0].conv1.weight.data[0, 0, 0, 0] += 1e-3
    parent.derive(tmp_path / "tuned", stage="distill", config={}, replace={"unet": unet})
    with pytest.raises(EncodingError, match=r"stale: unet/mid_block.resnets.0.conv1.weight"):
        check_current(tmp_path / "tuned")


def test_pruning_is_recorded_and_round_trips(tiny_sd, tmp_path):
    out = run(config(tiny_sd, tmp_path / "out", prune=ChannelPrune(widths=(8, 16)), default=None))
    checkpoint = Checkpoint.open(out)
    assert checkpoint.config("unet")["block_out_channels"] == [8, 16]
    assert "prune_x0_snr_db" in checkpoint.lineage.entries[-1].metrics
    assert checkpoint.lineage.entries[-1].config["prune"]["widths"] == [8, 16]
    checkpoint.pipeline()


def test_non_finite_pictures_fail_first():
    good, bad = torch.ones(1, 3), torch.tensor([[1.0, float("nan"), 1.0]])
    record = compare("x", "y", (good, good), (good, bad))
    assert not record.finite
    assert not record.passes(-1e9)
    assert record.image_psnr_db is None
    same = compare("x", "y", (good, good), (good, good))
    assert same.exact
    assert same.image_psnr_db is None
    assert same.passes(1e9)


def test_masks_are_no_layers():
    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(8, 8)
            self.embedding = torch.nn.Embedding(8, 8)
            self.register_buffer("mask", torch.full((8, 8), -3.4e38))
            self.position = torch.nn.Parameter(torch.zeros(8, 8))

    assert [layer.key for layer in list_layers({"text_encoder": Masked()})] == ["text_encoder/inner.weight"]


def test_a_config_is_read_from_json_and_unknown_fields_are_refused():
    text = {"checkpoint": "x", "default": {"type": "int8"}, "by_name": {"unet/*": None}}
    assert msgspec.json.decode(json.dumps(text).encode(), type=CompressConfig).default == QuantizeInt8()
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(json.dumps(text | {"bits": 6}).encode(), type=CompressConfig)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"default": {"type": "palettize", "bits": 3}}', type=CompressConfig)


def test_a_killed_run_leaves_no_half_written_folder(tiny_sd, tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "write_plan", die)
    with pytest.raises(KeyboardInterrupt):
        run(config(tiny_sd, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert read_plan(run(config(tiny_sd, tmp_path / "out"))).coded


def test_a_folder_whose_weights_are_not_the_decoded_ones_is_never_published(tiny_sd, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "_place", lambda kept, modules: None)
    with pytest.raises(EncodingError, match="stale"):
        run(config(tiny_sd, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fixture", ["tiny_sd", "tiny_sd_v"])
def test_the_probe_draws_what_diffusers_draws(request, fixture):
    checkpoint = Checkpoint.open(request.getfixturevalue(fixture))
    modules = {
        c: checkpoint.load(f) for c, f in (("text_encoder",) * 2, ("unet",) * 2, ("vae_decoder", "vae"))
    }
    probe = Probe(checkpoint, modules, ("a red apple",), 0)
    pipeline = checkpoint.pipeline()
    scheduler = pipeline.scheduler
    scheduler.register_to_config(clip_sample=False)
    scheduler.set_timesteps(1000)
    hidden, _ = pipeline.encode_prompt("a red apple", "cpu", 1, False)
    with torch.inference_mode():
        out = pipeline.unet(probe.noise, 999, hidden).sample
        x0 = scheduler.step(out, 999, probe.noise).pred_original_sample
        image = pipeline.vae.decode(probe.x0 / pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(probe.x0, x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(probe.image, (image / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)
