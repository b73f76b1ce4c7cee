"""Faults outside of the programs: tokenizer, golden vectors, manifest, and the folder for optimum."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mutants.fault import Plant, Planter, edited, replace

Json = dict[str, Any]


def json_edit(relative: str, change: Callable[[Json], object]) -> Plant:
    """Make a planter that changes a JSON file."""

    def apply(data: bytearray) -> bytes:
        value = json.loads(bytes(data))
        change(value)
        return json.dumps(value, ensure_ascii=False).encode()

    return edited(relative, apply)


def tokenizer_faults(planter: Planter, folder: str, prompts: list[str]) -> None:
    """Add wrong tokenizers."""
    path = f"{folder}/tokenizer.json"
    word = next(w for p in prompts for w in p.split() if len(w) > 3).lower()

    def add(kind: str, about: str, change: Callable[[Json], object]) -> None:
        planter.add(kind, f"{path}: {about}", json_edit(path, change))

    def merges(value: Json) -> list[Any]:
        found: list[Any] = value["model"]["merges"]
        return found

    def swap_ids(value: Json, one: str, other: str) -> None:
        vocab = value["model"]["vocab"]
        vocab[one], vocab[other] = vocab[other], vocab[one]

    last = f"{word[-1]}</w>"
    rng = planter.rng("merge")
    add("merges", "no merges", lambda v: merges(v).clear())
    add(
        "merges", "first half of the merges lost", lambda v: merges(v).__delitem__(slice(len(merges(v)) // 2))
    )
    add("merges", "merges in reverse", lambda v: merges(v).reverse())
    for _ in range(3):
        place = rng.random()
        add("merges", f"one merge lost, at {place:.2f} of them", lambda v, p=place: _drop(merges(v), p))
    add("merges", "two merges swapped", lambda v: _swap(merges(v), rng.random()))
    add("vocabulary", f"ids of {word[0]!r} and {last!r} swapped", lambda v: swap_ids(v, word[0], last))
    add("vocabulary", "ids of two random tokens swapped", lambda v: swap_ids(v, *_two(v["model"]["vocab"])))
    add("vocabulary", "every id one higher", lambda v: _shift(v["model"]["vocab"]))
    add("normalizer", "letters are no longer made small", lambda v: v.update(normalizer=None))
    add("vocabulary", "no end of word", lambda v: v["model"].update(end_of_word_suffix=""))
    add("same-program", "written without spaces", lambda v: None)
    if (planter_file := f"{folder}/merges.txt") and word:
        planter.add("merges", f"{planter_file}: lines in reverse", edited(planter_file, _lines))
        planter.add(
            "vocabulary",
            f"{folder}/vocab.json: every id one higher",
            json_edit(f"{folder}/vocab.json", _shift),
        )


def _drop(items: list[Any], place: float) -> None:
    del items[int(place * len(items))]


def _swap(items: list[Any], place: float) -> None:
    index = int(place * (len(items) - 40))
    items[index], items[index + 30] = items[index + 30], items[index]


def _two(vocab: Json) -> list[str]:
    return [sorted(vocab)[len(vocab) // 3], sorted(vocab)[len(vocab) // 2]]


def _shift(vocab: Json) -> None:
    for key in vocab:
        vocab[key] += 1


def _lines(data: bytearray) -> bytes:
    head, *rest = bytes(data).splitlines()
    return b"\n".join([head, *rest[::-1]]) + b"\n"


def golden_faults(planter: Planter, root: Path, vectors: str, pictures: list[str]) -> None:
    """Add golden vectors that are not those of the checkpoint."""
    from safetensors.numpy import load_file, save

    held = load_file(root / vectors)

    def add(about: str, name: str, change: Callable[[Any], Any]) -> None:
        def plant(root: Path) -> None:
            tensors = load_file(root / vectors)
            tensors[name] = np.ascontiguousarray(change(tensors[name]), tensors[name].dtype)
            replace(root / vectors, save(tensors))

        planter.add("golden-vector", f"{name} {about}", plant)

    def one(array: Any) -> Any:
        flat = array.copy()
        flat.reshape(-1)[flat.size // 2] += 0.5
        return flat

    for name in ("0.out", "1.hidden", "2.x0", "3.image", "0.latent", "1.noise", "2.sample"):
        if name in held:
            add("with 0.5 more in one element", name, one)
    add("times 1.05", "0.image", lambda a: a * 1.05)
    add("of another case", "1.image", lambda a: held["2.image"])
    add("all zero", "0.image", lambda a: a * 0)
    add("one id changed", "0.input_ids", lambda a: np.where(np.arange(a.size) == 1, a + 1, a))
    planter.add("golden-picture", f"{pictures[0]} is {pictures[1]}", _copy(pictures[1], pictures[0]))


def _copy(source: str, target: str) -> Plant:
    return lambda root: replace(root / target, (root / source).read_bytes())


def optimum_faults(planter: Planter, root: Path) -> None:
    """Add faults of the folder that optimum's pipelines open, where there is one."""
    if not (root / "optimum").is_dir():
        return
    model = "optimum/unet/model.onnx"
    planter.add("weight-bit", f"one bit in the middle of {model}", edited(model, _bit))
    planter.add(
        "constants",
        "optimum/scheduler: predicts epsilon",
        json_edit("optimum/scheduler/scheduler_config.json", lambda v: v.update(prediction_type="epsilon")),
    )
    planter.add(
        "constants",
        "optimum/vae_decoder: scaling factor doubled",
        json_edit(
            "optimum/vae_decoder/config.json", lambda v: v.update(scaling_factor=2 * v["scaling_factor"])
        ),
    )
    planter.add(
        "merges",
        "optimum/tokenizer: no merges",
        json_edit("optimum/tokenizer/tokenizer.json", lambda v: v["model"]["merges"].clear()),
    )


def _bit(data: bytearray) -> None:
    data[len(data) // 2] ^= 0x40
