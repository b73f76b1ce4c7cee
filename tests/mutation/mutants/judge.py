"""Plant one fault, ask every gate, and say which of them noticed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from flashbulb.export import verify
from flashbulb.export.artifact import file_sha256
from flashbulb.export.bundle import Bundle, BundleError, read_bundle
from flashbulb.runtimes import program_gates
from flashbulb.runtimes.engines import Executorch, Mil, Ort
from flashbulb.runtimes.engines.base import Engine
from flashbulb.runtimes.gates import bundle_gates, engine_gates, file_gate
from flashbulb.runtimes.records import ParityRecord, SanityRecord
from flashbulb.runtimes.source_gates import floor_gate
from flashbulb.runtimes.stage import available, named
from mutants.equivalence import canonical
from mutants.fault import Fault
from mutants.overlay import Overlay
from mutants.remember import remember
from mutants.reuse import Memory, Reusing

Record = SanityRecord | ParityRecord
FORMATS: dict[str, Engine] = {
    "onnx": Ort(artifact_format="onnx"),
    "ort": Ort(artifact_format="ort"),
    "mlpackage": Mil(),
    "pte": Executorch(),
}
ALONE = ("tokenizer", "optimum")
"""Formats that no engine opens."""
STRUCTURE = "structure"
"""The gate that holds a program to the record of its operations."""
LOADS = {"load", "fp16 load"}
"""Gates of opening; what does not open is no program at all."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one fault."""

    name: str
    kind: str
    format: str
    component: str
    about: str
    gates: dict[str, str] = {}
    """Gate -> first sentence, of the gates that failed though the manifest vouches for the changed files."""
    recorded: dict[str, str] | None = None
    """The same where the structure record is made anew too; null for what is no program."""
    hashes: bool | None = None
    """Whether the hashes notice it when the manifest is not signed anew; null where that is no question."""
    identical: bool = False
    """Every output that the gates saw is the clean bundle's, bit for bit."""
    equivalent: bool = False
    """The program is the same program, by the rules of `equivalence`, and its outputs are identical."""
    seconds: float = 0.0

    @property
    def caught(self) -> bool:
        """Whether any gate noticed it."""
        return bool(self.gates)

    @property
    def unrecorded(self) -> bool:
        """Whether a real fault goes through every gate once its own structure is the recorded one."""
        return self.recorded == {} and not self.equivalent

    @property
    def survived(self) -> bool:
        """Whether a real fault went through every gate."""
        return not self.caught and not self.equivalent


class Judge:
    """One bundle, an overlay to break, and what the clean bundle's programs gave."""

    def __init__(self, base: Path, work: Path, checkpoint: str | None = None) -> None:
        self.base, self.checkpoint, self.memory = base, checkpoint, Memory()
        self.overlay = Overlay(base, work)
        self.clean = read_bundle(base)
        self._digests = {(base / n).stat().st_ino: file_sha256(base / n) for n in self.overlay.names}
        self._shapes: dict[str, str | None] = {}
        verify.file_sha256 = self._sha256
        self._eager = available(self.clean, checkpoint)["eager"] is None
        remember(program_gates, self.memory)

    def _sha256(self, path: Path) -> str:
        """Return a file's digest; a file that is still the clean bundle's own was read before."""
        return self._digests.get(path.stat().st_ino) or file_sha256(path)

    def _has_eager(self, bundle: Bundle) -> bool:
        """Tell whether the very checkpoint that a manifest names is here; a check skips PyTorch otherwise."""
        if bundle.manifest.source == self.clean.manifest.source:
            return self._eager
        return available(bundle, self.checkpoint)["eager"] is None

    def engines(self, bundle: Bundle, formats: Iterable[str]) -> list[Engine]:
        """Return what opens some formats, PyTorch for `eager`."""
        held = {a.format for a in self.clean.manifest.artifacts}
        found: list[Engine] = []
        for fmt in formats:
            if fmt in held:
                inner = FORMATS[fmt]
                found += inner.variants(self.clean) if isinstance(inner, Mil) else [inner]
        if "eager" in formats and self._has_eager(bundle):
            found.append(named("eager", self.checkpoint))
        return [Reusing(inner=e, memory=self.memory) for e in found]

    def sound(self) -> list[str]:
        """Ask the clean bundle everything, keep its results, and return the sentences of what failed."""
        self.memory.clean = True
        self.memory.start()
        failed = [f"{gate}: {words}" for gate, words in self._failed((*FORMATS, "eager"), None).items()]
        self.memory.clean = False
        self.known = dict(self.memory.seen)
        return failed

    def judge(self, fault: Fault) -> Verdict:
        """Plant a fault, ask, and mend."""
        start = time.perf_counter()
        try:
            try:
                fault.plant(self.overlay.root)
            except Exception as error:  # no verdict on any gate: it must be seen and mended
                return self._unplanted(fault, error)
            return self._verdict(fault, start)
        finally:
            self.overlay.restore()

    def _unplanted(self, fault: Fault, error: Exception) -> Verdict:
        about = f"{fault.about} (NOT PLANTED, {type(error).__name__}: {error})"
        return Verdict(
            name=fault.name, kind=fault.kind, format=fault.format, component=fault.component, about=about
        )

    def _verdict(self, fault: Fault, start: float) -> Verdict:
        changed = self.overlay.changed()
        hashes = None if "manifest.json" in changed or self._idle(changed) else self._hashes()
        self.overlay.sign()
        self.memory.start()
        gates = self._failed(self._formats(fault), fault)
        identical = self._identical(fault)
        same = identical and not LOADS.intersection(gates) and self._same(fault, changed)
        return Verdict(
            name=fault.name,
            kind=fault.kind,
            format=fault.format,
            component=fault.component,
            about=fault.about,
            gates=gates,
            recorded=self._recorded(fault, gates),
            hashes=hashes,
            identical=identical,
            equivalent=same,
            seconds=round(time.perf_counter() - start, 2),
        )

    def _identical(self, fault: Fault) -> bool:
        """Tell whether all that ran gave what the clean bundle gives; something must have run."""
        seen = self.memory.seen
        if fault.format in FORMATS and not seen:
            return False
        return all(self.known.get(call) == result for call, result in seen.items())

    def _recorded(self, fault: Fault, gates: dict[str, str]) -> dict[str, str] | None:
        """Return what fails when the structure record, too, is made anew from the changed program.

        Only the structure gate reads it: what other gates said of the program stands.
        """
        if fault.format not in (*FORMATS, "optimum"):
            return None
        if set(gates) != {STRUCTURE}:
            return {gate: words for gate, words in gates.items() if gate != STRUCTURE}
        self.overlay.record()
        self.overlay.sign()
        return self._failed(self._formats(fault), fault)

    def _idle(self, changed: list[str]) -> bool:
        """Tell whether the edited files hold the same bytes as before: there is nothing to notice."""
        return all(
            (self.overlay.root / n).is_file()
            and file_sha256(self.overlay.root / n) == self._digests[(self.base / n).stat().st_ino]
            for n in changed
        )

    def _hashes(self) -> bool:
        try:
            return file_gate(read_bundle(self.overlay.root)).verdict == "fail"
        except BundleError:
            return True

    def _formats(self, fault: Fault) -> tuple[str, ...]:
        if fault.format in FORMATS:
            return (fault.format,)
        return () if fault.format in ALONE else (*FORMATS, "eager")

    def _failed(self, formats: Iterable[str], fault: Fault | None) -> dict[str, str]:
        """Return gate -> sentence of what fails, in the order of `flashbulb check`."""
        found: dict[str, str] = {}
        try:
            for record in self._records(formats, fault):
                if record.verdict == "fail":
                    found.setdefault(column(record), record.sentence)
        except Exception as error:  # a check that dies lets nothing pass, and is told apart in the table
            found["died"] = f"{type(error).__name__}: {error}"[:300]
        return found

    def _records(self, formats: Iterable[str], fault: Fault | None) -> Iterator[Record]:
        try:
            bundle = read_bundle(self.overlay.root)
        except BundleError as error:
            yield SanityRecord(gate="manifest", engine="bundle", verdict="fail", sentence=str(error))
            return
        found: list[Record] = []
        for record in self._opened(bundle, formats, fault):
            found.append(record)
            yield record
        if (floors := floor_gate(found)) is not None:
            yield floors

    def _opened(self, bundle: Bundle, formats: Iterable[str], fault: Fault | None) -> Iterator[Record]:
        for record in bundle_gates(bundle):
            yield record
            if isinstance(record, SanityRecord) and (record.gate, record.verdict) == ("files", "fail"):
                return
        yield from program_gates.program_gates(concerned(bundle, fault), self.checkpoint)
        for engine in self.engines(bundle, formats):
            yield from engine_gates(bundle, engine, 1)

    def _same(self, fault: Fault, changed: list[str]) -> bool:
        """Tell whether the changed files hold the same program."""
        places = {self._place(name) for name in changed}
        return bool(places) and all(
            self._shape(p, f) == canonical(self.overlay.root / p, f) for p, f in places
        )

    def _place(self, name: str) -> tuple[str, str]:
        for artifact in self.clean.manifest.artifacts:
            if name in {f.path for f in artifact.files}:
                return artifact.path, artifact.format
        return name, name.rsplit(".", 1)[-1]

    def _shape(self, path: str, fmt: str) -> str | None:
        if path not in self._shapes:
            self._shapes[path] = canonical(self.base / path, fmt) or "unreadable"
        return self._shapes[path]


def concerned(bundle: Bundle, fault: Fault | None) -> Bundle:
    """Return the bundle with only those artifacts that a fault touched: the others are still clean."""
    if fault is None or fault.format not in FORMATS:
        return bundle
    kept = tuple(a for a in bundle.manifest.artifacts if a.format == fault.format)
    kept = tuple(a for a in kept if a.format == "pte" or fault.component in ("", a.component))
    return msgspec.structs.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, artifacts=kept))


def column(record: Record) -> str:
    """Name the gate that a record comes from, as a column of the table."""
    if isinstance(record, ParityRecord):
        name = f"parity of {record.quantity}"
    else:
        name = record.gate.partition(".")[0].replace("_", " ")
    prefix = {"mil-fp16": "fp16 ", "eager": "eager "}.get(record.engine, "")
    return prefix + name
