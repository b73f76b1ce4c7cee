"""The records of this stage: parity, sanity, latency, their device, and a report of all.  No torch.

A number without its unit, threshold, device and engine is no result, so each record carries them, together
with one sentence for people.  Not-a-number and infinity never enter a record: they are ``finite: false`` and
a failure.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from flashbulb.distill.typed_json import decode
from flashbulb.distill.untrusted import UntrustedError, read_small
from flashbulb.runtimes.machine import Device, host, runtime_versions, titles, usable_cores

SCHEMA_VERSION = 2
"""2 keeps the records of every device apart; 1 had one device, whatever was joined."""
Verdict = Literal["pass", "fail", "skip"]
Decision = Literal["pass", "fail", "undecided"]
Metric = Literal["snr_db", "psnr_db"]
EngineName = Annotated[str, msgspec.Meta(min_length=1)]


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
    cores: str = ""
    """Kind of the cores that it was bound to, and their mask; `all` for none, empty where nobody asked."""
    governors: dict[str, str] = {}
    """Cores that share a clock, as `0,1,2,3` -> what set that clock, read before the runs."""
    thermal_before: int | None = None
    """Thermal status before the program was opened, as the system counts; null where it is not told."""
    thermal_after: int | None = None
    """The same after the last run."""
    cold: bool | None = None
    """Whether the page cache was dropped before the program was opened; null where nobody tried."""
    verdict: Verdict
    """`pass` for a trustworthy figure within its budget, `skip` where a device does not tell whether it was
    warm, `fail` otherwise."""
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


AnyRecord = SanityRecord | ParityRecord | LatencyRecord | RegressionRecord


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


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was measured on one device."""

    device: Device
    """Where it ran."""
    versions: dict[str, str]
    """The runtimes and tools that ran."""
    sanity: tuple[SanityRecord, ...] = ()
    """Conditions beside parity."""
    parity: tuple[ParityRecord, ...] = ()
    """Comparisons with the golden reference, which PyTorch computed."""
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
    def own(self) -> tuple[AnyRecord, ...]:
        """All records of this device, in the order of the gates."""
        return (*self.sanity, *self.parity, *self.latency, *self.regression)


class Report(Measured, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that one command measured: on one device, and on others where reports were joined."""

    schema_version: int = SCHEMA_VERSION
    """Version of this layout."""
    command: Literal["check", "bench", "report"]
    """What was asked."""
    created: str
    """When, ISO 8601 in UTC."""
    bundle: BundleIdentity | None
    """What it was asked of; null when the bundle could not be read."""
    others: tuple[Measured, ...] = ()
    """What was measured on further devices, each with its own description; only joined reports have some."""

    @property
    def parts(self) -> tuple[Measured, ...]:
        """What was measured, device by device."""
        return (self, *self.others)

    @property
    def titles(self) -> tuple[str, ...]:
        """A name for each device, no two alike."""
        return titles([part.device for part in self.parts])

    @property
    def records(self) -> tuple[AnyRecord, ...]:
        """All records of all devices."""
        return tuple(record for part in self.parts for record in part.own)

    @property
    def failures(self) -> tuple[str, ...]:
        """The sentences of all records that failed."""
        return self.told("fail")

    @property
    def skipped(self) -> tuple[str, ...]:
        """The sentences of all records that could not be judged here."""
        return self.told("skip")

    @property
    def undecided(self) -> tuple[str, ...]:
        """The sentences of all comparisons that noise or a missing record left open."""
        return self.told("undecided")

    def told(self, verdict: str) -> tuple[str, ...]:
        """Return the sentences of one verdict; where there are several devices, each names its own."""
        named = [f"{title}: " if self.others else "" for title in self.titles]
        return tuple(
            name + r.sentence
            for name, part in zip(named, self.parts, strict=True)
            for r in part.own
            if r.verdict == verdict
        )

    @property
    def ok(self) -> bool:
        """Whether something was judged, and all of it passed; an empty report proves nothing."""
        return not self.failures and not self.undecided and any(r.verdict == "pass" for r in self.records)


def write_report(report: Report, path: Path) -> Path:
    """Write a report as indented JSON, through a temporary name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    return temporary.replace(path)


class _Version(msgspec.Struct):
    """The one field that every version of a report has."""

    schema_version: int = 1


def read_report(path: Path) -> Report:
    """Read a report; one of schema 1 is read as well, where its one device has measured all of it.

    Raises:
        ValueError: when it is none, of another version, or of schema 1 and joined from several devices.
    """
    try:
        data = read_small(path)
        version = decode(data, _Version).schema_version
        if version not in (1, SCHEMA_VERSION):
            raise ValueError(
                f"wanted report schema {SCHEMA_VERSION} in {path}, got {version}; "
                "use the flashbulb that wrote it"
            )
        report = decode(data, Report)
    except (OSError, UntrustedError) as error:
        raise ValueError(f"wanted a report of schema {SCHEMA_VERSION} in {path}, got: {error}") from error
    return report if version == SCHEMA_VERSION else _of_schema_1(report, path)


def _of_schema_1(report: Report, path: Path) -> Report:
    """Bring a report of schema 1 up to date.

    Raises:
        ValueError: when reports of several devices were joined in it, since it does not say whose is what.
    """
    elsewhere = any("@" in record.engine for record in report.own)
    if report.command == "report" and (elsewhere or report.device.kind != "host"):
        raise ValueError(
            "wanted a report that says which device each record is of, got a joined one of schema 1 "
            f"in {path}; join the reports of `check` and `bench` again"
        )
    return msgspec.structs.replace(report, schema_version=SCHEMA_VERSION)


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def decibel(ratio: float) -> float:
    """Return ten times the decimal logarithm of a power ratio."""
    return 10.0 * math.log10(ratio)


__all__ = [
    "SCHEMA_VERSION",
    "AnyRecord",
    "BundleIdentity",
    "Decision",
    "Device",
    "EngineName",
    "LatencyRecord",
    "Measured",
    "Metric",
    "ParityRecord",
    "RegressionRecord",
    "Report",
    "SanityRecord",
    "Verdict",
    "decibel",
    "host",
    "now",
    "read_report",
    "runtime_versions",
    "usable_cores",
    "write_report",
]
