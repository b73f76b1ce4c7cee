"""Judge a ``tokenizer.json`` before a tokenizer is built from it.  No torch here.

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
MOST_STEPS, MOST_PATTERN, MOST_ADDED = 16, 200, 1000
_AGAIN = "export the bundle again, or fetch it from where it was published"


def read_tokenizer(path: Path) -> str:
    """Return the text of a tokenizer that is safe to build.

    Raises:
        BundleError: when it is no byte-pair tokenizer, or holds a step that CLIP's do not have.
    """
    from flashbulb.export.bundle import BundleError

    try:
        data = read_small(path)
        value = parse_json(data)
    except (UntrustedError, OSError) as error:
        raise BundleError(f"wanted a tokenizer in {path.name}, got: {error}; {_AGAIN}") from error
    for fault in _faults(value):
        raise BundleError(f"wanted a CLIP tokenizer in {path.name}, got {fault}; {_AGAIN}")
    return data.decode()


def _faults(value: Any) -> Iterator[str]:
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
    for kind, key, known in (
        ("normalizer", "normalizers", NORMALIZERS),
        ("pre_tokenizer", "pretokenizers", PRE_TOKENIZERS),
    ):
        steps = list(_steps(value.get(kind), key))
        if len(steps) > MOST_STEPS:
            yield f"more than {MOST_STEPS} steps in its {kind}"
        for step in steps:
            yield from _step_faults(step, kind, known)


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
