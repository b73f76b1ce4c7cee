"""Vision transformers as the critic's eyes, from local folders: DINO, DINOv2 (also with registers), CLIP."""

import json

import pytest
import torch
import transformers

from flashbulb.distill.critic import Critic, CriticConfig, r1
from flashbulb.distill.critic_features import open_features

SMALL = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}
KINDS = ("dinov2", "registers", "dino", "clip")


def write(kind, folder, width=24):
    """Save a random transformer of a family; its norms are random too, so that before and after differ."""
    torch.manual_seed(0)
    small = SMALL | {"hidden_size": width}
    dino2 = {"hidden_size": width, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2}
    if kind == "dinov2":
        config = transformers.Dinov2Config(**dino2, patch_size=14, image_size=56)
        network = transformers.Dinov2Model(config)
    elif kind == "registers":
        config = transformers.Dinov2WithRegistersConfig(
            **dino2, patch_size=14, image_size=56, num_register_tokens=4
        )
        network = transformers.Dinov2WithRegistersModel(config)
    elif kind == "dino":
        network = transformers.ViTModel(transformers.ViTConfig(**small, patch_size=16, image_size=64))
    else:
        vision = transformers.CLIPVisionConfig(**small, patch_size=16, image_size=64)
        text = transformers.CLIPTextConfig(**SMALL, vocab_size=100)
        network = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
        )
    for name, parameter in network.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter)
    network.save_pretrained(folder)
    return str(folder)


def blocks(network):
    encoder = network.encoder
    return encoder.layer if hasattr(encoder, "layer") else encoder.layers


@pytest.mark.parametrize("kind", KINDS)
def test_any_family_serves_as_features(kind, tmp_path):
    critic = Critic(
        12, CriticConfig(features=write(kind, tmp_path), input_size=64, condition="both", heads="tokens")
    )
    pictures = (torch.rand(2, 3, 64, 64) * 2 - 1).requires_grad_()
    features = critic.features(pictures)
    assert [tuple(f.shape) for f in features] == [(2, 24, 4, 4)] * 5
    condition = critic.condition(torch.randn(2, 12), pictures, torch.zeros(2, dtype=torch.bool))
    sum(part.sum() for part in critic.logits(features, condition)).backward()
    assert pictures.grad.abs().sum() > 0
    assert all(p.grad is None for p in critic.frozen.network.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_block_outputs_with_the_class_token_added(kind, tmp_path):
    """The published heads read blocks before the last norm, patches only, each plus the class token."""
    features = open_features(write(kind, tmp_path), 64)
    seen = []
    for block in blocks(features.network):
        block.register_forward_hook(
            lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
    maps = features.maps(torch.rand(1, 3, 64, 64))
    assert len(seen) == 4
    for tokens, found in zip(seen, maps[1:], strict=True):
        patches = tokens[:, -16:] + tokens[:, :1]
        torch.testing.assert_close(found.flatten(2), patches.float().transpose(1, 2))


def test_the_vector_of_a_picture_is_the_normed_class_token(tmp_path):
    pictures = torch.rand(2, 3, 56, 56) * 2 - 1
    for kind in ("dinov2", "dino"):
        features = open_features(write(kind, tmp_path / kind), 56)
        told = []
        features.network.layernorm.register_forward_hook(
            lambda _m, _i, out, told=told: told.append(out[:, 0])
        )
        found = features.summary(pictures)
        torch.testing.assert_close(found, torch.nn.functional.normalize(told[0].float(), dim=1))
    features = open_features(write("clip", tmp_path / "clip"), 64)
    found, told = features.summary(pictures), []
    features.network.post_layernorm.register_forward_hook(lambda _m, _i, out: told.append(out))
    features.summary(pictures)
    torch.testing.assert_close(found, torch.nn.functional.normalize(told[0].float(), dim=1))


def test_a_second_network_may_look_at_the_real_picture(tmp_path):
    small, large = write("dinov2", tmp_path / "s"), write("dinov2", tmp_path / "l", width=40)
    critic = Critic(
        12, CriticConfig(features=small, image_features=large, input_size=56, condition="image", scale="raw")
    )
    assert critic.frozen.widths == (24,) * 5
    pictures = torch.rand(2, 3, 56, 56)
    told = critic.condition(torch.randn(2, 12), pictures, torch.zeros(2, dtype=torch.bool))
    assert told.shape == (2, 40)
    assert torch.equal(told, open_features(large, None).summary(pictures))


def test_no_second_network_is_opened_where_none_is_told(tmp_path):
    critic = Critic(12, CriticConfig(image_features=str(tmp_path / "none"), condition="text"))
    assert critic.witness is critic.frozen


def test_the_folder_s_own_normalisation_is_used(tmp_path):
    folder = write("dinov2", tmp_path)
    plain = open_features(folder, 56)
    stated = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    own, pictures = open_features(folder, 56), torch.rand(1, 3, 56, 56)
    seen = []
    own.network.embeddings.register_forward_hook(lambda _m, i, _o: seen.append(i[0]))
    own.maps(pictures)
    torch.testing.assert_close(seen[0], ((pictures + 1) / 2 - 0.5) / 0.25)
    assert not torch.allclose(plain.maps(pictures)[0], own.maps(pictures)[0])


@pytest.mark.parametrize("kind", ["dinov2", "clip"])
def test_r1_at_the_pixels_passes_through_attention(kind, tmp_path):
    critic = Critic(12, CriticConfig(features=write(kind, tmp_path), input_size=56, r1="pixel", places=0))
    pixels = (torch.rand(2, 3, 56, 56) * 2 - 1).requires_grad_()
    penalty = r1(critic.logits(critic.features(pixels), torch.randn(2, 12)), [pixels])
    penalty.backward()
    assert penalty > 0
    assert any(p.grad.abs().sum() > 0 for p in critic.heads.parameters() if p.grad is not None)


def test_features_that_are_no_vision_transformer_are_refused(tmp_path):
    with pytest.raises(ValueError, match="vision transformer"):
        Critic(12, CriticConfig(features=str(tmp_path / "none")))


def test_a_folder_of_timm_is_told_what_helps(tmp_path):
    stated = {"architecture": "vit_small_patch16_224", "num_classes": 0, "pretrained_cfg": {"tag": "dino"}}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    with pytest.raises(
        ValueError, match=r"format of transformers, got a model of timm.*facebook/dino-vits16"
    ):
        open_features(str(tmp_path), None)


def test_a_hub_id_is_normalised_as_its_own_preprocessor_says(tmp_path, monkeypatch):
    """Out of the local cache of the hub, as after a download."""
    kept = tmp_path / "models--someone--clip"
    folder = kept / "snapshots" / ("0" * 40)
    write("clip", folder)
    stated = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text("0" * 40)
    for place in ("transformers.utils.hub.TRANSFORMERS_CACHE", "huggingface_hub.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(place, str(tmp_path))
    network = open_features("someone/clip", 64)
    assert (network.mean, network.std) == (tuple(stated["image_mean"]), tuple(stated["image_std"]))
