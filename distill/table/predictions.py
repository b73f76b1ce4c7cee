"""What the papers let one expect of the table, with a rule that each expectation can fail by.

The rules were written before the figures were known. A rule compares ranges over all seeds: where two ranges
overlap, the verdict is a tie.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec

from flashbulb.distill.table.results import Spread, Table

Outcome = Literal["holds", "fails", "tie", "open"]
DPM_4 = "dpm_solver 4 guidance 3"
TEACHER_1 = "ddim 1 guidance 3"


class Missing(Exception):
    """A figure that the rule needs is not there yet."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A prediction and what became of it."""

    id: str
    prediction: str
    rule: str
    outcome: Outcome
    figures: str


class Prediction(NamedTuple):
    """A prediction and its rule; the judgement returns an outcome and the figures behind it."""

    id: str
    prediction: str
    rule: str
    judge: Callable[[Table], tuple[Outcome, str]]


def judge_all(table: Table) -> list[Verdict]:
    """Judge every prediction by the results that there are."""
    return [_verdict(p, table) for p in PREDICTIONS]


def _verdict(p: Prediction, table: Table) -> Verdict:
    try:
        outcome, figures = p.judge(table)
    except Missing as missing:
        outcome, figures = "open", f"not measured yet: {missing}"
    return Verdict(id=p.id, prediction=p.prediction, rule=p.rule, outcome=outcome, figures=figures)


def _get(table: Table, row: str, figure: str, draw: str | None = None) -> Spread:
    found = table.spread(row, figure, draw)
    if found is None:
        raise Missing(f"{row} by {draw}" if draw else row)
    return found


def _far_better(table: Table) -> tuple[Outcome, str]:
    add = _get(table, "add", "frechet", "euler 1")
    dpm, one = _get(table, "teacher", "frechet", DPM_4), _get(table, "teacher", "frechet", TEACHER_1)
    held = add.mean <= dpm.mean / 2 and dpm.above(add) and one.above(add)
    beaten = dpm.above(add) and one.above(add)
    said = f"Frechet: ADD {add}, DPM-Solver++ in 4 steps {dpm}, teacher in 1 step {one}"
    return ("holds" if held else "fails"), said + ("; better, but not twice as good" if beaten > held else "")


def _distill_only_collapses(table: Table) -> tuple[Outcome, str]:
    alone, adv = _get(table, "distill-exp", "frechet"), _get(table, "adv-only", "frechet")
    blur, sharp = _get(table, "distill-exp", "sharpness"), _get(table, "adv-only", "sharpness")
    held = alone.mean >= 3 * adv.mean and sharp.above(blur)
    return (
        "holds" if held else "fails"
    ), f"Frechet: distillation only {alone}, adversarial only {adv}; sharpness {blur} and {sharp}"


def _random_init_collapses(table: Table) -> tuple[Outcome, str]:
    random, start = _get(table, "random-init", "frechet"), _get(table, "add", "frechet", "euler 1")
    held = random.mean >= 3 * start.mean
    return ("holds" if held else "fails"), f"Frechet: random start {random}, pretrained {start}"


def _both_losses(table: Table) -> tuple[Outcome, str]:
    both, adv = (_get(table, r, "retrieval_at_1") for r in ("add", "adv-only"))
    far, near = (_get(table, r, "frechet") for r in ("adv-only", "add"))
    said = f"R@1: both {both}, adversarial only {adv}; Frechet {near} and {far}"
    if both.above(adv) and not near.above(far):
        return "holds", said
    return ("fails" if adv.above(both) or near.above(far) else "tie"), said


def _conditioning(table: Table) -> tuple[Outcome, str]:
    rows = ("add", "told-image", "told-text", "told-none")
    for row in rows:
        _get(table, row, "retrieval_at_1")
    seeds = sorted(set.intersection(*({r.seed for r in table.of(row)} for row in rows)))
    held = sum(_ordered([_of_seed(table, row, seed) for row in rows]) for seed in seeds)
    spreads = ", ".join(f"{row} {_get(table, row, 'retrieval_at_1')}" for row in rows)
    said = f"R@1: {spreads}; the order holds in {held} of {len(seeds)} training seeds"
    ahead = max(0, 3 - len(seeds))
    if not ahead:
        return ("holds" if held * 3 >= 2 * len(seeds) else "fails"), said
    decided: Outcome = "holds" if held >= 2 else "fails" if held + ahead < 2 else "open"
    return decided, said + " (three are wanted)"


def _of_seed(table: Table, row: str, seed: int) -> float:
    result = next(r for r in table.of(row) if r.seed == seed)
    values = [d.figures.retrieval_at_1 for d in result.drawn if d.draw == result.drawn[0].draw]
    return sum(values) / len(values)


def _ordered(values: list[float]) -> bool:
    return all(a > b for a, b in itertools.pairwise(values))


def _weightings(table: Table) -> tuple[Outcome, str]:
    rows = {"exp": "add", "sds": "add-sds", "nfsd": "add-nfsd"}
    far = {k: _get(table, row, "frechet") for k, row in rows.items()}
    right = {k: _get(table, row, "retrieval_at_1") for k, row in rows.items()}
    held = min(far, key=lambda k: far[k].mean) == "exp" and max(right, key=lambda k: right[k].mean) != "exp"
    clear = far["sds"].above(far["exp"]) and far["nfsd"].above(far["exp"])
    said = "Frechet: " + ", ".join(f"{k} {v}" for k, v in far.items())
    said += "; R@1: " + ", ".join(f"{k} {v}" for k, v in right.items())
    return ("holds" if held and clear else "tie" if held else "fails"), said


def _more_steps(table: Table) -> tuple[Outcome, str]:
    one_far, one_right = (
        _get(table, "add", "frechet", "euler 1"),
        _get(table, "add", "retrieval_at_1", "euler 1"),
    )
    better, parts = False, []
    for draw in ("euler 4", "euler_ancestral 4", "renoise 4"):
        far, right = _get(table, "add", "frechet", draw), _get(table, "add", "retrieval_at_1", draw)
        better |= one_far.above(far) or right.above(one_right)
        parts.append(f"{draw}: Frechet {far}, R@1 {right}")
    return ("holds" if better else "tie"), f"one step: {one_far}, {one_right}; " + "; ".join(parts)


def _less_diverse(table: Table) -> tuple[Outcome, str]:
    ours, theirs = (
        _get(table, r, "recall", d) for r, d in (("add", "euler 1"), ("teacher", "ddim 50 guidance 3"))
    )
    said = f"recall: ADD {ours}, teacher in 50 steps {theirs}"
    return ("holds" if theirs.above(ours) else "fails" if ours.above(theirs) else "tie"), said


PREDICTIONS = (
    Prediction(
        "P1",
        "One step of ADD is far better than the teacher's one step and than four of DPM-Solver++.",
        "Frechet distance at most half of DPM-Solver++'s, ranges apart.",
        _far_better,
    ),
    Prediction(
        "P2",
        "Distillation without the adversarial loss collapses.",
        "Frechet distance at least three times that of the adversarial loss alone, and blurred.",
        _distill_only_collapses,
    ),
    Prediction(
        "P3",
        "A student from random weights collapses at the same budget.",
        "Frechet distance at least three times that of the pretrained start.",
        _random_init_collapses,
    ),
    Prediction(
        "P4",
        "Both losses are at least as good as the adversarial one alone, mainly in alignment.",
        "Retrieval higher, ranges apart; Frechet distance not worse.",
        _both_losses,
    ),
    Prediction(
        "P5",
        "A critic told the picture beats one told the caption, which beats one told nothing; both is best.",
        "The order of retrieval holds in at least two of three training seeds.",
        _conditioning,
    ),
    Prediction(
        "P6",
        "exp has the best Frechet distance, sds or nfsd the best alignment.",
        "Signs of both differences; a tie where the ranges of the Frechet distance overlap.",
        _weightings,
    ),
    Prediction(
        "P7",
        "Quality rises from one to four steps.",
        "Frechet distance or retrieval better for at least one sampler, ranges apart.",
        _more_steps,
    ),
    Prediction(
        "P8", "The student is less diverse than its teacher.", "Recall lower, ranges apart.", _less_diverse
    ),
)
