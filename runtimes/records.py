"""The records of this stage: parity, sanity, latency, their device, and a report of all.  No torch.

A number without its unit, threshold, device and engine is no result, so each record carries them, together
with one sentence for people.  Not-a-number and infinity never enter a record: they are ``finite: false`` and
a failure.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from flashbulb.distill.typed_json import decode
from flashbulb.distill.untrusted import UntrustedError, read_small

SCHEMA_VERSION = 1
Verdict = Literal["pass", "fail", "skip"]
Decision = Literal["pass", "fail", "undecided"]
Metric = Literal["snr_db", "psnr_db"]
EngineName = Annotated[str, msgspec.Meta(min_length=1)]


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


class ParityRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One tensor of one engine against the golden reference."""

    engine: EngineName
    """What ran."""
    precision: str
    """Precision of the artifact's arithmetic."""
    quantity: str
    """What was compared: a component's output, `x0`, `image`, or the fused `generator`'s picture."""
    tensor: str
    """Name of the compared tensor."""
    case: int
    """Index of the golden case."""
    prompt: str
    """Its prompt."""
    seed: int
    """Its noise."""
    metric: Metric
    """The decibel that the threshold is about."""
    threshold_db: float
    """Smallest value that passes."""
    snr_db: float | None
    """10 log10(power of the reference / power of the error); null when exact or not finite."""
    psnr_db: float | None = None
    """10 log10(1 / mean squared error) for pictures in [0, 1]; null when exact, not finite or no picture."""
    max_abs: float | None
    """Largest absolute error; null when not finite."""
    exact: bool
    """Every value equals the reference bit for bit in value."""
    finite: bool
    """No value is NaN or infinite; otherwise the verdict is `fail` whatever the rest says."""
    verdict: Verdict
    """Judgement against the threshold."""
    sentence: str
    """The same for people."""

    @property
    def value_db(self) -> float | None:
        """The value that the threshold is about."""
        return self.psnr_db if self.metric == "psnr_db" else self.snr_db


class SanityRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One condition beside parity: hashes, tokens, range, variance, sensitivity to prompt and noise."""

    gate: str
    """Name of the condition."""
    engine: EngineName
    """What it was asked of; `bundle` for conditions of the files alone."""
    value: float | None = None
    """Measured value, where there is one."""
    threshold: float | None = None
    """Bound that it is held to."""
    unit: str = ""
    """Unit of both."""
    verdict: Verdict
    """Judgement."""
    sentence: str
    """The same for people."""


class LatencyRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How fast one engine runs one component, the whole pipeline or the fused generator."""

    engine: EngineName
    """What ran, in a process of its own."""
    precision: str
    """Precision of the artifact's arithmetic."""
    target: str
    """`generator` (prompt to picture, one call), `pipeline` (the same by components) or a component."""
    threads: int
    """Threads that the engine was given."""
    load_ms: float
    """From files to a session that can run, imports excluded."""
    first_ms: float
    """The first run, which may still compile or page in."""
    p50_ms: float
    """Median of the measured runs, wall clock."""
    p90_ms: float
    """90th percentile."""
    p99_ms: float
    """99th percentile."""
    min_ms: float
    """Fastest run."""
    runs: int
    """Measured runs, warm-up excluded."""
    cpu_p50_ms: float
    """Median processor time of a run, over all threads."""
    cpu_over_wall: float
    """Median of processor time over wall clock: about 1 for one thread that is not disturbed."""
    disturbed_runs: int
    """Runs whose processor time over wall clock left the allowed band."""
    ratio_to_eager: float | None
    """p50 over that of PyTorch eager, interleaved with this engine in the same run at the same threads."""
    cpu_ratio_to_eager: float | None
    """The same ratio of processor times, which other load on the machine disturbs least."""
    ratio_interval: tuple[float, float] | None = None
    """Bounds of the ratio to eager with 95 % confidence, from turns paired in time."""
    baseline_rss_bytes: int
    """Resident memory after importing the runtime, before loading the model."""
    peak_rss_bytes: int
    """Peak resident memory of the process."""
    artifact_bytes: int | None
    """Size of what was loaded."""
    placement: dict[str, float] = {}
    """Device -> share of the estimated cost, where the runtime chooses among several and says so."""
    verdict: Verdict
    """`pass` for a trustworthy figure within its budget; `fail` otherwise."""
    budget_ms: float | None = None
    """Largest p50 that passes, where the user gave one."""
    sentence: str
    """The same for people."""


class RegressionRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One quantity of a bundle against that of an earlier bundle."""

    kind: Literal["slowdown", "db_drop"]
    """Ratio of times, or loss of decibels."""
    method: Literal["interleaved", "record"]
    """`interleaved`: both bundles ran here in turns; `record`: the earlier one is only a report."""
    engine: EngineName
    """What ran."""
    subject: str
    """Target of the timing, or the compared quantity and tensor."""
    value: float | None
    """Measured ratio or loss; null where it could not be measured."""
    low: float | None = None
    """Lower bound of the ratio, 95 % confidence."""
    high: float | None = None
    """Upper bound of the ratio."""
    limit: float
    """Largest value that passes."""
    turns: int = 0
    """Pairs of turns that the interval comes from."""
    verdict: Decision
    """Judgement; `undecided` where the interval holds the limit, or there is nothing to compare with."""
    sentence: str
    """The same for people."""


class BundleIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which bundle the records are about."""

    name: str
    """Its name."""
    path: str
    """Where it was read."""
    manifest_sha256: str
    """Digest of its manifest, which holds the digest of everything else."""
    checkpoint_sha256: str
    """Digest of the checkpoint that it was exported from."""
    created: str
    """When it was exported."""


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that one command measured, on one device."""

    schema_version: int = SCHEMA_VERSION
    """Version of this layout."""
    command: Literal["check", "bench", "report"]
    """What was asked."""
    created: str
    """When, ISO 8601 in UTC."""
    bundle: BundleIdentity | None
    """What it was asked of; null when the bundle could not be read."""
    device: Device
    """Where it ran."""
    versions: dict[str, str]
    """The runtimes and tools that ran."""
    sanity: tuple[SanityRecord, ...] = ()
    """Conditions beside parity."""
    parity: tuple[ParityRecord, ...] = ()
    """Comparisons with the golden reference."""
    latency: tuple[LatencyRecord, ...] = ()
    """Timings."""
    regression: tuple[RegressionRecord, ...] = ()
    """Comparisons with an earlier bundle."""

    def __post_init__(self) -> None:
        if self.device.kind == "qemu" and self.latency:
            raise ValueError(
                f"wanted no latency of {self.device.name}, got one; emulation says nothing of time"
            )

    @property
    def records(self) -> tuple[SanityRecord | ParityRecord | LatencyRecord | RegressionRecord, ...]:
        """All records, in the order of the gates."""
        return (*self.sanity, *self.parity, *self.latency, *self.regression)

    @property
    def failures(self) -> tuple[str, ...]:
        """The sentences of all records that failed."""
        return tuple(r.sentence for r in self.records if r.verdict == "fail")

    @property
    def skipped(self) -> tuple[str, ...]:
        """The sentences of all records that could not be judged here."""
        return tuple(r.sentence for r in self.records if r.verdict == "skip")

    @property
    def undecided(self) -> tuple[str, ...]:
        """The sentences of all comparisons that noise or a missing record left open."""
        return tuple(r.sentence for r in self.records if r.verdict == "undecided")

    @property
    def ok(self) -> bool:
        """Whether something was judged, and all of it passed; an empty report proves nothing."""
        return not self.failures and not self.undecided and any(r.verdict == "pass" for r in self.records)


def merge(reports: Iterable[Report], command: Literal["check", "bench", "report"] = "report") -> Report:
    """Join the records of several reports; bundle, device and versions are the last one's.

    Records of other machines name them, as ``ort@cortex-a53``; an emulator gives way to a device of times.

    Raises:
        ValueError: when there is none, or they are of different bundles.
    """
    found = list(reports)
    known = {r.bundle.manifest_sha256 for r in found if r.bundle}
    if not found or len(known) > 1:
        raise ValueError(
            f"wanted reports of one bundle, got {len(found)} of {len(known)} bundles; check it again"
        )
    return Report(
        command=command,
        created=now(),
        bundle=next((r.bundle for r in reversed(found) if r.bundle), None),
        device=next((r.device for r in reversed(found) if r.device.kind != "qemu"), found[-1].device),
        versions={k: v for r in found for k, v in r.versions.items()},
        sanity=tuple(s for r in found for s in r.sanity),
        parity=tuple(p for r in found for p in r.parity),
        latency=tuple(item for r in found for item in r.latency),
        regression=tuple(item for r in found for item in r.regression),
    )


def write_report(report: Report, path: Path) -> Path:
    """Write a report as indented JSON, through a temporary name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    return temporary.replace(path)


def read_report(path: Path) -> Report:
    """Read a report.

    Raises:
        ValueError: when it is none, or of another version.
    """
    try:
        report = decode(read_small(path), Report)
    except (OSError, UntrustedError) as error:
        raise ValueError(f"wanted a report of schema {SCHEMA_VERSION} in {path}, got: {error}") from error
    if report.schema_version != SCHEMA_VERSION:
        raise ValueError(f"wanted report schema {SCHEMA_VERSION} in {path}, got {report.schema_version}")
    return report


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


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


def decibel(ratio: float) -> float:
    """Return ten times the decimal logarithm of a power ratio."""
    return 10.0 * math.log10(ratio)


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
