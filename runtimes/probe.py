"""Load native programs once in a process of their own: a damaged one can end nothing but that process."""

from __future__ import annotations

from typing import cast

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.engines.base import Engine, EngineError


def probe(bundle: Bundle, engine: Engine, threads: int) -> None:
    """Load what an engine opens of a bundle, all of it by one worker; nothing where no native code reads it.

    Raises:
        EngineError: when the runtime refuses a program, or ends its process over one.
    """
    if not engine.native:
        return
    from flashbulb.runtimes.engines import AnyEngine
    from flashbulb.runtimes.latency import Died, Worker
    from flashbulb.runtimes.worker import Job

    job = Job(
        engine=cast(AnyEngine, engine),
        bundle=str(bundle.root.resolve()),
        components=engine.holds(bundle),
        threads=threads,
        prompt="",
        seed=0,
    )
    try:
        with Worker(job):
            pass
    except Died as error:
        raise EngineError(
            f"wanted programs that {engine.name} can load, they end the process that loads them: {error}; "
            "do not use this bundle, or export it again"
        ) from error
