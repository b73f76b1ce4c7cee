"""Train the text encoder of the embedded world: a CLIPTextModel with a byte-pair vocabulary of its own.

Contrastive (CLIP, arXiv 2103.00020) against frozen image features, plus three small classifiers of concept,
style and background, so that every word which a picture must follow is present in the hidden states.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from flashbulb.distill.data.words import BACKGROUNDS, STYLES, SYNONYMS, TEMPLATES, article
from flashbulb.distill.loop import LoopConfig, OnStep, State, StepRng, run_loop
from flashbulb.distill.precision import autocast

if TYPE_CHECKING:
    import torch
    from transformers import CLIPTextModel, CLIPTokenizerFast

    from flashbulb.distill.data.stickers import Sticker, Stickers


class TextConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Architecture and training of the text encoder."""

    width: int = 192
    """Hidden size; also the UNet's cross-attention width."""
    layers: int = 4
    """Transformer layers."""
    length: int = 24
    """Tokens of a padded prompt."""
    vocabulary: int = 2400
    """Entries of the byte-pair vocabulary."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    """Peak learning rate of AdamW."""
    loop: LoopConfig = LoopConfig(steps=500, batch=256, ema=0.98, warmup=40)
    """Length and bookkeeping."""


def corpus(concepts: list[str]) -> list[str]:
    """Return sentences that hold every word of the sticker world, for the vocabulary."""
    names = [*concepts, *itertools.chain.from_iterable(SYNONYMS.values())]
    frames = [
        t.format(
            **dict.fromkeys(("style", "background"), "a"),
            concept="a",
            a_style="a",
            a_concept="an",
            a_background="a",
        )
        for t in TEMPLATES
    ]
    words = [*itertools.chain.from_iterable(STYLES.values()), *BACKGROUNDS]
    return [*frames, *words, *names, *(article(n) for n in names)]


def make_tokenizer(config: TextConfig, concepts: list[str], out: Path) -> CLIPTokenizerFast:
    """Train a CLIP-format byte-pair tokenizer and save it in ``out``."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizerFast

    special = ["<|startoftext|>", "<|endoftext|>"]
    raw = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=special[1]))
    raw.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        min_frequency=1,
        show_progress=False,
    )
    raw.train_from_iterator(corpus(concepts), trainer)
    merges = [tuple(m) for m in json.loads(raw.to_str())["model"]["merges"]]
    entries = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(m) for m in merges), *special]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(entries))}
    out.mkdir(parents=True, exist_ok=True)
    (out / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (out / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tokenizer = CLIPTokenizerFast(
        vocab_file=str(out / "vocab.json"),
        merges_file=str(out / "merges.txt"),
        model_max_length=config.length,
    )
    tokenizer.save_pretrained(out)
    return tokenizer


def build(config: TextConfig, tokenizer: CLIPTokenizerFast) -> CLIPTextModel:
    """Make an untrained CLIPTextModel for a tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            projection_dim=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.width // 32,
            max_position_embeddings=config.length,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class Heads:
    """Projections and classifiers that exist in training only."""

    def __init__(self, width: int, features: int, concepts: list[str]) -> None:
        import torch
        from torch import nn

        self.classes = {"concept": concepts, "style": list(STYLES), "background": list(BACKGROUNDS)}
        self.module = nn.ModuleDict({k: nn.Linear(width, len(v)) for k, v in self.classes.items()})
        self.module["text"] = nn.Linear(width, width, bias=False)
        self.module["image"] = nn.Linear(features, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.3))
        self.module.register_parameter("log_scale", self.log_scale)

    def targets(self, stickers: list[Sticker], backgrounds: list[str]) -> dict[str, torch.Tensor]:
        """Return the class indices (b,) of concept, style and background."""
        import torch

        named = {
            "concept": [s.concept for s in stickers],
            "style": [s.style for s in stickers],
            "background": backgrounds,
        }
        device = self.log_scale.device
        return {
            k: torch.tensor([self.classes[k].index(v) for v in values], device=device)
            for k, values in named.items()
        }

    def losses(
        self, text: torch.Tensor, image: torch.Tensor, targets: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return contrastive and classification losses for pooled text (b, d) and image features (b, f)."""
        import torch
        from torch.nn import functional

        a = functional.normalize(self.module["text"](text), dim=-1)
        b = functional.normalize(self.module["image"](image), dim=-1)
        logits = a @ b.T * self.log_scale.clamp(max=4.6).exp()
        label = torch.arange(len(logits), device=logits.device)
        parts = {
            "contrastive": (
                functional.cross_entropy(logits, label) + functional.cross_entropy(logits.T, label)
            )
            / 2
        }
        return parts | {k: functional.cross_entropy(self.module[k](text), v) for k, v in targets.items()}


def train(
    config: TextConfig,
    tokenizer: CLIPTokenizerFast,
    data: Stickers,
    out: Path,
    *,
    on_step: OnStep | None = None,
) -> CLIPTextModel:
    """Train (or go on training) in ``out`` and return the text encoder with averaged weights."""
    import torch

    from flashbulb.distill.data.stickers import draw_each
    from flashbulb.distill.descent import Descent

    torch.manual_seed(config.loop.seed)
    descend = Descent(config.loop)
    model = build(config, tokenizer).to(descend.device)
    features = image_features(data).to(descend.device)
    heads = Heads(config.width, features.shape[-1], sorted({s.concept for s in data.items}))
    heads.module.to(descend.device)
    parameters = [*model.parameters(), *heads.module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
    state = State({"text": model, "heads": heads.module}, {"text": optimizer}, averaged=("text",))
    pool = data.select("train")

    def update(step: int, rng: StepRng) -> dict[str, float]:
        own = rng.each(descend.batch)
        stickers, backgrounds = draw_each(pool, own)
        drawn = zip(stickers, backgrounds, own, strict=True)
        captions = [data.captions([s], [b], one)[0] for s, b, one in drawn]
        tokens = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        with autocast(descend.device):
            text = model(input_ids=tokens.input_ids.to(descend.device)).pooler_output.float()
        parts = heads.losses(
            text, features[[s.index for s in stickers]], heads.targets(stickers, backgrounds)
        )
        loss = torch.stack(list(parts.values())).sum()
        descend(loss, optimizer)
        return {k: v.item() for k, v in (parts | {"loss": loss}).items()}

    run_loop(config.loop, state, update, out, descend, on_step=on_step)
    state.use_ema()
    return model.eval().requires_grad_(False)


def image_features(data: Stickers) -> torch.Tensor:
    """Return unit-variance pooled ImageNet features (n, d) of all stickers on white."""
    import torch

    from flashbulb.distill.features import efficientnet, pooled, to_network

    model, rows = efficientnet("lite0"), []
    with torch.inference_mode():
        for i in range(0, len(data.items), 64):
            batch = data.items[i : i + 64]
            rows.append(pooled(model, to_network(data.composite(batch, ["white"] * len(batch)), 96)))
    stacked = torch.cat(rows).clone()
    return (stacked - stacked.mean(0)) / (stacked.std(0) + 1e-3)
