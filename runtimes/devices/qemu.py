"""64-bit Arm processors in software: the Arm kernels of the runtimes, without a phone.

QEMU's user mode runs a program for another processor and hands its system calls to this machine.  That shows
what Arm code computes.  It says nothing about time, so nothing is timed here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.devices.remote import Launcher
from flashbulb.runtimes.devices.toolchain import ARM_COMPILER, runner
from flashbulb.runtimes.devices.wire import Link
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.gates import sanity
from flashbulb.runtimes.records import Device, SanityRecord

PROGRAMS = ("qemu-aarch64-static", "qemu-aarch64")
LIBRARIES = Path("/usr/aarch64-linux-gnu/lib")
"""The Arm C library, which the cross compiler brings along."""
PATIENCE_S = 900.0
CASES = 2
"""Golden cases to run: a picture takes a hundred times as long, and sensitivity takes two."""


class Model(NamedTuple):
    """A processor that QEMU imitates."""

    name: str
    part: str
    """Its number in /proc/cpuinfo."""
    dotprod: bool
    """Whether it has the int8 dot product, for which runtimes have kernels of their own."""


MODELS = (Model("cortex-a53", "0xd03", dotprod=False), Model("cortex-a76", "0xd0b", dotprod=True))
"""One processor of each kind of kernel.  Not ``max``: it has SVE, which phones lack."""


class Qemu(Launcher):
    """Starts runners on one imitated processor."""

    def __init__(self, program: str, model: Model, root: Path) -> None:
        super().__init__(model.name)
        self.program, self.model, self.root = program, model, root

    def open(self, bundle: Bundle, artifact: Artifact, threads: int) -> Link:
        """Start a runner under QEMU on a file of the bundle."""
        program, path = runner(artifact.backend), bundle.path(artifact)
        words = [self.program, "-cpu", self.model.name, "-L", str(self.root), str(program)]
        words += [str(path), artifact.method or "-", str(threads)]
        what = f"{artifact.backend} on {self.where}, {artifact.component}"
        return Link(words, what=what, patience_s=PATIENCE_S)


def missing() -> str | None:
    """Say what this machine lacks to imitate Arm; None when nothing."""
    if _program() is None:
        return f"no {PROGRAMS[0]}: apt-get install qemu-user-static"
    if shutil.which(ARM_COMPILER) is None or not LIBRARIES.is_dir():
        return f"no {ARM_COMPILER}: apt-get install g++-aarch64-linux-gnu"
    return None


@contextmanager
def processors() -> Iterator[tuple[Qemu, ...]]:
    """Give one launcher per processor model.

    Raises:
        EngineError: with what to install.
    """
    program = _program()
    if program is None or missing():
        raise EngineError(f"wanted an emulator of 64-bit Arm, got {missing()}")
    with tempfile.TemporaryDirectory(prefix="flashbulb-qemu-") as folder:
        yield tuple(Qemu(program, model, _root(Path(folder), model)) for model in MODELS)


def describe(features: dict[str, tuple[str, ...]]) -> Device:
    """Describe the emulator as a device.

    Args:
        features: what runners said about each processor model.
    """
    import psutil

    return Device(
        kind="qemu",
        name=f"qemu-aarch64 {_version()}",
        os="Linux, user mode",
        arch="aarch64",
        cpu=", ".join(model.name for model in MODELS),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=int(psutil.virtual_memory().total),
        attributes={name: ",".join(found) for name, found in features.items()},
    )


def _program() -> str | None:
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


def _version() -> str:
    words = [_program() or PROGRAMS[0], "--version"]
    shown = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\S+)", shown)
    return found[1] if found else "of unknown version"


def _root(folder: Path, model: Model) -> Path:
    """Make what the program sees as its root: Arm libraries, and a /proc/cpuinfo of the processor.

    Older QEMU shows this machine's own cpuinfo, on which ONNX Runtime's reader of Arm's format crashes.
    """
    root = folder / model.name
    (root / "proc").mkdir(parents=True)
    (root / "lib").symlink_to(LIBRARIES)
    has = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid" + (" asimdhp asimddp" if model.dotprod else "")
    fields = {
        "processor": "0",
        "BogoMIPS": "100.00",
        "Features": has,
        "CPU implementer": "0x41",
        "CPU architecture": "8",
        "CPU variant": "0x0",
        "CPU part": model.part,
        "CPU revision": "4",
    }
    (root / "proc" / "cpuinfo").write_text("".join(f"{key}\t: {value}\n" for key, value in fields.items()))
    return root


def proof(launcher: Launcher, engine: str) -> SanityRecord | None:
    """Say whether the runner saw the processor that was asked for: one with the dot product, or without."""
    model = next(model for model in MODELS if model.name == launcher.where)
    if not launcher.features:
        return None  # no runner came up, which its own record says
    has = "dotprod" in launcher.features
    words = f"{engine}: the processor has {', '.join(launcher.features)}"
    wanted = "with" if model.dotprod else "without"
    return sanity("processor", engine, has is model.dotprod, f"{words}; wanted one {wanted} dot product")
