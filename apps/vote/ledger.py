"""The file of votes while votes are added to it: each is on the disk before it counts."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from flashbulb.distill.metrics.votes import Vote, parse_votes
from flashbulb.distill.typed_json import decode
from flashbulb.distill.untrusted import UntrustedError

log = logging.getLogger(__name__)


class Ledger:
    """A file that only grows. Several servers may add to it: whoever adds holds its lock and has read it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._read = 0
        with self._lock():
            self._mend()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    @contextmanager
    def hold(self) -> Iterator[list[Vote]]:
        """Lock the file and give the votes that were added since the last time, by whomever."""
        with self._lock():
            yield self._news()

    def add(self, vote: Vote) -> None:
        """Append a vote and wait until it is on the disk; call it only inside `hold`.

        Raises:
            OSError: when it could not be written; the file is then as it was.
        """
        line = msgspec.json.encode(vote) + b"\n"
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                raise OSError(f"{self.file}: the vote could not be written, the disk may be full")
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._read)
            raise
        self._read += len(line)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _news(self) -> list[Vote]:
        size = os.fstat(self._descriptor).st_size
        content = os.pread(self._descriptor, size - self._read, self._read)
        self._read = size
        return parse_votes(content, self.file)

    def _mend(self) -> None:
        """End the last line, or take it away where a kill cut it off: nobody was told that it counts."""
        content = self.file.read_bytes()
        rest = content[content.rfind(b"\n") + 1 :]
        if not rest:
            return
        try:
            decode(rest, Vote)
            os.write(self._descriptor, b"\n")
        except UntrustedError:
            log.warning("%s: its last line was cut off and is taken away", self.file)
            os.ftruncate(self._descriptor, len(content) - len(rest))
