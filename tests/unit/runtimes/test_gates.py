"""Every gate passes a sound bundle and fails the fault that it is there for."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from flashbulb.export.bundle import Bundle, BundleError, read_bundle
from flashbulb.runtimes.gates import bundle_gates, engine_gates, threshold_gate
from flashbulb.runtimes.records import SanityRecord


def test_a_sound_bundle_passes_every_gate(bundle: Bundle, world: SimpleNamespace) -> None:
    assert world.failed(bundle) == {}
    found = [*bundle_gates(bundle), *engine_gates(bundle, world.Engine(), 1)]
    assert len(found) == 6 + 1 + 4 * 4 + 2 * 4 + 2 * 5 + 1
    assert all(r.verdict == "pass" and r.sentence for r in found)
    told = [r for r in found if isinstance(r, SanityRecord)]
    assert [r.gate for r in told if r.threshold is None] == []
    assert [r.gate for r in told if r.value is None and "exactly" not in r.sentence] == []


def test_nan_fails_first_and_says_how_many(bundle: Bundle, world: SimpleNamespace) -> None:
    def broken(*arrays: np.ndarray) -> np.ndarray:
        out = world.unet(*arrays)
        out[0, 0, 0, :2] = np.nan
        return out

    found = world.failed(bundle, unet=broken)
    assert "2 of 256 values are NaN" in found["unet"]
    assert {"x0", "image", "range.pipeline", "fused"} <= set(found)


def test_nan_of_the_fused_generator(bundle: Bundle, world: SimpleNamespace) -> None:
    found = world.failed(bundle, generator=lambda i, n: world.generator(i, n) * np.float32(np.nan))
    assert {"generator", "range.generator", "variance.generator", "fused"} <= set(found)
    assert "NaN" in found["range.generator"]
    assert not {"unet", "image", "x0"} & set(found)


def test_a_black_picture_fails_variance_and_parity(bundle: Bundle, world: SimpleNamespace) -> None:
    found = world.failed(bundle, vae_decoder=lambda z: np.zeros((1, 3, 16, 16), np.float32))
    assert {"vae_decoder", "image", "variance.pipeline", "prompt_sensitivity.pipeline"} <= set(found)
    assert "one colour" in found["image"]


def test_swapped_channels_are_named(bundle: Bundle, world: SimpleNamespace) -> None:
    found = world.failed(bundle, generator=lambda i, n: world.generator(i, n)[:, ::-1])
    assert set(found) == {"generator", "fused", "channels.generator"}
    assert "order BGR" in found["generator"]
    assert "in the order BGR, wanted RGB" in found["channels.generator"]


def test_the_range_of_minus_one_to_one_is_named(bundle: Bundle, world: SimpleNamespace) -> None:
    found = world.failed(bundle, vae_decoder=lambda z: world.vae_decoder(z) * 2 - 1)
    assert "[-1, 1] instead of [0, 1]" in found["image"]
    assert "wanted within [0, 1]" in found["range.pipeline"]


def test_conditioning_cut_off_fails_prompt_sensitivity(bundle: Bundle, world: SimpleNamespace) -> None:
    def blind(sample: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        return world.unet(sample, hidden * 0)

    found = world.failed(bundle, unet=blind)
    assert "prompt_sensitivity.pipeline" in found
    assert "noise_sensitivity.pipeline" not in found
    assert "changes the picture by 0 rms" in found["prompt_sensitivity.pipeline"]


def test_a_generator_that_ignores_its_noise_fails_noise_sensitivity(
    bundle: Bundle, world: SimpleNamespace
) -> None:
    fixed = bundle.golden()[0]["noise"]
    found = world.failed(bundle, generator=lambda i, n: world.generator(i, fixed))
    assert {"noise_sensitivity.generator", "generator", "fused"} == set(found)


def test_a_small_error_of_the_unet_fails_only_where_it_shows(bundle: Bundle, world: SimpleNamespace) -> None:
    found = world.failed(bundle, unet=lambda s, h: world.unet(s, h) * np.float32(1.002))
    assert "below the required 60.0 dB" in found["unet"]
    assert set(found) == {"unet", "x0"}


def test_another_shape_is_a_failed_contract(bundle: Bundle, world: SimpleNamespace) -> None:
    found = world.failed(bundle, vae_decoder=lambda z: world.vae_decoder(z)[:, :, :8])
    assert set(found) == {"contract"}
    assert "(1, 3, 8, 16)" in found["contract"]


@pytest.mark.parametrize("name", ["onnx/unet.ort", "golden/vectors.safetensors", "tokenizer/tokenizer.json"])
def test_one_flipped_bit_stops_the_check_before_any_engine(
    bundle: Bundle, world: SimpleNamespace, name: str
) -> None:
    path = bundle.root / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = list(bundle_gates(bundle))
    assert [r.verdict for r in found] == ["fail"]
    assert name in found[0].sentence


def test_wrong_constants_are_found(bundle: Bundle, world: SimpleNamespace) -> None:
    def change(manifest: dict) -> None:
        manifest["sampling"]["one_step"]["latent_scale"] = 0.51

    edited = world.edit(bundle, change)
    assert "constants" in world.failed(edited)


def test_inconsistent_constants_do_not_even_open(bundle: Bundle, world: SimpleNamespace) -> None:
    with pytest.raises(BundleError, match="coefficients"):
        world.edit(bundle, lambda m: m["sampling"].update(output_coefficient=-0.5))


def test_other_noise_is_found(bundle: Bundle, world: SimpleNamespace) -> None:
    edited = world.edit(bundle, lambda m: m["golden"]["cases"][1].update(seed=77))
    assert "noise" in world.failed(edited)


def test_a_wrong_tokenizer_is_found(bundle: Bundle, world: SimpleNamespace) -> None:
    path = bundle.root / "tokenizer/tokenizer.json"
    value = json.loads(path.read_text())
    value["model"]["merges"] = value["model"]["merges"][:1]
    path.write_text(json.dumps(value))
    tokens = next(r for r in _unhashed(bundle) if r.gate == "tokens")
    assert tokens.verdict == "fail"
    assert "first at position 2" in tokens.sentence
    assert (tokens.value, tokens.threshold, tokens.unit) == (3.0, 0.0, "prompts")


def _unhashed(bundle: Bundle) -> list:
    from flashbulb.runtimes import gates

    return [gates.token_gate(bundle), gates.noise_gate(bundle, bundle.golden())]


def test_a_manifest_without_thresholds_does_not_pass_by_silence(
    bundle: Bundle, world: SimpleNamespace
) -> None:
    edited = world.edit(bundle, lambda m: m.update(gates=[]))
    found = world.failed(edited)
    assert "no threshold for" in found["thresholds"]
    record = threshold_gate(edited)
    assert (record.value, record.threshold) == (4.0, 0.0)
    assert "contract" in found


def test_a_threshold_is_taken_from_the_manifest(bundle: Bundle, world: SimpleNamespace) -> None:
    def change(manifest: dict) -> None:
        for gate in manifest["gates"]:
            gate["minimum_db"] = 20.0

    edited = world.edit(bundle, change)
    assert "unet" not in world.failed(edited, unet=lambda s, h: world.unet(s, h) * np.float32(1.002))


def test_one_golden_case_is_not_enough(bundle: Bundle, world: SimpleNamespace) -> None:
    def change(manifest: dict) -> None:
        manifest["golden"]["cases"] = manifest["golden"]["cases"][:1]

    edited = world.edit(bundle, change)
    with pytest.raises((IndexError, BundleError)):
        edited.golden()
    assert read_bundle(edited.root).manifest.golden.cases
