"""iPhones and iPads: a benchmark app there runs the bundle, ``xcrun devicectl`` carries files and starts it.

The exchange goes through the app's Documents folder: ``flashbulb/bundle/`` is the bundle, ``request.json`` a
`Request`, and the app leaves ``answer.json``, an `Answer` with the records that every device fills, and
removes the bundle, which cannot be done from here.  What the app measured is taken; how it judged is not:
every value is held here to the manifest's thresholds again, and what it left out fails.

The commands and their output are tested against a stand-in for ``xcrun``; no device has run them.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from flashbulb.distill.typed_json import decode
from flashbulb.distill.untrusted import UntrustedError, read_small
from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.devices.condition import warmth
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.gates import sanity
from flashbulb.runtimes.records import Device, LatencyRecord, ParityRecord, SanityRecord

log = logging.getLogger(__name__)

UDID = re.compile(r"[0-9A-Fa-f-]{8,64}")
APP = "org.flashbulb.bench"
"""Identifier of the benchmark app."""
FOLDER = "Documents/flashbulb"
PATIENCE_S = 1800.0


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the app is asked to do."""

    version: int = 1
    """Version of this exchange."""
    nonce: str
    """To be repeated in the answer, so that an old one is not taken for it."""
    manifest_sha256: str
    """Digest of the manifest of the bundle to run."""
    cases: int
    """Golden cases to compare, from the first on; 0 for times alone."""
    runs: int
    """Measured runs of each program; 0 for parity alone."""


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the app found."""

    version: int
    """Version of this exchange."""
    nonce: str
    """That of the request."""
    manifest_sha256: str
    """Digest of the manifest that the app read."""
    device: Device
    """Where it ran; `kind` is ``ios``."""
    parity: tuple[ParityRecord, ...]
    """One for each tensor, case and kind of processor, named as ``coreml@cpuAndNeuralEngine``."""
    latency: tuple[LatencyRecord, ...] = ()
    """One for each program and kind of processor."""
    files: dict[str, str] = {}
    """Path in the bundle -> SHA-256, of the files that the app opened."""


class Found(NamedTuple):
    """What came of a device."""

    device: Device
    records: list[SanityRecord | ParityRecord | LatencyRecord]


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

    def device(self) -> dict[str, Any]:
        """Return what is told of the device.

        Raises:
            EngineError: when it is not connected, naming those that are.
        """
        devices = self._json(["list", "devices"]).get("devices", [])
        names = {d.get("identifier"): d for d in devices}
        names |= {d.get("hardwareProperties", {}).get("udid"): d for d in devices}
        if self.udid not in names:
            raise EngineError(f"wanted the device {self.udid}, got {sorted(filter(None, names))}; connect it")
        found: dict[str, Any] = names[self.udid]
        return found

    def copy_to(self, source: Path, target: str) -> None:
        """Copy a file or folder into the app's container."""
        self._json(["device", "copy", "to"], *self._copy(str(source.resolve()), target))

    def copy_from(self, source: str, target: Path) -> Path:
        """Copy a file out of the app's container."""
        self._json(["device", "copy", "from"], *self._copy(source, str(target.resolve())))
        return target

    def launch(self, *words: str) -> None:
        """Run the app and wait until it ends."""
        options = ["--device", self.udid, "--console", "--terminate-existing"]
        self._json(["device", "process", "launch"], *options, APP, *words)

    def _copy(self, source: str, target: str) -> list[str]:
        words = ["--device", self.udid, "--source", source, "--destination", target]
        return [*words, "--domain-type", "appDataContainer", "--domain-identifier", APP]

    def _json(self, verb: Sequence[str], *words: str) -> dict[str, Any]:
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
            return result(out)


def result(file: Path) -> dict[str, Any]:
    """Return the result that ``devicectl`` wrote as JSON.

    Raises:
        EngineError: when it wrote none, or tells of a failure.
    """
    try:
        told: Any = json.loads(read_small(file))
    except (OSError, UntrustedError, ValueError) as error:
        raise EngineError(f"wanted JSON of devicectl, got: {error}") from error
    if not isinstance(told, dict) or told.get("info", {}).get("outcome") != "success":
        reason = told.get("error", {}) if isinstance(told, dict) else told
        raise EngineError(f"wanted success of devicectl, got {json.dumps(reason)[:300]}")
    found: dict[str, Any] = told.get("result") or {}
    return found


def serves(bundle: Bundle, engine: str | None) -> None:
    """Hold what is asked to what the app runs: the Core ML programs.

    Raises:
        EngineError: when another engine is asked for, or the bundle holds no such program.
    """
    held = sorted({a.format for a in bundle.manifest.artifacts})
    if engine not in (None, "coreml") or not any(a.backend == "coreml" for a in bundle.manifest.artifacts):
        raise EngineError(
            f"wanted Core ML programs for a device of Apple, got engine {engine!r} and a bundle with {held}"
        )


def check(bundle: Bundle, udid: str, manifest_sha256: str, *, cases: int | None) -> Found:
    """Let the app on a device compute the golden cases, and judge what it found.

    Raises:
        EngineError: when the device cannot be reached, or leaves no answer to this request.
    """
    count = min(cases or len(bundle.golden()), len(bundle.golden()))
    answer = exchange(bundle, udid, manifest_sha256, cases=count, runs=0)
    return Found(answer.device, [file_gate(bundle, answer, udid), *judged(bundle, answer, count)])


def bench(bundle: Bundle, udid: str, manifest_sha256: str, *, runs: int) -> Found:
    """Let the app on a device time the programs, and judge what it found.

    Raises:
        EngineError: when the device cannot be reached, or leaves no answer to this request.
    """
    answer = exchange(bundle, udid, manifest_sha256, cases=0, runs=runs)
    return Found(answer.device, [file_gate(bundle, answer, udid), *timed(bundle, answer, runs)])


def exchange(bundle: Bundle, udid: str, manifest_sha256: str, *, cases: int, runs: int) -> Answer:
    """Carry a bundle and a request to the app, let it run, and return its answer, named after the device.

    Raises:
        EngineError: when the device cannot be reached, or leaves no answer to this request.
    """
    control = Devicectl(udid)
    name = control.device().get("deviceProperties", {}).get("name") or udid
    asked = Request(nonce=secrets.token_hex(16), manifest_sha256=manifest_sha256, cases=cases, runs=runs)
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "request.json"
        request.write_bytes(msgspec.json.encode(asked))
        log.info("copying %s to %s", bundle.root.name, name)
        control.copy_to(bundle.root, f"{FOLDER}/bundle")
        control.copy_to(request, f"{FOLDER}/request.json")
        control.launch("--request", "flashbulb/request.json")
        answer = read_answer(control.copy_from(f"{FOLDER}/answer.json", Path(folder) / "answer.json"), asked)
    return _named(answer, udid)


def _named(answer: Answer, udid: str) -> Answer:
    """Name the device in the label of every record, as other devices do."""

    def at(record: Any) -> Any:
        return msgspec.structs.replace(record, engine=f"{record.engine}@{udid}")

    told = answer.device.attributes | {"udid": udid}
    return msgspec.structs.replace(
        answer,
        device=msgspec.structs.replace(answer.device, attributes=told),
        parity=tuple(map(at, answer.parity)),
        latency=tuple(map(at, answer.latency)),
    )


def read_answer(file: Path, asked: Request) -> Answer:
    """Read an answer and hold it to its request.

    Raises:
        EngineError: when it is none, or that to another request or bundle.
    """
    try:
        answer = decode(read_small(file), Answer)
    except (OSError, UntrustedError) as error:
        raise EngineError(f"wanted the app's answer, got: {error}") from error
    for field in ("version", "nonce", "manifest_sha256"):
        if getattr(answer, field) != getattr(asked, field):
            raise EngineError(f"wanted an answer to this request, got another {field}; start it again")
    if answer.device.kind != "ios":
        raise EngineError(f"wanted an answer of a device of kind ios, got {answer.device.kind}")
    return answer


def file_gate(bundle: Bundle, answer: Answer, udid: str) -> SanityRecord:
    """Hold what the app says of its files to the manifest's hashes; where it says nothing, skip."""
    wanted = {f.path: f.sha256 for a in bundle.manifest.artifacts if a.backend == "coreml" for f in a.files}
    if not answer.files:
        words = f"not judged: the app on {udid} told no hashes of the files that it opened"
        return SanityRecord(gate="device_files", engine=udid, verdict="skip", sentence=words)
    wrong = [path for path, sha256 in wanted.items() if answer.files.get(path) != sha256]
    words = f"{len(wanted)} files on {udid} have the recorded SHA-256"
    if wrong:
        words = f"{len(wrong)} of {len(wanted)} files on {udid} are not those of the bundle: {wrong[0]}"
    return sanity("device_files", udid, not wrong, words, value=float(len(wanted)))


def timed(bundle: Bundle, answer: Answer, runs: int) -> Iterator[LatencyRecord | SanityRecord]:
    """Hold every figure to what was asked, whatever the app made of it; and ask for what it left out."""
    programs = {(a.component, a.precision) for a in bundle.manifest.artifacts if a.backend == "coreml"}
    for record in answer.latency:
        yield _retimed(record, runs, known=(record.target, record.precision) in programs)
    for label in sorted({record.engine for record in answer.latency}) or ["coreml"]:
        held = {r.target for r in answer.latency if r.engine == label}
        absent = sorted({component for component, _ in programs} - held)
        words = f"{label} timed every program" if not absent else f"{label} left out {', '.join(absent)}"
        yield sanity("answer", label, not absent, words, value=float(len(held)))


def _retimed(record: LatencyRecord, runs: int, *, known: bool) -> LatencyRecord:
    """Return a record with our verdict."""
    verdict, words = warmth(record.thermal_before, record.thermal_after)
    if not 0 < record.min_ms <= record.p50_ms <= record.p90_ms <= record.p99_ms:
        verdict, words = "fail", "wanted positive times that rise from least to p99, got others"
    if record.runs < runs:
        verdict, words = "fail", f"wanted {runs} runs, got {record.runs}"
    if not known:
        verdict, words = "fail", f"the bundle has no such program of {record.precision}"
    told = f"{record.engine} {record.target}: median {record.p50_ms:.2f} ms, {words}"
    return msgspec.structs.replace(
        record, verdict=verdict, sentence=told, budget_ms=None, ratio_to_eager=None, cpu_ratio_to_eager=None
    )


def judged(bundle: Bundle, answer: Answer, cases: int) -> Iterator[SanityRecord | ParityRecord]:
    """Hold every value to the manifest, whatever the app made of it; and ask for what it left out."""
    for record in answer.parity:
        yield _judge(bundle, record)
    for label in sorted({record.engine for record in answer.parity}) or ["coreml"]:
        held = {(r.quantity, r.tensor, r.case) for r in answer.parity if r.engine == label}
        absent = sorted(set(_wanted(bundle, cases)) - held)
        words = f"{label} compared everything that was asked"
        if absent:
            words = f"{label} left out {len(absent)} comparisons, first {' '.join(map(str, absent[0]))}"
        yield sanity("answer", label, not absent, words, value=float(len(held)))


def _wanted(bundle: Bundle, cases: int) -> Iterator[tuple[str, str, int]]:
    artifacts: Sequence[Any] = [a for a in bundle.manifest.artifacts if a.backend == "coreml"]
    for case in range(cases):
        for artifact in artifacts:
            for spec in artifact.outputs:
                yield artifact.component, spec.name, case


def _judge(bundle: Bundle, record: ParityRecord) -> ParityRecord:
    """Return a record with our threshold and verdict."""
    told = bundle.manifest.golden.cases
    golden = told[record.case] if 0 <= record.case < len(told) else None
    gates = [
        gate
        for gate in bundle.manifest.gates
        if (gate.backend, gate.precision, gate.quantity) == ("coreml", record.precision, record.quantity)
        and gate.metric == record.metric
    ]
    where = f"{record.engine} {record.precision} {record.quantity}, case {record.case}"
    value = record.value_db
    if golden is None or (golden.prompt, golden.seed) != (record.prompt, record.seed) or not gates:
        words, good, least = "no such golden case or threshold in the manifest", False, record.threshold_db
    else:
        least = max(gate.minimum_db for gate in gates)
        good = record.finite and (record.exact or (value is not None and value >= least))
        shown = "equal" if record.exact else "no value" if value is None else f"{value:.1f} dB"
        shown = shown if record.finite else "not finite"
        words = f"{shown}, wanted {least:.1f} dB"
    return msgspec.structs.replace(
        record, threshold_db=least, verdict="pass" if good else "fail", sentence=f"{where}: {words}"
    )
