"""Which engines are asked of a bundle, and why others are not.  One answer for the command and the plugin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.engines import AnyEngine, Eager, engine_named, engine_names
from flashbulb.runtimes.engines.base import Engine, EngineError
from flashbulb.runtimes.records import SanityRecord, Verdict


class Refusal(NamedTuple):
    """An engine that cannot run here, and why."""

    engine: str
    """Its word."""
    reason: str
    """The sentence of what it lacks."""
    wanted: bool = False
    """Somebody named it, or nothing else is left: its absence is a failure."""

    def record(self) -> SanityRecord:
        """Return what stands of it in a report."""
        verdict: Verdict = "fail" if self.wanted else "skip"
        return SanityRecord(gate="engine", engine=self.engine, verdict=verdict, sentence=self.sentence)

    @property
    def sentence(self) -> str:
        """The reason with the engine that it is about."""
        return f"{self.engine}: {self.reason}"


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a bundle."""

    engines: tuple[AnyEngine, ...]
    """What can run here, at its defaults."""
    refusals: tuple[Refusal, ...]
    """What cannot."""
    backends: frozenset[str] = frozenset()
    """Backends of the named engines, whose programs alone are judged; empty for all."""

    def variants(self, bundle: Bundle) -> list[Engine]:
        """Return one engine per kind of file that the chosen ones open."""
        return [variant for engine in self.engines for variant in engine.variants(bundle)]

    def require(self) -> None:
        """Refuse a choice that lacks what was wanted.

        Raises:
            EngineError: with every reason.
        """
        missed = [r for r in self.refusals if r.wanted]
        if missed and self.backends:
            raise EngineError("; ".join(r.reason for r in missed))
        if missed:
            raise EngineError(f"no engine can run this bundle here: {'; '.join(r.sentence for r in missed)}")


def choose(bundle: Bundle, names: Iterable[str], checkpoint: str | None = None) -> Choice:
    """Return the engines to ask, and those that cannot run here.

    Args:
        bundle: what to judge.
        names: words of the engines, each of which is wanted; none for all that serve the bundle's files,
            and PyTorch, of which one at least is wanted.
        checkpoint: where the eager engine finds the checkpoint.
    """
    named_words = tuple(dict.fromkeys(names))
    held = {a.backend for a in bundle.manifest.artifacts} | {"eager"}
    words = named_words or [w for w in engine_names() if named(w, checkpoint).backend in held]
    engines = {word: named(word, checkpoint) for word in words}
    reasons = {word: refusal(bundle, engine) for word, engine in engines.items()}
    wanted = bool(named_words) or all(reasons.values())
    return Choice(
        engines=tuple(engine for word, engine in engines.items() if reasons[word] is None),
        refusals=tuple(Refusal(word, reason, wanted) for word, reason in reasons.items() if reason),
        backends=frozenset(engines[word].backend for word in named_words),
    )


def available(bundle: Bundle, checkpoint: str | None = None) -> dict[str, str | None]:
    """Return every engine's name with the reason why it cannot run this bundle here, or None."""
    return {name: refusal(bundle, named(name, checkpoint)) for name in engine_names()}


def refusal(bundle: Bundle, engine: AnyEngine) -> str | None:
    """Say why an engine cannot run this bundle here; None when it can."""
    return engine.missing() or engine.serves(bundle)


def named(name: str, checkpoint: str | None = None) -> AnyEngine:
    """Return an engine by its name; only eager needs to know where the checkpoint is."""
    return Eager(checkpoint=checkpoint) if name == "eager" else engine_named(name)
