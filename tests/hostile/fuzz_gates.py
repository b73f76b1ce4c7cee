"""Broken files for `fuzz.py` as the gates and `doctor` open them: packages, vocabularies, tokenizers.

What no runtime is asked about is read as well: each line and constant of a Core ML package, the vocabulary
beside a tokenizer, and the tokenizer of a checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fuzz_mil
from breaking import Target, broken_json
from fuzz_files import RefusedError, tokenizer


def package_targets(work: Path) -> list[Any]:
    """What takes a Core ML package apart, and what `doctor` says of it."""
    from flashbulb.export.anatomy import AnatomyError
    from flashbulb.runtimes.engines.mil import ProgramError
    from flashbulb.runtimes.engines.mil.listing import read_package_listing

    root = work / "g.mlpackage"
    models = list(fuzz_mil.sound("mil-model").values())
    fuzz_mil.write_package(root, models[0])
    broken = fuzz_mil.broken_messages(models, fuzz_mil.names_of(models))

    def read_listing(data: bytes) -> None:
        (root / fuzz_mil.MODEL).write_bytes(data)
        for constant in read_package_listing(root).constants.values():
            for load in (constant.load, constant.scale, constant.table):
                if load is not None:
                    load()

    def read_doctor(data: bytes) -> None:
        (root / fuzz_mil.MODEL).write_bytes(data)
        found = examined(root)
        if wrong := [what for severity, what in found if severity == "error"]:
            raise RefusedError(wrong[0])

    for data in models:  # what is imported once, no case shall pay for
        read_listing(data)
        read_doctor(data)
    return [
        Target("mil-listing", read_listing, (ProgramError, AnatomyError), broken),
        Target("mil-doctor", read_doctor, (RefusedError,), broken),
    ]


def examined(root: Path) -> list[tuple[str, str]]:
    """Return what `doctor` says of a package."""
    from flashbulb.export.artifact import Artifact, RuntimeFloor
    from flashbulb.export.doctor import look

    artifact = Artifact(
        component="unet",
        backend="coreml",
        format="mlpackage",
        path=root.name,
        files=(),
        size_bytes=0,
        sha256="0" * 64,
        precision="float16",
        floor=RuntimeFloor(runtime="coreml", version="7"),
        inputs=(),
        outputs=(),
    )
    return list(look(root, artifact))


def word_targets(work: Path) -> list[Any]:
    """The vocabulary beside a bundle's tokenizer, and a checkpoint's tokenizer."""
    from flashbulb.distill import checkpoint
    from flashbulb.runtimes.source_gates import vocabulary_gate

    sound, folder = tokenizer(), work / "words"
    write_words(folder, sound)

    def read_vocabulary(data: bytes) -> None:
        (folder / "vocab.json").write_bytes(data)
        record = vocabulary_gate(folder)
        if record.verdict != "pass":
            raise RefusedError(record.sentence)

    own = work / "own-words"
    write_words(own, sound)

    def read_tokenizer(data: bytes) -> None:
        (own / "tokenizer.json").write_bytes(data)
        checkpoint._load_tokenizer.cache_clear()
        found = checkpoint._load_tokenizer(own)
        found("a glossy red apple, " * 50 + "\x00\u202e🐸" + "a" * 2000)
        # transformers' own decoder holds it in a cycle through Rust, which Python never collects
        del found.backend_tokenizer.decode

    text = json.dumps(sound).encode()
    read_tokenizer(text)
    errors = (checkpoint.CheckpointError,)
    return [
        Target("vocabulary", read_vocabulary, (RefusedError,), broken_json(sound["model"]["vocab"])),
        Target("checkpoint-tokenizer", read_tokenizer, errors, broken_json(sound)),
    ]


def write_words(folder: Path, sound: Any) -> None:
    """Write the files of a tokenizer."""
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(sound))
    (folder / "vocab.json").write_text(json.dumps(sound["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(sound["model"]["merges"]) + "\n")
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|end|>")
    (folder / "tokenizer_config.json").write_text(json.dumps(special))


def targets(work: Path) -> list[Any]:
    """Return the readers."""
    return [*package_targets(work), *word_targets(work)]
