"""Join reports on one bundle, device by device.  No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from flashbulb.runtimes.machine import Device, identity
from flashbulb.runtimes.records import Measured, Report, now

ORDER = ("host", "adb", "ios", "qemu")
"""Computers, phones, emulators: the first device of a report is the one that its baseline is held to."""
BETWEEN = "; "
"""Between values that one device had at different times, such as its governor."""


def merge(reports: Iterable[Report], command: Literal["check", "bench", "report"] = "report") -> Report:
    """Join the records of several reports; those of one device stand together, under its description.

    Raises:
        ValueError: when there is none, or they are of different bundles.
    """
    found = list(reports)
    known = {r.bundle.manifest_sha256 for r in found if r.bundle}
    if not found or len(known) > 1:
        raise ValueError(
            f"wanted reports of one bundle, got {len(found)} of {len(known)} bundles; check it again"
        )
    first, *others = by_device(part for report in found for part in report.parts)
    return Report(
        command=command,
        created=now(),
        bundle=next((r.bundle for r in reversed(found) if r.bundle), None),
        others=tuple(others),
        **msgspec.structs.asdict(first),
    )


def by_device(parts: Iterable[Measured]) -> list[Measured]:
    """Gather what was measured by device; devices without a record are left out where others have some."""
    groups: dict[tuple[object, ...], list[Measured]] = {}
    for part in parts:
        groups.setdefault(identity(part.device), []).append(part)
    found = [gathered(group) for group in groups.values()]
    return sorted(
        [part for part in found if part.own] or found[:1], key=lambda part: ORDER.index(part.device.kind)
    )


def gathered(parts: Sequence[Measured]) -> Measured:
    """Join what one device has measured at different times."""
    return Measured(
        device=described([part.device for part in parts if part.own] or [parts[0].device]),
        versions=united([part.versions for part in parts if part.own] or [parts[0].versions]),
        sanity=tuple(r for part in parts for r in part.sanity),
        parity=tuple(r for part in parts for r in part.parity),
        latency=tuple(r for part in parts for r in part.latency),
        regression=tuple(r for part in parts for r in part.regression),
    )


def described(devices: Sequence[Device]) -> Device:
    """Describe one device by what it was each time: two governors are both told."""
    attributes = united([device.attributes for device in devices])
    return msgspec.structs.replace(devices[-1], attributes=attributes)


def united(tables: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Join tables; a key with several values keeps them all, in their order."""
    keys = dict.fromkeys(key for table in tables for key in table)
    values = {k: [v for t in tables if k in t for v in t[k].split(BETWEEN)] for k in keys}
    return {key: BETWEEN.join(dict.fromkeys(found)) for key, found in values.items()}
