"""Judge a ``tokenizer.json`` before a tokenizer is built from it.  Standard library only.

The format is a small language: replacements can double a text forty times over, and a pattern can backtrack
for years.  A CLIP tokenizer needs none of that, so only its own few steps are let through.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flashbulb.distill.untrusted import UntrustedError, parse_json, read_small

NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Replace")
PRE_TOKENIZERS = ("ByteLevel", "Split", "Whitespace", "WhitespaceSplit", "BertPreTokenizer")
NAMES_OF_FILES = {"auto_map", "fast_tokenizer_files", "merges_file", "tokenizer_file", "vocab_file"}
"""Settings by which a tokenizer would be built from other files than those that were judged."""
MOST_STEPS, MOST_PATTERN, MOST_ADDED = 16, 200, 1000
MOST_HOLES = 1000
"""Ids that no word has; tokenizers' library names each of them on the terminal, and there could be 2^32."""


def tokenizer_text(path: Path) -> str:
    """Return the text of a tokenizer that is safe to build.

    Raises:
        UntrustedError: when it is no byte-pair tokenizer, or holds a step that CLIP's do not have.
        OSError: when it cannot be read.
    """
    data = read_small(path)
    for fault in tokenizer_faults(parse_json(data)):
        raise UntrustedError(f"wanted a CLIP tokenizer in {path.name}, got {fault}")
    return data.decode()


def check_tokenizer(folder: Path) -> None:
    """Judge a tokenizer's folder before a library opens it.

    Without a ``tokenizer.json``, CLIP's own steps are made out of ``vocab.json`` and ``merges.txt``.

    Raises:
        UntrustedError: when a file is not what it should be, or names others to open.
        OSError: when one cannot be read.
    """
    if (folder / "tokenizer.json").exists():
        tokenizer_text(folder / "tokenizer.json")
    for path in sorted(folder.glob("*.json")):
        value = parse_json(read_small(path))
        if not isinstance(value, dict):
            raise UntrustedError(f"wanted an object in {path.name}, got a {type(value).__name__}")
        if fault := _id_fault(list(value.values())) if path.name == "vocab.json" else "":
            raise UntrustedError(f"wanted a number for each word of {path.name}, got {fault}")
        if named := sorted(NAMES_OF_FILES & set(value)) if path.name == "tokenizer_config.json" else []:
            raise UntrustedError(f"wanted no other files from {path.name}, got {named}")
    if (folder / "merges.txt").exists():
        read_small(folder / "merges.txt").decode()


def tokenizer_faults(value: Any) -> Iterator[str]:
    """Yield what is wrong with a tokenizer, as the end of a sentence that begins with "got"."""
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        yield "no object with a model"
        return
    if value["model"].get("type") != "BPE":
        yield f"a model of type {str(value['model'].get('type'))[:40]!r}"
    if value["model"].get("continuing_subword_prefix"):
        yield "a prefix of continuing subwords, which CLIP's do not have and on which the builder can panic"
    added = value.get("added_tokens") or []
    if not isinstance(added, list) or len(added) > MOST_ADDED:
        yield f"more than {MOST_ADDED} added tokens"
    elif isinstance(words := value["model"].get("vocab"), dict):
        yield from _word_faults(words, [t for t in added if isinstance(t, dict)], value["model"])
    for kind, key, known in (
        ("normalizer", "normalizers", NORMALIZERS),
        ("pre_tokenizer", "pretokenizers", PRE_TOKENIZERS),
    ):
        steps = list(_steps(value.get(kind), key))
        if len(steps) > MOST_STEPS:
            yield f"more than {MOST_STEPS} steps in its {kind}"
        for step in steps:
            yield from _step_faults(step, kind, known)


def _word_faults(words: dict[str, Any], added: list[dict[str, Any]], model: dict[str, Any]) -> Iterator[str]:
    if fault := _id_fault([*words.values(), *(token.get("id") for token in added)]):
        yield fault
    unknown = model.get("unk_token")
    if unknown is not None and unknown not in list(words):  # an added token is none of the model's
        yield f"the unknown token {str(unknown)[:40]!r}, which is not among its words"


def _id_fault(ids: list[Any]) -> str:
    """Say what is wrong with the ids of words, empty where nothing is."""
    if not all(type(i) is int for i in ids):
        return "something else than whole numbers as ids"
    most = len(ids) + MOST_HOLES
    wrong = next((i for i in ids if not 0 <= i < most), None)
    return "" if wrong is None else f"the id {wrong} among {len(ids)} words, wanted 0 to {most - 1}"


def _steps(value: Any, key: str) -> Iterator[Any]:
    """Yield the steps of a sequence, or the one step; a sequence inside one is a step that is not known."""
    if isinstance(value, dict) and value.get("type") == "Sequence" and isinstance(value.get(key), list):
        yield from value[key]
    elif value is not None:
        yield value


def _step_faults(step: Any, kind: str, known: tuple[str, ...]) -> Iterator[str]:
    word = step.get("type") if isinstance(step, dict) else None
    if word not in known:
        yield f"the {kind} step {str(word)[:40]!r}, known are {list(known)}"
    elif word in ("Replace", "Split"):
        if word == "Replace" and step.get("content") not in ("", " "):
            yield "a replacement by more than one space"
        if not _plain(step.get("pattern")):
            yield f"the pattern {str(step.get('pattern'))[:60]!r}, which can take for ever"


def _plain(pattern: Any) -> bool:
    """Tell whether a pattern is a list of alternatives with one repetition each, and without groups."""
    if not isinstance(pattern, dict) or len(pattern) != 1:
        return False
    ((kind, text),) = pattern.items()
    if not isinstance(text, str) or not 0 < len(text) <= MOST_PATTERN:
        return False
    bare = re.sub(r"\\[pP]\{\^?\w+\}|\\.", "x", text)
    bare = re.sub(r"\[[^\[\]]*\]", "x", bare)
    return kind == "String" or (
        not set(bare) & set("()[]{}\\")
        and all(len(re.findall("[*+?]", part)) <= 1 for part in bare.split("|"))
    )
