"""The command line: one word per stage function, and the only place that prints.

This module and `commands` import nothing but the standard library, so that the
help is there at once; everything else is imported when its word is chosen.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from flashbulb.apps.cli.commands import COMMANDS, USER_ERROR, find, overview

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0 when done, 1 when the numbers fail, 2 for the user's input."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0
    if words[0] == "--version":
        from flashbulb import __version__

        sys.stdout.write(f"flashbulb {__version__}\n")
        return 0
    if words[0] == "eval" and "--table" in words:
        words = ["table", *(word for word in words[1:] if word != "--table")]
    command = find(words[0])
    if command is None:
        sys.stderr.write(_unknown(words[0]))
        return USER_ERROR
    from flashbulb.apps.cli.dispatch import dispatch

    return dispatch(command, words[1:])


def _unknown(word: str) -> str:
    from difflib import get_close_matches

    known = [command.word for command in COMMANDS]
    close = get_close_matches(word, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "see flashbulb --help"
    return f"flashbulb: no command {word!r}; wanted one of {', '.join(known)}; {hint}\n"
