"""The addresses of a bundle's gates, known beforehand from the manifest: one test each.  No torch here.

A record that no question here is about falls to the question ``other``, so that a gate that is added later
is never passed over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.export.structure import OPTIMUM, OPTIMUM_PROGRAMS
from flashbulb.runtimes.engines.base import Engine
from flashbulb.runtimes.opening import label
from flashbulb.runtimes.records import ParityRecord, SanityRecord

Record = SanityRecord | ParityRecord
CHAIN = ("text_encoder", "unet", "vae_decoder")
SANITY_OF_PICTURES = ("range", "channels", "variance", "prompt_sensitivity", "noise_sensitivity")
FILE_GATES = ("manifest", "files", "golden", "tokens", "noise", "constants", "thresholds")


class Question(NamedTuple):
    """The address of one test."""

    engine: str
    """Engine label, or `bundle` for the files alone."""
    subject: str
    """Component, program as `unet.ort`, `x0`, `image`, `pipeline`, or empty for the engine as a whole."""
    gate: str
    """What is asked."""

    def __str__(self) -> str:
        return "::".join(part for part in self if part)

    def answered_by(self, record: Record) -> bool:
        """Tell whether a record is about this; one without a subject is about all subjects of its gate."""
        told = address(record)
        return told == self or told == self._replace(subject="")


def address(record: Record) -> Question:
    """Return the question that a record answers."""
    if isinstance(record, ParityRecord):
        return Question(record.engine, record.quantity, "parity")
    gate, _, subject = record.gate.partition(".")
    return Question(record.engine, subject, gate)


def file_questions() -> list[Question]:
    """List what is asked of the files alone."""
    return [Question("bundle", "", gate) for gate in FILE_GATES]


def program_questions(bundle: Bundle, backends: Collection[str] = ()) -> list[Question]:
    """List what is asked of the programs without running them: rules, structure, weights, twins, source.

    Args:
        bundle: whose manifest is read.
        backends: judge only the programs of these; none for all.
    """
    chosen = [a for a in bundle.manifest.artifacts if not backends or a.backend in backends]
    programs = [label(a) for a in chosen]
    if has_optimum(bundle, backends):
        programs += [f"{OPTIMUM}.{component}.onnx" for component in OPTIMUM_PROGRAMS]
    found = [*_rules(bundle), *_of_checkpoint(bundle)]
    found += [("bundle", "", "optimum")] if has_optimum(bundle, backends) else []
    found += [("bundle", p, gate) for p in dict.fromkeys(programs) for gate in ("structure", "weights")]
    found += [("mil", a.component, "twin") for a in twinned(chosen)]
    return [Question(*words) for words in found]


def _rules(bundle: Bundle) -> list[tuple[str, str, str]]:
    """What follows from the bundle itself."""
    folders = [bundle.root / info.folder for info in bundle.manifest.tokenizers]
    words = [f.name for f in folders if (f / "vocab.json").is_file() and (f / "merges.txt").is_file()]
    rules = [("", "rule"), ("variance", "floors"), ("", "pictures"), ("", "source")]
    return [("bundle", *rest) for rest in (*rules, *((word, "vocabulary") for word in words))]


def _of_checkpoint(bundle: Bundle) -> list[tuple[str, str, str]]:
    """What follows from the checkpoint."""
    tokenizers = [(info.folder, "tokenizer") for info in bundle.manifest.tokenizers]
    return [("bundle", *rest) for rest in (("", "schedule"), *tokenizers, ("", "lineage"), ("", "codes"))]


def has_optimum(bundle: Bundle, backends: Collection[str] = ()) -> bool:
    """Tell whether the layout that optimum's pipelines open is there, and is to be judged."""
    return (not backends or "ort" in backends) and (bundle.root / OPTIMUM).is_dir()


def twinned(artifacts: Iterable[Artifact]) -> list[Artifact]:
    """Return the Core ML programs, the fused one too: it is the file that apps ship."""
    return [a for a in artifacts if a.format == "mlpackage"]


def engine_questions(bundle: Bundle, engine: Engine) -> list[Question]:
    """List what is asked of one engine, in the order of the gates."""
    held, name = engine.holds(bundle), engine.label
    chained, fused = set(CHAIN) <= set(held), "generator" in held
    found = [("", "load"), ("", "contract"), *((component, "parity") for component in held)]
    found += [(component, "finite") for component in held] if engine.watches else []
    found += [("x0", "parity"), ("image", "parity")] if chained else []
    paths = [*(["pipeline"] if chained else []), *(["generator"] if fused else [])]
    found += [(path, gate) for path in paths for gate in SANITY_OF_PICTURES]
    found += [("", "fused")] if chained and fused else []
    return [Question(name, *rest) for rest in (*found, ("", "other"))]
