"""Options that have no effect where a command runs are refused, so that none is ignored in silence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

Reasons = dict[str, str]
"""Option -> why it has no effect on a device."""

_BASELINE = "another machine is compared with this one, not with an earlier bundle"
_ITS_OWN = "the runners are made here, for the processors that are imitated"
_APP = "the app on the device decides on it"

CHECK_HERE = {"runners": "--device", "cases": "--device", "seconds": "--baseline"}
"""Option -> the one without which it has no effect on this machine."""
CHECK_DEVICE: Reasons = {
    "baseline": _BASELINE,
    "max_slowdown": _BASELINE,
    "max_db_drop": _BASELINE,
    "seconds": _BASELINE,
    "bisect": "programs are taken apart on this machine; run it without --device",
}
CHECK_KIND: dict[str, Reasons] = {
    "qemu": {"runners": _ITS_OWN},
    "ios": {"runners": "the device runs an app that was installed", "threads": _APP},
}
BENCH_HERE = dict.fromkeys(("runners", "cores", "cool_down_s"), "--device")
BENCH_DEVICE: Reasons = {
    "optimum": "a device runs the bundle's programs alone",
    "prompt": "a device runs the first golden case",
    "checkpoint": "no PyTorch is timed on a device",
}
BENCH_KIND: dict[str, Reasons] = {
    "ios": dict.fromkeys(("threads", "seconds", "cores", "cool_down_s"), _APP)
    | {"runners": "the device runs an app that was installed"}
}


def refuse_check(config: msgspec.Struct, device: str | None, baseline: str | None) -> None:
    """Refuse options that `check` would not heed.

    Raises:
        ValueError: naming the first of them, and why.
    """
    if device:
        _refuse_there(config, device, CHECK_DEVICE | CHECK_KIND.get(_kind(device), {}))
    else:
        _refuse_here(config, {k: v for k, v in CHECK_HERE.items() if not (baseline and v == "--baseline")})


def refuse_bench(config: msgspec.Struct, device: str | None) -> None:
    """Refuse options that `bench` would not heed.

    Raises:
        ValueError: naming the first of them, and why.
    """
    if device:
        _refuse_there(config, device, BENCH_DEVICE | BENCH_KIND.get(_kind(device), {}))
    else:
        _refuse_here(config, BENCH_HERE)


def _refuse_there(config: msgspec.Struct, device: str, reasons: Reasons) -> None:
    for option, _ in _given(config, reasons):
        reason = reasons[option]
        raise ValueError(f"wanted {_flag(option)} or --device, got both; {device}: {reason}")


def _refuse_here(config: msgspec.Struct, needed: Mapping[str, str]) -> None:
    for option, value in _given(config, needed):
        raise ValueError(f"wanted {needed[option]} with {_flag(option)}, got {value!r} alone; give both")


def _given(config: msgspec.Struct, options: Iterable[str]) -> Iterator[tuple[str, Any]]:
    defaults = {field.name: field.default for field in msgspec.structs.fields(config)}
    for option in options:
        if (value := getattr(config, option)) != defaults[option]:
            yield option, value


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _kind(device: str) -> str:
    return device.partition(":")[0]
