"""Names of shards: a tar, a folder of tars, a glob, or counted in braces. None is a command."""

from __future__ import annotations

import re
from pathlib import Path

from flashbulb.distill.data.paths import of_split

MAX_SHARDS = 100_000
BRACES = re.compile(r"\{([^{}]*)\}")


def find(text: str, split: str) -> list[Path]:
    """Return the shards that a text means: a tar, a folder of tars, a glob, or names with ``{000..009}``.

    Raises:
        ValueError: when there are none, or one that is named is missing.
    """
    root = Path(text)
    if root.is_dir():
        return of_split(sorted(root.rglob("*.tar")), split, root)
    if "*" in text or "?" in text:
        base = Path(root.anchor or ".")
        files = sorted(base.glob(str(root.relative_to(base) if root.anchor else root)))
        if not files:
            raise ValueError(
                f"wanted shards like {text!r}, got none; a folder of .tar files can be given too"
            )
        return files
    named = [Path(name) for name in expand(text)]
    if missing := [str(file) for file in named if not file.is_file()]:
        raise ValueError(
            f"wanted the {len(named)} shards {text!r}, got no {missing[0]} (and {len(missing) - 1} more miss)"
        )
    return named


def expand(text: str) -> list[str]:
    """Return the texts that braces stand for: ``{08..11}`` counts, with its zeros; ``{a,b}`` lists.

    Raises:
        ValueError: for braces that are neither, or too many texts.
    """
    found = BRACES.search(text)
    if found is None:
        return [text]
    inner = found[1]
    if counted := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        first, last = int(counted[1]), int(counted[2])
        if not 0 <= last - first < MAX_SHARDS:
            raise ValueError(f"wanted {{first..last}} of at most {MAX_SHARDS} shards, got {{{inner}}}")
        choices = [str(i).zfill(len(counted[1])) for i in range(first, last + 1)]
    elif "," in inner:
        choices = inner.split(",")
    else:
        raise ValueError(f"wanted {{000..009}} or {{a,b}} in {text!r}, got {{{inner}}}")
    tails = expand(text[found.end() :])
    if len(choices) * len(tails) > MAX_SHARDS:
        raise ValueError(f"wanted at most {MAX_SHARDS} shards, got {len(choices) * len(tails)} from {text!r}")
    return [text[: found.start()] + choice + tail for choice in choices for tail in tails]
