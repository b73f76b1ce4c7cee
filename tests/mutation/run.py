"""Plant faults in a good bundle and see which gate of `flashbulb check` notices each of them.

    python tests/mutation/run.py --bundle runs/make/bundle
    python tests/mutation/run.py --bundle runs/make/bundle --faults onnx/unet pte --out /tmp/faults

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from mutants.fault import Refused
from mutants.judge import Verdict
from mutants.kept import head
from mutants.table import summary, write
from mutants.worker import Task, judge_all

EVERY = 20
"""Verdicts between two reports."""


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True, help="a bundle that passes its gates")
    parser.add_argument("--checkpoint", help="where its checkpoint is, if not where it was at export")
    parser.add_argument("--faults", nargs="+", default=[], help="parts of names of faults; all by default")
    parser.add_argument(
        "--donor", nargs="+", default=[], metavar="KIND=BUNDLE", help="bundles to take files from"
    )
    parser.add_argument("--seed", type=int, default=0, help="chooses the places of the faults")
    parser.add_argument("--out", type=Path, default=Path("runs/mutation"), help="folder of the report")
    parser.add_argument("--sample", type=int, default=0, help="most faults per kind, format and component")
    return parser.parse_args()


def donors(words: Iterable[str]) -> dict[str, Path]:
    """Read `kind=bundle` words."""
    return {kind: Path(path) for kind, _, path in (word.partition("=") for word in words)}


def told(verdicts: Iterable[Verdict], task: Task, out: Path, start: float) -> list[Verdict]:
    """Print each verdict as it comes, and write the report again after every few."""
    found = []
    for verdict in verdicts:
        found.append(verdict)
        word = "SURVIVED" if verdict.survived else "equivalent" if verdict.equivalent else "caught"
        gates = ", ".join(verdict.gates) or "-"
        print(f"{word:10} {verdict.seconds:6.2f} s  {verdict.name}: {verdict.about}  [{gates}]", flush=True)
        if len(found) % EVERY == 0:
            write(found, about(task, start), out)
    write(found, about(task, start), out)
    return found


def about(task: Task, start: float) -> dict[str, Any]:
    """Say what a report is about."""
    known = msgspec.structs.asdict(head(task.base, task.donors, task.seed))
    return {"bundle": task.base.name, **known, "seconds of this run": round(time.time() - start)}


def main() -> int:
    """Return 0 when every real fault was caught, 1 when one survived, 2 when it cannot be judged."""
    options, start = arguments(), time.time()
    work = options.out / "overlay"
    options.out.mkdir(parents=True, exist_ok=True)
    task = Task(options.bundle, work, donors(options.donor), options.seed, options.checkpoint)
    try:
        found = told(judge_all(task, options.faults, options.sample), task, options.out, start)
    except Refused as error:
        print(error, file=sys.stderr)
        return 2
    total = summary(found)
    print(
        f"{total['planted']} faults: {total['caught']} caught, {total['equivalent']} equivalent, "
        f"{len(total['survived'])} survived, {len(total['died'])} ended the check in an error; "
        f"{len(total['recorded_missed'])} of {total['recorded']} missed with a new structure record; "
        f"{time.time() - start:.0f} s; {options.out / 'mutation.md'}"
    )
    missed = total["unsigned"] - total["unsigned_caught_by_hashes"]
    return 1 if total["survived"] or total["died"] or missed or not found else 0


if __name__ == "__main__":
    sys.exit(main())
