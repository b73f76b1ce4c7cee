"""Every gate of one bundle, asked part by part.  `flashbulb check` asks all; a test asks for its own.

Both go through `Inspection`, so neither can know a gate that the other does not.  No torch here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.choice import Choice
from flashbulb.runtimes.engines.base import Array, Engine, EngineError, Session
from flashbulb.runtimes.gates import bundle_gates, engine_gates, sanity
from flashbulb.runtimes.listing_gates import unopened
from flashbulb.runtimes.opening import label as program_label
from flashbulb.runtimes.pipeline import Pipeline
from flashbulb.runtimes.probe import probe
from flashbulb.runtimes.program_gates import program_gates
from flashbulb.runtimes.questions import (
    Question,
    Record,
    address,
    engine_questions,
    file_questions,
    program_questions,
)
from flashbulb.runtimes.records import SanityRecord
from flashbulb.runtimes.source_gates import floor_gate

FILES, PROGRAMS, FLOORS = "bundle", "programs", "floors"
"""Parts beside the engines, which have their labels: files alone, programs unopened by a runtime, floors."""
PICTURES = ("vae_decoder", "image", "generator")
"""Quantities whose tensor is a picture."""
OnPart = Callable[[int, str], None]
"""Called as ``on_part(index, what)`` before each part that takes a while."""


class Inspection:
    """The answers for one bundle; each engine runs once, when first asked about."""

    def __init__(self, bundle: Bundle, choice: Choice, threads: int, checkpoint: str | None = None) -> None:
        self.bundle, self.choice, self.threads, self.checkpoint = bundle, choice, threads, checkpoint
        self.engines = {engine.label: engine for engine in choice.variants(bundle)}
        self.sessions: dict[str, Session] = {}
        self._records: dict[str, tuple[Record, ...]] = {}
        self._refused: dict[str, str | None] = {}

    @functools.cached_property
    def parts(self) -> dict[Question, str]:
        """Everything that will be asked, each with the part that answers."""
        asked = {
            FILES: file_questions(),
            PROGRAMS: program_questions(self.bundle, self.choice.backends),
            FLOORS: [Question("bundle", "", "floors"), Question("bundle", "", "other")],
        }
        asked |= {label: engine_questions(self.bundle, engine) for label, engine in self.engines.items()}
        order = (FILES, PROGRAMS, *self.engines, FLOORS)
        return {question: part for part in order for question in asked[part]}

    def everything(self, on_part: OnPart | None = None) -> list[Record]:
        """Ask every part in turn; no runtime opens a file that is not the exported one."""
        found = list[Record]()
        captions = {FILES: "files, tokenizer, noise, constants", PROGRAMS: "structure and weights"}
        for index, part in enumerate((FILES, PROGRAMS, *self.engines)):
            if on_part and not (index and self.changed()):
                on_part(index, captions.get(part, part))
            found += self.records(part)
        return [*found, *self.records(FLOORS)]

    def records(self, part: str) -> tuple[Record, ...]:
        """Return the records of one part; none but the files' where those are not the exported ones."""
        if part not in self._records:
            self._records[part] = tuple(self._asked(part))
        return self._records[part]

    def _asked(self, part: str) -> Iterator[Record]:
        """Ask one part."""
        if part == FILES:
            yield from bundle_gates(self.bundle)
        elif self.changed():
            return
        elif part == PROGRAMS:
            yield from program_gates(self.bundle, self.checkpoint, self.choice.backends)
        elif part == FLOORS:
            yield self._floors()
        elif reason := self.refused(part):
            yield sanity("load", part, False, f"{part}: {reason}")
        else:
            yield from engine_gates(self.bundle, self.engines[part], self.threads)

    def refused(self, label: str) -> str | None:
        """Say why an engine may not open its programs in this process: they are damaged; asked once."""
        if label not in self._refused:
            self._refused[label] = self._damage(self.engines[label])
        return self._refused[label]

    def _damage(self, engine: Engine) -> str | None:
        """Return the fault that our readers found in an engine's programs, or the runtime by itself."""
        found, programs = self.records(PROGRAMS), self.bundle.manifest.artifacts
        if any(engine.backend == a.backend for a in programs):
            for artifact in engine.artifacts(self.bundle, None).values():
                if reason := unopened(program_label(artifact), found):
                    return f"not opened: {reason}"
        try:
            probe(self.bundle, engine, self.threads)
        except EngineError as error:
            return str(error)
        return None

    def _floors(self) -> SanityRecord:
        """Hold the floors of sensitivity to what all engines showed."""
        found = floor_gate([r for label in self.engines for r in self.records(label)])
        words = "not judged: no engine drew a picture that shows what the floors of sensitivity must be"
        return found or SanityRecord(gate=FLOORS, engine="bundle", verdict="skip", sentence=words)

    def answers(self, question: Question) -> tuple[Record, ...]:
        """Return the records that answer a question."""
        if question.gate == "other":
            return tuple(self._unforeseen(question))
        return tuple(r for r in self.records(self.parts[question]) if question.answered_by(r))

    def _unforeseen(self, other: Question) -> Iterator[Record]:
        """Return what no question is about: of one engine, or of all that is no engine's."""
        parts = (other.engine,) if other.engine in self.engines else (FILES, PROGRAMS, FLOORS)
        for part in parts:
            asked = [q for q, of in self.parts.items() if of == part]
            yield from (r for r in self.records(part) if not any(q.answered_by(r) for q in asked))

    def changed(self) -> str | None:
        """Say that no engine may be asked, where the files are not those of the manifest."""
        failed = any(r.verdict == "fail" for r in self.records(FILES) if address(r).gate == "files")
        return "not asked, because the files are not those that were exported" if failed else None

    def obstacle(self, question: Question) -> str | None:
        """Return the failure elsewhere that a question cannot be asked for, if there is one."""
        if question[1:] == ("", "files"):
            return None
        if reason := self.changed():
            return reason
        if self.parts[question] not in self.engines or question.gate in ("load", "other"):
            return None
        return self._failed(Question(question.engine, "", "load"))

    def stop(self, question: Question) -> str | None:
        """Return the sentence of the failure that ended the gates before a question was reached."""
        if self.parts[question] in self.engines:
            return self._failed(Question(question.engine, "", "contract"))
        program = f"{question.subject}.mlpackage" if question.gate == "twin" else question.subject
        return self._failed(Question("bundle", program, "structure"))

    def _failed(self, earlier: Question) -> str | None:
        """Return the sentence of a failure, for those who come after it."""
        found = self.answers(earlier) if earlier in self.parts else ()
        return next((f"not reached: {r.sentence}" for r in found if r.verdict == "fail"), None)

    def session(self, label: str) -> Session:
        """Return a loaded engine; loaded once.

        Raises:
            EngineError: when its programs are damaged.
        """
        if reason := self.refused(label):
            raise EngineError(reason)
        if label not in self.sessions:
            self.sessions[label] = self.engines[label].load(self.bundle, threads=self.threads)
        return self.sessions[label]

    def pictures(self, question: Question, case: int) -> tuple[Array, Array] | None:
        """Draw again what a question is about: the expected and the actual picture, (height, width, 3).

        Returns:
            None where it is not about a picture, or the engine cannot draw it.
        """
        quantity = {"pipeline": "image"}.get(question.subject, question.subject)
        if quantity not in PICTURES or self.parts[question] not in self.engines:
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
