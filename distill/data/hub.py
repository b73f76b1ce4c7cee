"""A data set of the Hub (``hub:owner/name``), downloaded whole and then read as the folder that it is."""

from __future__ import annotations

import logging
from pathlib import Path

from flashbulb.distill.data.base import SUFFIXES

log = logging.getLogger(__name__)

PREFIX = "hub:"
PATTERNS = ("*.parquet", "*.tar", "*.jsonl", "*.csv", "*.txt", *(f"*.{suffix}" for suffix in SUFFIXES))
"""What is downloaded; scripts, pickles and archives of other kinds are not."""


def fetch(text: str) -> tuple[Path, Path]:
    """Return the folder of ``hub:owner/name[@revision]``, and the root that its links lead into.

    Without the Hub and without an earlier download, a local folder ``owner/name`` serves.

    Raises:
        ValueError: when there is neither.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = text.removeprefix(PREFIX).partition("@")
    try:
        folder = snapshot_download(
            name, repo_type="dataset", revision=revision or None, allow_patterns=list(PATTERNS)
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        local = Path(name)
        if local.is_dir():
            log.warning("the Hub gave no %s (%s); taking the folder %s", name, type(error).__name__, local)
            return local, local
        raise ValueError(
            f"no data set {name!r}: the Hub gave none ({type(error).__name__}), none was downloaded before, "
            f"and there is no folder {name!r}. With a network: check the name, and log in if it is gated. "
            "Without: download it elsewhere (hf download --repo-type dataset) and give its folder as data"
        ) from error
    return Path(folder), Path(folder).parents[1]
