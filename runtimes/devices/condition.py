"""What decides a figure on a phone beside its program: warmth, clock rules, kinds of cores, cached files."""

from __future__ import annotations

import logging
import re
import time
from typing import Literal, NamedTuple

from flashbulb.runtimes.devices.adb import CPUFREQ, THERMAL, Phone
from flashbulb.runtimes.devices.shell import DeviceLost
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.records import Verdict

log = logging.getLogger(__name__)

Cores = Literal["all", "big", "little"]
STEP_S = 5.0
"""Time between two looks at a device that cools."""
FIELDS = ("related_cpus", "cpuinfo_max_freq", "scaling_governor")


class Group(NamedTuple):
    """Cores that share a clock."""

    cores: tuple[int, ...]
    """Their numbers."""
    fastest_khz: int
    """The fastest that they can run."""
    governor: str
    """What sets their clock."""


class Condition(NamedTuple):
    """How a phone stands before a program is opened."""

    cores: str
    """Which cores it may use: kind, and the mask of ``taskset`` where there is one."""
    governors: dict[str, str]
    """Cores, as ``0,1,2,3`` -> governor."""
    cold: bool
    """Whether the page cache was dropped."""
    thermal: int | None
    """Android's thermal status; None where it is not told."""


def groups(phone: Phone) -> list[Group]:
    """Return the groups of cores that a device tells of; none where its kernel does not."""
    names = re.findall(r"^policy\d+$", phone.shell.run(["ls", CPUFREQ], check=False), re.MULTILINE)
    if not names:
        return []
    files = [f"{CPUFREQ}/{name}/{field}" for name in names for field in FIELDS]
    lines = phone.shell.run(["grep", "-H", "", *files], check=False).splitlines()
    told = {file: value.strip() for file, _, value in (line.partition(":") for line in lines)}
    rows = [[told.get(f"{CPUFREQ}/{name}/{field}", "") for field in FIELDS] for name in names]
    return [
        Group(tuple(map(int, re.findall(r"\d+", cores))), int(khz), governor or "unknown")
        for cores, khz, governor in rows
        if cores and khz.isdecimal()
    ]


def mask(phone: Phone, cores: Cores, threads: int = 0) -> str | None:
    """Return the fastest or slowest cores as ``taskset`` takes them: hexadecimal; None for all.

    Where that kind has fewer cores than there are threads, the next kind is taken as well, but never the one
    at the other end.

    Raises:
        EngineError: when the device has one kind only, or does not tell, or has too few such cores.
    """
    if cores == "all":
        return None
    found = groups(phone)
    kinds = sorted({group.fastest_khz for group in found})
    if len(kinds) < 2:
        raise EngineError(
            f"wanted {cores} cores of {phone.where}, got cores of {len(kinds)} kind(s); say all"
        )
    order = kinds[::-1] if cores == "big" else kinds
    taken = [n for g in found if g.fastest_khz == order[0] for n in g.cores]
    for kind in order[1:-1]:
        if len(taken) < threads:
            taken += [n for g in found if g.fastest_khz == kind for n in g.cores]
            words = "%s: the first %s cores are too few for %d threads; with the next kind they are %d"
            log.warning(words, phone.where, cores, threads, len(taken))
    if len(taken) < threads:
        raise EngineError(
            f"wanted {threads} {cores} cores of {phone.where} for as many threads, got {len(taken)}; "
            "give fewer threads, or say all"
        )
    return f"{sum(1 << n for n in taken):x}"


def thread_count(phone: Phone, threads: int) -> int:
    """Return the threads to use; 0 takes as many as there are cores to run on.

    Raises:
        EngineError: when the device does not tell how many it has.
    """
    if threads:
        return threads
    if phone.cores:
        return int(phone.cores, 16).bit_count()
    told = phone.shell.run(["nproc"], check=False).strip()
    if not told.isdecimal() or not int(told):
        raise EngineError(f"wanted the number of cores of {phone.where}, got {told!r}; give --threads")
    return int(told)


def settle(phone: Phone, patience_s: float) -> Condition:
    """Let a device cool, drop what it holds of files in memory, and say how it stands.

    Raises:
        EngineError: when it is still warm after all the time it was given.
    """
    cool(phone, patience_s)
    cores = f"{phone.kind} (mask {phone.cores})" if phone.cores else phone.kind
    governors = {",".join(map(str, group.cores)): group.governor for group in groups(phone)}
    cold = drop_page_cache(phone)
    return Condition(cores, governors, cold, thermal_status(phone))


def thermal_status(phone: Phone) -> int | None:
    """Return Android's thermal status, 0 for none to 6 for shutdown; None where it is not told."""
    found = THERMAL.search(phone.shell.run(["dumpsys", "thermalservice"], check=False))
    return int(found[1]) if found else None


def cool(phone: Phone, patience_s: float) -> None:
    """Wait until a device is cool; one that does not tell is not waited for.

    Raises:
        EngineError: when it is still warm after all the time it was given.
    """
    begun = time.monotonic()
    while status := thermal_status(phone):
        if time.monotonic() - begun >= patience_s:
            raise EngineError(
                f"wanted {phone.where} cool, got thermal status {status} for {patience_s:.0f} s"
            )
        log.info("%s is warm (thermal status %d); waiting", phone.where, status)
        time.sleep(min(STEP_S, patience_s))


def drop_page_cache(phone: Phone) -> bool:
    """Make a device forget the files that it holds in memory, so that the next is opened cold.

    Returns:
        Whether it did: that takes root.

    Raises:
        DeviceLost: when the device is gone.
    """
    try:
        phone.shell.run(["sync"])  # what is not yet written is not dropped
        phone.shell.run(["sysctl", "-w", "vm.drop_caches=3"])
    except DeviceLost:
        raise
    except EngineError as error:
        log.info("%s opens files that it may hold in memory: %s", phone.where, error)
        return False
    return True


def warmth(before: int | None, after: int | None) -> tuple[Verdict, str]:
    """Judge whether a device stayed cool; one that does not tell is not judged."""
    if before is None or after is None:
        return "skip", "not judged: the device does not tell its thermal status"
    words = f"thermal status {before} before and {after} after"
    if max(before, after) > 0:
        return "fail", f"{words}; it was warm, so this is no figure"
    return "pass", words
