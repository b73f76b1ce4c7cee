"""Speak to an Android device through ``adb``: run, push, pull, always with the serial number, never unquoted.

Words for this machine go to ``adb`` as a list.  Words for the device pass through its shell, which ``adb``
cannot avoid, so each of them is quoted for that shell.
"""

from __future__ import annotations

import logging
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flashbulb.export.artifact import file_sha256
from flashbulb.runtimes.engines.base import EngineError

log = logging.getLogger(__name__)

SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:\-]{0,127}")
PATIENCE_S = 600.0
RETRIES = 2
"""How often a command is said again when the cable was lost: each of ours may be run twice."""
LOST = re.compile(
    r"device (offline|'.*' not found|not found)|no devices|closed|protocol fault|connection reset", re.I
)
CUT = re.compile(r"couldn't read from device|failed to read|broken pipe|write failed|failed to send", re.I)
"""What ``adb`` says of a copy during which the cable was lost; of one from the device it may say nothing."""
COPIES = ("push", "pull")
ENDED = "flashbulb-ended:"
"""What the device's shell says after a command, with its status: without it the cable was lost meanwhile.
``adb`` itself ends with 0 or 255 then, by its version, and without a word."""
STATUS = re.compile(rf"{ENDED}(\d{{1,3}})\s*\Z")
FULL = re.compile(r"no space left on device|disk quota exceeded", re.I)


class DeviceLost(EngineError):
    """The cable was pulled, or the device's side of it ended."""


class Done(NamedTuple):
    """How a command ended."""

    code: int
    """Its status; 0 is good."""
    output: str
    """What it wrote."""
    said: str
    """What it has to say of a failure."""
    lost: bool
    """Whether the cable was lost, before it or during it."""


class Shell:
    """One device behind ``adb``."""

    def __init__(self, serial: str, program: str | None = None, patience_s: float = PATIENCE_S) -> None:
        """Take note of a device; nothing is asked of it yet.

        Raises:
            ValueError: for what cannot be a serial number.
            EngineError: when there is no ``adb``.
        """
        if not SERIAL.fullmatch(serial):
            raise ValueError(f"wanted a serial number as `adb devices` lists them, got {serial!r}")
        found = program or shutil.which("adb")
        if found is None:
            raise EngineError("wanted adb, got none: install Android's platform tools")
        self.serial, self.program, self.patience_s = serial, found, patience_s
        self.gone = ""
        """Why it is not asked or waited for any more; empty while it is there."""

    def words(self, *rest: str) -> list[str]:
        """Return a command of this machine."""
        return [self.program, "-s", self.serial, *rest]

    def remote(
        self, words: Sequence[str], *, folder: str | None = None, errors: str | None = None
    ) -> list[str]:
        """Return a command of this machine that runs words on the device, binary in and out.

        Args:
            words: command there, each word quoted for its shell.
            folder: where to run it.
            errors: file there that its standard error is added to.
        """
        line = f"exec {shlex.join(words)}" if folder or errors else shlex.join(words)
        if errors:
            line += f" 2>>{shlex.quote(errors)}"
        if folder:
            line = f"cd {shlex.quote(folder)} && {line}"
        return self.words("shell", "-T", line)

    def run(self, words: Sequence[str], *, check: bool = True) -> str:
        """Run a command on the device and return what it printed; say it again when the cable was lost.

        Raises:
            DeviceLost: when the device is gone.
            EngineError: when it failed, with its own words.
        """
        line = f"{shlex.join(words)}; echo {ENDED}$?"
        return self._done(self.words("shell", "-T", line), f"{words[0]} on {self.serial}", check=check)

    def state(self) -> str:
        """Return the device's state; a usable one is ``device``."""
        return self._done(self.words("get-state"), f"looking for {self.serial}", retries=0).strip()

    def wait(self) -> None:
        """Wait until the device is there; one that did not come in time is never waited for again.

        Raises:
            DeviceLost: when it does not come in time.
        """
        try:
            self._done(self.words("wait-for-device"), f"waiting for {self.serial}", retries=0)
        except DeviceLost as error:
            self.gone = self.gone or str(error)
            raise

    def push(self, file: Path, target: str) -> str:
        """Copy a file to the device, hold what arrived to its hash, and return that.

        Raises:
            DeviceLost: when the device is gone.
            EngineError: when its storage is full, or what arrived differs.
        """
        self._done(self.words("push", str(file.resolve()), target), f"pushing {file.name}")
        wanted, got = file_sha256(file), self.sha256([target])[target]
        if got != wanted:
            raise EngineError(f"wanted {file.name} on {self.serial} with SHA-256 {wanted}, got {got}")
        return got

    def pull(self, source: str, file: Path) -> Path:
        """Copy a file from the device and hold what arrived to its hash there.

        Raises:
            DeviceLost: when the device is gone.
            EngineError: when what arrived differs.
        """
        wanted = self.sha256([source])[source]
        self._done(self.words("pull", source, str(file.resolve())), f"pulling {source}")
        if (got := file_sha256(file)) != wanted:
            raise EngineError(f"wanted {source} from {self.serial} with SHA-256 {wanted}, got {got}")
        return file

    def sha256(self, files: Sequence[str]) -> dict[str, str]:
        """Return the hashes of files on the device."""
        lines = self.run(["sha256sum", *files]).splitlines()
        found = [re.fullmatch(r"\\?([0-9a-f]{64}) [ *](.*)", line) for line in lines]
        hashes = {match[2]: match[1] for match in found if match}
        if list(hashes) != list(files):
            raise EngineError(f"wanted the hashes of {len(files)} files of {self.serial}, got {lines[:2]}")
        return hashes

    def free_bytes(self, folder: str) -> int:
        """Return the free space of the storage that holds a folder."""
        lines = self.run(["df", "-k", folder]).splitlines()
        numbers = [word for word in lines[-1].split() if word.isdecimal()] if len(lines) > 1 else []
        if len(numbers) < 3:
            raise EngineError(f"wanted what df says of {folder} on {self.serial}, got {lines[-1:]}")
        return int(numbers[2]) * 1024

    def _done(self, words: Sequence[str], what: str, *, check: bool = True, retries: int = RETRIES) -> str:
        for left in range(retries, -1, -1):
            done = self._once(words, what)
            said = done.said[-400:]
            if done.code and FULL.search(said):
                raise EngineError(f"{what}: the storage of {self.serial} is full: {said}")
            if not done.lost:
                break
            if not left:
                raise DeviceLost(f"{what}: {said or 'it was cut short'}")
            log.warning("%s: %s; trying again", what, said or "it was cut short")
            self.wait()
        if done.code and check:
            raise EngineError(f"{what} ended with code {done.code}: {said or 'it said nothing'}")
        return done.output

    def require(self) -> None:
        """Refuse a device that was waited for in vain.

        Raises:
            DeviceLost: with what was said then.
        """
        if self.gone:
            raise DeviceLost(f"{self.serial} is gone: {self.gone}")

    def _once(self, words: Sequence[str], what: str) -> Done:
        self.require()
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self.patience_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            self.gone = f"{what}: no answer in {self.patience_s:.0f} s"
            raise DeviceLost(self.gone) from error
        return ended(words[3], done.returncode, done.stdout, done.stderr)


def ended(verb: str, code: int, output: str, errors: str) -> Done:
    """Say how a command of ``adb`` ended; that of one for the device's shell is what that shell says.

    Args:
        verb: what ``adb`` was told, as ``push``.
        code: what it ended with.
        output: what it wrote.
        errors: what it wrote on standard error.
    """
    if verb == "shell" and (status := STATUS.search(output)):
        output = output[: status.start()]
        return Done(int(status[1]), output, errors.strip() or output.strip(), lost=False)
    said = errors.strip() or output.strip()
    silent = code in (0, 255) if verb == "shell" else verb in COPIES and code and "error" not in said
    cut = verb in COPIES and code and CUT.search(said)
    return Done(code, output, said, lost=bool(silent or cut or (code and LOST.search(said))))
