"""Android devices on a cable: push, run, compare, pull, clean up.

The runners are built beforehand, with Android's NDK, from the sources in ``runner/``: one folder holds
``flashbulb-ort``, ``flashbulb-executorch`` and the shared libraries that they need.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.devices.remote import Launcher
from flashbulb.runtimes.devices.shell import DeviceLost, Shell
from flashbulb.runtimes.devices.wire import Link
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.gates import sanity
from flashbulb.runtimes.records import Device, SanityRecord

log = logging.getLogger(__name__)

FOLDER = "/data/local/tmp"
"""The folder of an Android device from which a shell may run programs."""
SPARE_BYTES = 64 << 20
"""Storage to leave free."""
LOG = "runner.log"
CPUFREQ = "/sys/devices/system/cpu/cpufreq"
"""Where Linux tells of groups of cores that share a clock."""
THERMAL = re.compile(r"Thermal Status: *(\d+)")


class Phone(Launcher):
    """Starts runners on one device, in a folder that is removed at the end."""

    retries = 2

    def __init__(self, shell: Shell, runners: Path, folder: str = FOLDER) -> None:
        super().__init__(shell.serial)
        self.shell, self.runners = shell, runners
        self.folder = f"{folder}/flashbulb-{secrets.token_hex(8)}"
        self.pushed: dict[str, str] = {}
        self.device = _asked(shell)
        """What the device was when it was opened: at the end it may be gone."""
        self.kind = "all"
        """Kind of the cores that runners may use."""
        self.cores: str | None = None
        """The same as ``taskset`` takes them; None for all."""

    def open(self, bundle: Bundle, artifact: Artifact, threads: int) -> Link:
        """Start a runner on a file that was pushed."""
        self.shell.require()
        program = f"./flashbulb-{artifact.backend}"
        bound = ["taskset", self.cores] if self.cores else []
        words = [
            "env",
            "LD_LIBRARY_PATH=.",
            *bound,
            program,
            artifact.path,
            artifact.method or "-",
            str(threads),
        ]
        command = self.shell.remote(words, folder=self.folder, errors=LOG)
        return Link(command, what=f"{artifact.backend} on {self.where}, {artifact.component}")

    def recover(self) -> None:
        """Wait until the device is back."""
        self.shell.wait()

    def push(self, bundle: Bundle, artifacts: Mapping[str, Artifact]) -> None:
        """Copy runners and programs to the device; a copy that a lost cable cut short is made again.

        Raises:
            EngineError: when the device lacks the space, or a copy differs.
        """
        files = {path.name: path for path in sorted(self.runners.iterdir()) if path.is_file()}
        files |= {f.path: bundle.root / f.path for a in artifacts.values() for f in a.files}
        wanted = sum(path.stat().st_size for path in files.values())
        self.shell.run(["mkdir", "-p", *sorted({self._target(name, parent=True) for name in files})])
        free = self.shell.free_bytes(self.folder)
        if free < wanted + SPARE_BYTES:
            need = (wanted + SPARE_BYTES) >> 20
            raise EngineError(f"wanted {need} MiB free in {self.folder} on {self.where}, got {free >> 20}")
        for name, path in files.items():
            self.pushed[self._target(name)] = self.shell.push(path, self._target(name))
        programs = [self._target(name) for name in files if name.startswith("flashbulb-")]
        self.shell.run(["chmod", "755", *programs])

    def unchanged(self) -> SanityRecord:
        """Hold every file on the device to its hash once more, and take back the runners' log."""
        there = self.shell.sha256(list(self.pushed))
        changed = [name for name, hash_ in self.pushed.items() if there[name] != hash_]
        words = f"{len(self.pushed)} files on {self.where} kept their SHA-256 both ways"
        if changed:
            words = f"{len(changed)} files on {self.where} changed while they were used: {changed[0]}"
        return sanity("device_files", self.where, not changed, words, value=float(len(self.pushed)))

    def log_file(self, out: Path) -> Path:
        """Take back what the runners wrote on standard error."""
        self.shell.run(["touch", self._target(LOG)])
        return self.shell.pull(self._target(LOG), out)

    def clean(self) -> None:
        """Remove the folder; a device that is gone keeps it, which is logged."""
        try:
            self.shell.run(["rm", "-rf", self.folder])
        except EngineError as error:
            log.warning("%s is left on %s: %s", self.folder, self.where, error)

    def _target(self, name: str, *, parent: bool = False) -> str:
        folder, _, _ = name.rpartition("/")
        return f"{self.folder}/{folder}".rstrip("/") if parent else f"{self.folder}/{name}"


@contextlib.contextmanager
def phone(serial: str, runners: str | None, folder: str = FOLDER) -> Iterator[Phone]:
    """Open a device; its folder is removed however this ends.

    Raises:
        EngineError: when there is no device, or no runners for it.
    """
    if runners is None or not any(Path(runners).glob("flashbulb-*")):
        raise EngineError(
            f"wanted --runners, a folder with flashbulb-ort and flashbulb-executorch for {serial}, "
            f"got {runners!r}"
        )
    shell = Shell(serial)
    if (state := shell.state()) != "device":
        raise EngineError(f"wanted {serial} ready, got it {state!r}; unlock it and allow debugging")
    launcher = Phone(shell, Path(runners), folder)
    try:
        yield launcher
    finally:
        launcher.close()
        launcher.clean()


def describe(launcher: Phone) -> Device:
    """Describe a device by what it said when it was opened, and what its runners said since."""
    told = {"features": ",".join(launcher.features), **launcher.runtimes}
    attributes = launcher.device.attributes | {key: value for key, value in told.items() if value}
    return msgspec.structs.replace(launcher.device, attributes=attributes)


def _asked(shell: Shell) -> Device:
    """Ask a device what it is; what it does not know is left empty."""

    def ask(*words: str) -> str:
        return shell.run(words, check=False).strip()

    properties = {
        key: ask("getprop", key) for key in ("ro.product.model", "ro.build.version.release", "ro.soc.model")
    }
    memory = re.search(r"MemTotal:\s+(\d+) kB", ask("cat", "/proc/meminfo"))
    cores = ask("nproc")
    android = properties["ro.build.version.release"]
    return Device(
        kind="adb",
        name=properties["ro.product.model"] or shell.serial,
        os=f"Android {android}" if android else ask("uname", "-sr") or "unknown",
        arch=ask("uname", "-m") or "unknown",
        cpu=properties["ro.soc.model"] or "unknown",
        cores=int(cores) if cores.isdecimal() else 1,
        memory_bytes=int(memory[1]) * 1024 if memory else 0,
        attributes={"serial": shell.serial},
    )


def prepare(launcher: Phone, bundle: Bundle, formats: tuple[str, ...]) -> Iterator[SanityRecord]:
    """Push what a device needs, and say so; a device that was lost meanwhile is a failed condition.

    Raises:
        EngineError: when the device lacks the space, or a copy differs.
    """
    held = {f"{a.path} {a.method}": a for a in bundle.manifest.artifacts if a.format in formats}
    try:
        launcher.push(bundle, held)
    except DeviceLost as error:
        words = f"{launcher.where} was lost before every file had arrived: {error}"
        yield sanity("pushed", launcher.where, False, words, value=float(len(launcher.pushed)))
        return
    count = len(launcher.pushed)
    words = f"{count} files arrived on {launcher.where} with the SHA-256 that they had here"
    yield sanity("pushed", launcher.where, True, words, value=float(count))


def finish(launcher: Phone) -> Iterator[SanityRecord]:
    """Check the files on the device again, and log what the runners complained of.

    A device that cannot be asked any more is a failed condition, so that what was found before is kept.
    """
    try:
        yield launcher.unchanged()
        with tempfile.TemporaryDirectory() as folder:
            text = launcher.log_file(Path(folder) / LOG).read_text(errors="replace")
    except EngineError as error:
        words = f"the files on {launcher.where} could not be looked at again: {error}"
        yield sanity("device_files", launcher.where, False, words)
        return
    for line in text.splitlines()[-20:]:
        log.debug("%s: %s", launcher.where, line)
