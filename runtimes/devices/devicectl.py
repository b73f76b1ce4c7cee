"""Speak to a device of Apple through ``xcrun devicectl``: find it, copy files, start the benchmark app.

The commands and their output are tested against a stand-in for ``xcrun``; no device has run them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from flashbulb.distill.typed_json import decode
from flashbulb.distill.untrusted import UntrustedError, read_small
from flashbulb.runtimes.engines.base import EngineError

T = TypeVar("T")

UDID = re.compile(r"[0-9A-Fa-f-]{8,64}")
APP = "org.flashbulb.bench"
"""Identifier of the benchmark app."""
PATIENCE_S = 1800.0


class Properties(msgspec.Struct, frozen=True):
    """What a device is called."""

    name: str | None = None


class Hardware(msgspec.Struct, frozen=True):
    """What a device is."""

    udid: str | None = None


class Listed(msgspec.Struct, frozen=True, rename="camel"):
    """A device as ``devicectl`` lists it; whatever else it says is passed over."""

    identifier: str | None = None
    device_properties: Properties = Properties()
    hardware_properties: Hardware = Hardware()


class Devices(msgspec.Struct, frozen=True):
    """The devices that are known."""

    devices: tuple[Listed, ...] = ()


class Nothing(msgspec.Struct, frozen=True):
    """A result of which nothing is wanted."""


class _Info(msgspec.Struct, frozen=True):
    outcome: str


class _Said(msgspec.Struct, frozen=True):
    info: _Info
    result: msgspec.Raw = msgspec.Raw(b"{}")
    error: msgspec.Raw = msgspec.Raw(b"null")


class Devicectl:
    """One device behind ``xcrun devicectl``."""

    def __init__(self, udid: str, program: str | None = None) -> None:
        """Take note of a device; nothing is asked of it yet.

        Raises:
            ValueError: for what cannot be an identifier.
            EngineError: where there is no ``xcrun``.
        """
        if not UDID.fullmatch(udid):
            raise ValueError(
                f"wanted an identifier as `xcrun devicectl list devices` shows them, got {udid!r}"
            )
        found = program or shutil.which("xcrun")
        if found is None:
            raise EngineError("wanted xcrun, got none: devices of Apple are reached from macOS with Xcode 15")
        self.udid, self.program = udid, found

    def device(self) -> Listed:
        """Return what is told of the device.

        Raises:
            EngineError: when it is not connected, naming those that are.
        """
        devices = self._json(["list", "devices"], kind=Devices).devices
        names = {d.identifier: d for d in devices} | {d.hardware_properties.udid: d for d in devices}
        if self.udid not in names:
            raise EngineError(f"wanted the device {self.udid}, got {sorted(filter(None, names))}; connect it")
        return names[self.udid]

    def copy_to(self, source: Path, target: str) -> None:
        """Copy a file or folder into the app's container."""
        self._json(["device", "copy", "to"], *self._copy(str(source.resolve()), target), kind=Nothing)

    def copy_from(self, source: str, target: Path) -> Path:
        """Copy a file out of the app's container."""
        self._json(["device", "copy", "from"], *self._copy(source, str(target.resolve())), kind=Nothing)
        return target

    def launch(self, *words: str) -> None:
        """Run the app and wait until it ends."""
        options = ["--device", self.udid, "--console", "--terminate-existing"]
        self._json(["device", "process", "launch"], *options, APP, *words, kind=Nothing)

    def _copy(self, source: str, target: str) -> list[str]:
        words = ["--device", self.udid, "--source", source, "--destination", target]
        return [*words, "--domain-type", "appDataContainer", "--domain-identifier", APP]

    def _json(self, verb: Sequence[str], *words: str, kind: type[T]) -> T:
        what = " ".join(verb)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "result.json"
            # Our options first: what follows the name of an app is given to the app.
            command = [self.program, "devicectl", *verb, "--quiet", "--json-output", str(out), *words]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, errors="replace", timeout=PATIENCE_S, check=False
                )
            except subprocess.TimeoutExpired as error:
                raise EngineError(f"{what}: no answer in {PATIENCE_S:.0f} s") from error
            if done.returncode:
                said = (done.stderr.strip() or done.stdout.strip()).splitlines()[:1] or ["it said nothing"]
                raise EngineError(f"{what} ended with code {done.returncode}: {said[0]}")
            return result(out, kind)


def result(file: Path, kind: type[T]) -> T:
    """Return the result that ``devicectl`` wrote as JSON.

    Raises:
        EngineError: when it wrote none, or one of another shape, or tells of a failure.
    """
    try:
        said = decode(read_small(file), _Said)
        if said.info.outcome != "success":
            reason = bytes(said.error)[:300].decode(errors="replace")
            raise EngineError(f"wanted success of devicectl, got {reason}")
        return decode(bytes(said.result), kind)
    except (OSError, UntrustedError) as error:
        raise EngineError(f"wanted JSON of devicectl, got: {error}") from error
