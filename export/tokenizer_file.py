"""Read a bundle's ``tokenizer.json``, held to the rules of a checkpoint's.  No torch here."""

from __future__ import annotations

from pathlib import Path

from flashbulb.distill.untrusted import UntrustedError
from flashbulb.distill.untrusted_tokenizer import tokenizer_text

_AGAIN = "export the bundle again, or fetch it from where it was published"


def read_tokenizer(path: Path) -> str:
    """Return the text of a tokenizer that is safe to build.

    Raises:
        BundleError: when it is no byte-pair tokenizer, or holds a step that CLIP's do not have.
    """
    from flashbulb.export.bundle import BundleError

    try:
        return tokenizer_text(path)
    except (UntrustedError, OSError) as error:
        words = str(error) if str(error).startswith("wanted a CLIP") else f"wanted a tokenizer, got: {error}"
        raise BundleError(f"{words}; {_AGAIN}") from error
