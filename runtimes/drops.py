"""How many decibels of parity a bundle lost against an earlier one.  No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Literal

from flashbulb.runtimes.records import ParityRecord, RegressionRecord, SanityRecord

CEILING_DB = 144.0
"""Signal to rounding error of float32 (2^-24); whatever is better, exact too, counts as this."""
WRITE_BOTH = (
    "give `report.json` of `flashbulb make`, or join the reports of `check --out` and `bench --out` with "
    "`flashbulb report BUNDLE --reports CHECK.json BENCH.json`"
)
"""Which reports hold parity as well as times, and so can be a baseline for both."""
Key = tuple[str, str, str, str]
Cases = dict[tuple[str, int], ParityRecord]
Method = Literal["interleaved", "record"]


def db_drops(
    new: Iterable[ParityRecord],
    old: Iterable[ParityRecord],
    limit: float,
    labels: set[str] | None = None,
    method: Method = "record",
) -> Iterator[RegressionRecord]:
    """Compare parity, tensor by tensor, at the golden case that lost most.

    Args:
        new: parity of this bundle.
        old: parity of the baseline.
        limit: largest loss in dB that passes.
        labels: engines to compare; None for all that the baseline has.
        method: where the baseline's parity comes from.
    """
    mine, theirs = by_tensor(new), by_tensor(old)
    wanted = [key for key in theirs if labels is None or key[0] in labels]
    if not wanted:
        words = f"the baseline has no parity of these engines; {WRITE_BOTH}"
        yield open_question("db_drop", "all", "parity", limit, words, method)
    for key in wanted:
        engine, quantity, tensor, _ = key
        subject = quantity if quantity == tensor else f"{quantity} ({tensor})"
        if reason := _gap(mine.get(key), theirs[key]):
            yield open_question("db_drop", engine, subject, limit, f"{engine} {subject}: {reason}", method)
        else:
            yield _drop(engine, subject, mine[key], theirs[key], limit, method)


def by_tensor(records: Iterable[ParityRecord]) -> dict[Key, Cases]:
    """Sort records by engine, quantity, tensor and metric, then by prompt and seed."""
    found: dict[Key, Cases] = {}
    for r in records:
        found.setdefault((r.engine, r.quantity, r.tensor, r.metric), {})[(r.prompt, r.seed)] = r
    return found


def level_db(record: ParityRecord) -> float:
    """Return a record's decibels: exact as those of rounding, not finite as minus infinity."""
    if record.exact:
        return CEILING_DB
    return -math.inf if record.value_db is None else min(CEILING_DB, record.value_db)


def shown(record: ParityRecord) -> str:
    """Write a level for people."""
    if record.exact:
        return "exact"
    return "not finite" if record.value_db is None else f"{record.value_db:.1f} dB"


def open_question(
    kind: Literal["slowdown", "db_drop"], engine: str, subject: str, limit: float, words: str, method: Method
) -> RegressionRecord:
    """Record a comparison that could not be made."""
    return RegressionRecord(
        kind=kind,
        method=method,
        engine=engine,
        subject=subject,
        value=None,
        limit=limit,
        verdict="undecided",
        sentence=f"undecided: {words}",
    )


def _gap(new: Cases | None, old: Cases) -> str | None:
    """Say why two sets of cases do not compare; None when they do."""
    if new is None:
        return "the baseline has it, and this run has not"
    if new.keys() != old.keys():
        return "the golden prompts or seeds are not the baseline's"
    if not all(math.isfinite(level_db(r)) for r in old.values()):
        return "the baseline's own values are not finite"
    return None


def _drop(
    engine: str, subject: str, new: Cases, old: Cases, limit: float, method: Method
) -> RegressionRecord:
    losses = {case: level_db(old[case]) - level_db(new[case]) for case in old}
    worst = max(losses, key=lambda case: losses[case])
    loss = losses[worst]
    change = "lost nothing" if loss <= 0.0 else f"{shown(old[worst])} became {shown(new[worst])}"
    words = f"{engine} {subject}: {change} in case {new[worst].case}, allowed to lose {limit:.1f} dB"
    return _judged(engine, subject, loss, limit, words, method)


def twin_drops(
    new: Iterable[SanityRecord], old: Iterable[SanityRecord], limit: float, method: Method = "record"
) -> Iterator[RegressionRecord]:
    """Compare the float32 twins of Core ML programs, component by component.

    Args:
        new: records of this bundle; those that are no twin's are passed over.
        old: records of the baseline.
        limit: largest loss in dB that passes.
        method: where the baseline's records come from.
    """
    mine = {r.gate: r for r in new if is_twin(r)}
    for r in old:
        if not is_twin(r):
            continue
        subject = f"twin of {r.gate.partition('.')[2]}"
        if (now := mine.get(r.gate)) is None:
            words = f"{r.engine} {subject}: the baseline has it, and this run has not"
            yield open_question("db_drop", r.engine, subject, limit, words, method)
            continue
        loss = _twin_db(r) - _twin_db(now)
        change = f"{_twin_db(r):.1f} dB became {_twin_db(now):.1f} dB" if loss > 0.0 else "lost nothing"
        words = f"{r.engine} {subject}: {change}, allowed to lose {limit:.1f} dB"
        yield _judged(r.engine, subject, loss, limit, words, method)


def is_twin(record: SanityRecord) -> bool:
    """Tell the records of twins that were judged and whose values are known."""
    exact = record.value is None and record.verdict == "pass"
    return record.gate.startswith("twin.") and (record.value is not None or exact)


def _twin_db(record: SanityRecord) -> float:
    """Return a twin's decibels; an exact one has those of rounding."""
    return CEILING_DB if record.value is None else min(CEILING_DB, record.value)


def _judged(
    engine: str, subject: str, loss: float, limit: float, words: str, method: Method
) -> RegressionRecord:
    """Make the record of one loss."""
    return RegressionRecord(
        kind="db_drop",
        method=method,
        engine=engine,
        subject=subject,
        value=loss if math.isfinite(loss) else None,
        limit=limit,
        verdict="pass" if loss <= limit else "fail",
        sentence=words,
    )
