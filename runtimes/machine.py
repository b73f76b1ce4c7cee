"""A machine that ran something, and the description of this one.  No torch."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec

RUNTIMES = {
    "torch": {"executorch"},
    "diffusers": set[str](),
    "onnxruntime": {"ort"},
    "executorch": {"executorch"},
    "coremltools": set[str](),
}
"""Package -> the engines of this machine, of those that a device is compared with, which it runs in."""


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The machine that ran the artifacts."""

    kind: Literal["host", "qemu", "adb", "ios"] = "host"
    """How it was reached; an emulated device has parity but never a latency."""
    name: str
    """Name or serial number, as its owner would recognise it."""
    os: str
    """Operating system and version."""
    arch: str
    """Processor architecture."""
    cpu: str
    """Processor model."""
    cores: int
    """Logical processors that this process may use."""
    memory_bytes: int
    """Main memory."""
    attributes: dict[str, str] = {}
    """What else decides a figure there: governor, thermal state, low-power mode."""


def identity(device: Device) -> tuple[object, ...]:
    """Return what tells a device from others, however warm or busy it was."""
    named = (device.kind, device.name, device.os, device.arch, device.cpu, device.cores)
    return (*named, number(device))


def number(device: Device) -> str:
    """Return the number that tells a device from others of its model: Android's serial, Apple's UDID."""
    return device.attributes.get("serial") or device.attributes.get("udid") or ""


def titles(devices: Sequence[Device]) -> tuple[str, ...]:
    """Name devices so that no two are named alike: by name, or with its number, or counted."""
    names = [d.name for d in devices]
    numbers = [number(d) for d in devices]
    shown = [f"{n} ({s})" if names.count(n) > 1 and s else n for n, s in zip(names, numbers, strict=True)]
    return tuple(
        n if shown.count(n) == 1 else f"{n} ({shown[: i + 1].count(n)})" for i, n in enumerate(shown)
    )


def host() -> Device:
    """Describe this machine."""
    import psutil

    return Device(
        name=platform.node() or "this machine",
        os=f"{platform.system()} {platform.release()}",
        arch=platform.machine(),
        cpu=_cpu_name(),
        cores=usable_cores(),
        memory_bytes=int(psutil.virtual_memory().total),
        attributes=_attributes(),
    )


def usable_cores() -> int:
    """Count the processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def runtime_versions() -> dict[str, str]:
    """Return the versions of flashbulb, Python and whatever runtimes are installed."""
    names = (
        "flashbulb",
        "numpy",
        "tokenizers",
        "torch",
        "diffusers",
        "onnxruntime",
        "executorch",
        "coremltools",
    )
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def driver_versions(engines: Collection[str]) -> dict[str, str]:
    """Return the versions of what drove a device: of this machine's runtimes, those alone that ran here too.

    Args:
        engines: which of this machine's engines ran beside the device's, as ``ort``.
    """
    idle = {name for name, users in RUNTIMES.items() if not users & set(engines)}
    return {name: version for name, version in runtime_versions().items() if name not in idle}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Hardware")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _attributes() -> dict[str, str]:
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    found = {"governor": governor.read_text().strip()} if governor.is_file() else {}
    if hasattr(os, "getloadavg"):
        found["load_average_1min"] = f"{os.getloadavg()[0]:.2f}"
    return found
