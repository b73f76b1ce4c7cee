"""The CLIP score against transformers' own forward pass, with a tiny random CLIP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flashbulb.distill.metrics.clip_score import ClipScorer

CAPTIONS = ["two penguins and a house", "a red apple", "a smiling cat with a small hat, outlined"]


@pytest.fixture(scope="module")
def folder(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

    out = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizerFast.from_pretrained(tiny_sd / "tokenizer")
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {k: getattr(tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**shared, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 77}
    vision = {**shared, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
        for p in model.parameters():
            p.data.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**size).save_pretrained(out)
    return out


def test_it_is_the_cosine_of_transformers_own_forward(folder: Path):
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

    pictures = torch.rand((3, 3, 48, 48), generator=torch.Generator().manual_seed(0)) * 2 - 1
    arrays = ((pictures.permute(0, 2, 3, 1).numpy() + 1) * 127.5).round().astype(np.uint8)
    model = CLIPModel.from_pretrained(folder).eval()
    pixels = CLIPImageProcessor.from_pretrained(folder)(
        [Image.fromarray(a) for a in arrays], return_tensors="pt"
    )
    tokens = CLIPTokenizerFast.from_pretrained(folder)(CAPTIONS, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        logits = model(**tokens, **pixels).logits_per_image / model.logit_scale.exp()
    assert logits.diag().max() > 0 > logits.diag().min()  # both sides of the clamp are seen
    expected = 100 * logits.diag().clamp_min(0)
    assert ClipScorer(str(folder))(pictures, CAPTIONS) == pytest.approx(expected.numpy(), abs=1e-3)


def test_it_is_computed_on_the_model_s_device(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """What stayed on the CPU could not be mixed with a model that is on ``meta``."""
    plain = torch.Tensor.cpu
    monkeypatch.setattr(
        torch.Tensor, "cpu", lambda t: torch.zeros(t.shape) if t.device.type == "meta" else plain(t)
    )
    assert ClipScorer(str(folder), "meta")(torch.zeros(3, 3, 48, 48), CAPTIONS).tolist() == [0, 0, 0]


def test_what_is_no_clip_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="wanted a CLIP folder or Hub id"):
        ClipScorer(str(tmp_path))
