"""Any text becomes ids, ids and noise become a picture, and both ways draw the same one."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from flashbulb.export.bundle import BundleError
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.pipeline import Pipeline, Tokenizer, save_png, to_bytes


@pytest.mark.parametrize(
    "prompt", ["", " ", "a red apple", "🐸🐸🐸", "红苹果 京", "\x00\n\t", "ﬁ İ ß", "<|endoftext|>"]
)
def test_any_text_has_ids_of_the_fixed_length(
    pipeline: Pipeline, world: SimpleNamespace, prompt: str
) -> None:
    ids = pipeline.tokens(prompt)["input_ids"]
    info = pipeline.tokenizers[0].info
    assert ids.shape == (1, world.length)
    assert ids.dtype == np.int32
    assert ids[0, 0] == info.bos_token_id
    assert info.eos_token_id in ids[0]


def test_an_empty_prompt_is_start_and_ends(pipeline: Pipeline) -> None:
    info = pipeline.tokenizers[0].info
    ids = pipeline.tokens("")["input_ids"][0].tolist()
    assert ids == [info.bos_token_id, info.eos_token_id] + [info.pad_token_id] * (info.length - 2)


def test_five_hundred_words_are_cut_with_a_warning(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ids = pipeline.tokens("apple " * 500)["input_ids"]
    assert ids[0, -1] == pipeline.tokenizers[0].info.eos_token_id
    assert "the rest is cut" in caplog.text


def test_a_prompt_that_just_fits_is_not_cut(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    one = len(pipeline.tokenizers[0].fast.encode("apple", add_special_tokens=False).ids)
    with caplog.at_level(logging.WARNING):
        pipeline.tokens(" ".join(["apple"] * ((pipeline.tokenizers[0].info.length - 2) // (one + 1))))
    assert not caplog.text


def test_both_ways_draw_the_golden_picture(pipeline: Pipeline) -> None:
    golden = pipeline.bundle.golden()[0]["image"][0].transpose(1, 2, 0)
    case = pipeline.bundle.manifest.golden.cases[0]
    for fused in (True, False, None):
        image = pipeline.draw(case.prompt, case.seed, fused=fused)
        assert image.shape == golden.shape
        np.testing.assert_allclose(image, golden, atol=1e-6)


def test_the_same_seed_draws_the_same_picture_and_another_another(pipeline: Pipeline) -> None:
    first, same, other = (pipeline.draw("a cat", seed) for seed in (3, 3, 4))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_a_missing_component_is_named(pipeline: Pipeline, world: SimpleNamespace) -> None:
    session = world.Engine().load(pipeline.bundle, components=("unet",))
    with pytest.raises(EngineError, match="text_encoder"):
        Pipeline(pipeline.bundle, session).draw("a", 0, fused=False)


def test_a_session_says_what_it_wanted(pipeline: Pipeline) -> None:
    with pytest.raises(EngineError, match="'latent' of ort vae_decoder"):
        pipeline.session.run("vae_decoder", {"z": np.zeros(1)})
    with pytest.raises(EngineError, match=r"shape \(1, 4, 8, 8\), got \(1, 4, 8, 9\)"):
        pipeline.session.run("vae_decoder", {"latent": np.zeros((1, 4, 8, 9))})
    with pytest.raises(EngineError, match="'tex'"):
        pipeline.session.run("tex", {})


def test_a_picture_of_nonsense_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="NaN"):
        save_png(np.full((2, 2, 3), np.nan), tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_rounding_to_bytes() -> None:
    assert to_bytes(np.array([-1.0, 0.0, 0.5, 1.0, 2.0])).tolist() == [0, 0, 128, 255, 255]


def test_a_panic_of_the_tokenizers_library_is_an_error_in_words(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rust's panic is no ``Exception``; the rule that refuses this file is taken away to meet it."""
    info, root = pipeline.tokenizers[0].info, pipeline.bundle.root
    value = json.loads((root / info.folder / "tokenizer.json").read_text())
    value["model"]["continuing_subword_prefix"] = "longer than any merge of it"
    monkeypatch.setattr("flashbulb.runtimes.pipeline.read_tokenizer", lambda path: json.dumps(value))
    with pytest.raises(BundleError, match="out of bounds"):
        Tokenizer(info, root)
