"""A bundle's gates as questions with an address, asked one by one.  No torch here.

`questions` says beforehand, from the manifest alone, what will be asked; `Inspection` runs an engine once and
answers from its records.  A record that no question foresaw falls to the question ``other``, so a gate that
is added later is never passed over.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.engines import AnyEngine
from flashbulb.runtimes.engines.base import Array, Engine, EngineError, Session
from flashbulb.runtimes.gates import bundle_gates, engine_gates
from flashbulb.runtimes.pipeline import Pipeline
from flashbulb.runtimes.program_gates import program_gates
from flashbulb.runtimes.records import ParityRecord, SanityRecord
from flashbulb.runtimes.stage import available, named

Record = SanityRecord | ParityRecord
CHAIN = ("text_encoder", "unet", "vae_decoder")
PICTURES = ("vae_decoder", "image", "generator")
"""Quantities whose tensor is a picture."""
SANITY_OF_PICTURES = ("range", "channels", "variance", "prompt_sensitivity", "noise_sensitivity")


class Question(NamedTuple):
    """The address of one test."""

    engine: str
    """Engine label, or `bundle` for the files alone."""
    subject: str
    """Component, `x0`, `image`, `pipeline`, or empty for the engine as a whole."""
    gate: str
    """What is asked."""

    def __str__(self) -> str:
        return "::".join(part for part in self if part)


class Refusal(NamedTuple):
    """An engine that cannot run here, and why."""

    engine: str
    reason: str


def address(record: Record) -> Question:
    """Return the question that a record answers."""
    if isinstance(record, ParityRecord):
        return Question(record.engine, record.quantity, "parity")
    gate, _, subject = record.gate.partition(".")
    return Question(record.engine, subject, gate)


def bundle_questions() -> list[Question]:
    """List what is asked of the files alone."""
    gates = ("manifest", "files", "golden", "tokens", "noise", "constants", "thresholds", "other")
    return [Question("bundle", "", gate) for gate in gates]


def engine_questions(bundle: Bundle, engine: Engine) -> list[Question]:
    """List what is asked of one engine, in the order of the gates."""
    held, label = engine.holds(bundle), engine.label
    chained, fused = set(CHAIN) <= set(held), "generator" in held
    found = [("", "load"), ("", "contract"), *((component, "parity") for component in held)]
    found += [("x0", "parity"), ("image", "parity")] if chained else []
    paths = [*(["pipeline"] if chained else []), *(["generator"] if fused else [])]
    found += [(path, gate) for path in paths for gate in SANITY_OF_PICTURES]
    found += [("", "fused")] if chained and fused else []
    return [Question(label, *rest) for rest in (*found, ("", "other"))]


class Inspection:
    """The answers for one bundle; each engine runs once, when first asked about."""

    def __init__(
        self, bundle: Bundle, engines: Iterable[Engine], threads: int, checkpoint: str | None = None
    ) -> None:
        self.bundle, self.threads, self.checkpoint = bundle, threads, checkpoint
        self.engines = {engine.label: engine for engine in engines}
        self.sessions: dict[str, Session] = {}
        self._records: dict[str, tuple[Record, ...]] = {}

    @functools.cached_property
    def questions(self) -> tuple[Question, ...]:
        """Everything that will be asked."""
        of_engines = [q for e in self.engines.values() for q in engine_questions(self.bundle, e)]
        return (*bundle_questions(), *of_engines)

    def records(self, label: str) -> tuple[Record, ...]:
        """Return the records of one engine, or of the files alone."""
        if label not in self._records:
            asked = (
                self._of_files()
                if label == "bundle"
                else engine_gates(self.bundle, self.engines[label], self.threads)
            )
            self._records[label] = tuple(asked)
        return self._records[label]

    def _of_files(self) -> Iterator[Record]:
        """Ask the files; what is inside the programs falls to the question ``other``."""
        sound = True
        for record in bundle_gates(self.bundle):
            sound &= (address(record).gate, record.verdict) != ("files", "fail")
            yield record
        if sound:
            yield from program_gates(self.bundle, self.checkpoint)

    def answers(self, question: Question) -> tuple[Record, ...]:
        """Return the records that answer a question."""
        records = self.records(question.engine)
        if question.gate != "other":
            return tuple(r for r in records if address(r) == question)
        foreseen = set(self.questions)
        return tuple(r for r in records if address(r) not in foreseen)

    def changed(self) -> str | None:
        """Say that no engine may be asked, where the files are not those of the manifest."""
        failed = any(r.verdict == "fail" for r in self.records("bundle") if address(r).gate == "files")
        return "not asked, because the files are not those that were exported" if failed else None

    def stop(self, label: str, gate: str) -> str | None:
        """Return the sentence of the record that ended an engine's gates before their end, if it did."""
        ends = (r for r in self.records(label) if address(r).gate == gate and r.verdict == "fail")
        return next((f"not reached: {r.sentence}" for r in ends), None)

    def session(self, label: str) -> Session:
        """Return a loaded engine; loaded once."""
        if label not in self.sessions:
            self.sessions[label] = self.engines[label].load(self.bundle, threads=self.threads)
        return self.sessions[label]

    def pictures(self, question: Question, case: int) -> tuple[Array, Array] | None:
        """Draw again what a question is about: the expected and the actual picture, (height, width, 3).

        Returns:
            None where it is not about a picture, or the engine cannot draw it.
        """
        quantity = {"pipeline": "image"}.get(question.subject, question.subject)
        if quantity not in PICTURES:
            return None
        golden = self.bundle.golden()[case]
        try:
            session = self.session(question.engine)
            got = draw(Pipeline(self.bundle, session), quantity, golden)
        except EngineError:
            return None  # the records have told why
        wanted = golden["image"]
        if got.shape != wanted.shape:
            return None
        return to_hwc(wanted), to_hwc(got)


def draw(pipeline: Pipeline, quantity: str, golden: dict[str, Array]) -> Array:
    """Compute one picture of a golden case: (1, 3, height, width)."""
    ids = {t.input: golden[t.input] for t in pipeline.bundle.manifest.tokenizers}
    if quantity == "vae_decoder":
        return pipeline.session.run("vae_decoder", golden)["image"]
    if quantity == "generator":
        return pipeline.generate(ids, golden["noise"])
    return pipeline.trace(ids, golden["noise"])["image"]


def to_hwc(image: Array) -> Array:
    """Turn (1, 3, height, width) into (height, width, 3)."""
    return np.ascontiguousarray(image[0].transpose(1, 2, 0), dtype=np.float32)


def choose(
    bundle: Bundle, names: Iterable[str], checkpoint: str | None
) -> tuple[list[AnyEngine], list[Refusal]]:
    """Return the engines to inspect, one per kind of file, and those that cannot run here.

    Args:
        bundle: what to inspect.
        names: words of the engines; none for all that the bundle serves.
        checkpoint: where the eager engine finds the checkpoint.
    """
    reasons = available(bundle, checkpoint)
    held = {a.backend for a in bundle.manifest.artifacts} | {"eager"}
    words = list(dict.fromkeys(names)) or [word for word in reasons if word in held]
    engines: list[AnyEngine] = []
    refusals = []
    for word in words:
        engine = named(word, checkpoint)
        if reason := reasons[word]:
            refusals.append(Refusal(word, reason))
        else:
            engines += engine.variants(bundle)  # type: ignore[arg-type]
    return engines, refusals
