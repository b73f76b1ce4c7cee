"""Make the runners of another architecture: runtimes from their published wheels, our C++ compiled for it.

Both land in the user's cache folder, under the versions that they are of, and are made once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from flashbulb.runtimes.engines.base import EngineError

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "runner"
ARM_COMPILER = "aarch64-linux-gnu-g++"
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
MOST_BYTES = 1 << 30
"""Largest library or header that is taken out of a wheel."""
C10 = "executorch/include/executorch/runtime/core/portable_type/c10"


class Kit(NamedTuple):
    """How the runner of one runtime is made."""

    package: str
    """Its name on the package index."""
    source: str
    """The file in `SOURCES` that speaks to it."""
    members: tuple[str, ...]
    """What to take out of the wheel."""
    libraries: tuple[str, ...]
    """What to link, relative to the unpacked wheel."""
    flags: tuple[str, ...] = ()
    """For the compiler; ``{root}`` is the unpacked wheel."""


KITS = {
    "ort": Kit("onnxruntime", "ort.cpp", ("onnxruntime/capi/libonnxruntime.so.",), ("libonnxruntime.so.1",)),
    "executorch": Kit(
        "executorch",
        "executorch.cpp",
        ("executorch/lib/libexecutorch", "executorch/include/"),
        tuple(
            f"lib{name}.so"
            for name in (
                "executorch",
                "executorch_kernels_optimized",
                "executorch_backend_xnnpack",
                "executorch_threadpool",
            )
        ),
        (
            "-DC10_USING_CUSTOM_GENERATED_MACROS",
            "-DET_USE_THREADPOOL",
            "-I{root}/executorch/include",
            f"-I{{root}}/{C10}",
        ),
    ),
}
"""By the name of the engine."""


def cache() -> Path:
    """Return the folder where runners are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "flashbulb" / "aarch64-linux"


def installed(engine: str) -> str:
    """Return the version of a runtime here, which the one on the device shall equal.

    Raises:
        EngineError: when it is not installed.
    """
    package = KITS[engine].package
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise EngineError(f"wanted {package} here as well, to compare with: pip install {package}") from None


def runner(engine: str) -> Path:
    """Return the runner of an engine for 64-bit Arm Linux, with its libraries beside it; make it if need be.

    Raises:
        EngineError: when the wheel cannot be had or the compiler is missing or fails.
    """
    version, kit = installed(engine), KITS[engine]
    root = cache() / f"{kit.package}-{version}"
    if not root.is_dir():
        _fetch(kit, version, root)
    program = root / "lib" / f"flashbulb-{engine}-{_key()}"
    if not program.is_file():
        _compile(kit, version, root, program)
    return program


def _key() -> str:
    files = sorted(SOURCES.iterdir())
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()[:12]


def _fetch(kit: Kit, version: str, root: Path) -> None:
    """Download the runtime's wheel for Arm and take out what is needed."""
    wanted = f"{kit.package}=={version}"
    log.info("fetching %s for 64-bit Arm Linux", wanted)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".fetch-") as folder:
        words = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        words += ["--only-binary=:all:", *(f"--platform={platform}" for platform in PLATFORMS)]
        words += [f"--python-version={sys.version_info.major}.{sys.version_info.minor}", "--dest", folder]
        _command([*words, wanted], f"cannot fetch {wanted} for {PLATFORMS[0]}")
        wheels = list(Path(folder).glob("*.whl"))
        if len(wheels) != 1:
            raise EngineError(f"wanted one wheel of {wanted}, got {[wheel.name for wheel in wheels]}")
        unpack(wheels[0], kit.members, Path(folder) / "root")
        _replace(Path(folder) / "root", root)


def unpack(wheel: Path, starts: Sequence[str], out: Path) -> None:
    """Take files out of a wheel: libraries into ``lib/``, others where they are.

    A library is named as programs ask for it: ``libx.so.1`` for ``libx.so.1.31.1``.

    Raises:
        EngineError: for a name that leads elsewhere, or a file over `MOST_BYTES`.
    """
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            path = PurePosixPath(info.filename)
            if info.is_dir() or not info.filename.startswith(tuple(starts)):
                continue
            if (
                path.is_absolute()
                or ".." in path.parts
                or "\\" in info.filename
                or info.file_size > MOST_BYTES
            ):
                raise EngineError(
                    f"wanted a file of ordinary name and size, got {info.filename!r} in {wheel}"
                )
            target = out / "lib" / _soname(path.name) if path.name.startswith("lib") else out / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)


def _soname(name: str) -> str:
    stem, mark, version = name.partition(".so.")
    return f"{stem}.so.{version.split('.')[0]}" if mark else name


def _compile(kit: Kit, version: str, root: Path, program: Path) -> None:
    compiler = shutil.which(ARM_COMPILER)
    if compiler is None:
        raise EngineError(f"wanted {ARM_COMPILER}, got none: apt-get install g++-aarch64-linux-gnu")
    log.info("compiling %s", program.name)
    temporary = program.with_name(f".{program.name}.{os.getpid()}")
    words = [compiler, "-std=c++20", "-O2", f'-DFLASHBULB_VERSION="{version}"']
    words += [flag.format(root=root) for flag in kit.flags]
    words += [str(SOURCES / "main.cpp"), str(SOURCES / kit.source), "-o", str(temporary)]
    words += ["-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN"]
    words += [str(root / "lib" / name) for name in kit.libraries]
    _command(words, f"cannot compile the runner of {kit.package} {version}")
    temporary.replace(program)


def _command(words: Sequence[str], trouble: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if "rror" in line] or [
            "it says nothing"
        ]
        raise EngineError(f"{trouble}: {said[0].strip()[:300]}")


def _replace(folder: Path, root: Path) -> None:
    try:
        folder.rename(root)
    except OSError:
        if not root.is_dir():  # another process was first
            raise
