"""Hold good bundles to every gate of `flashbulb check`: none may fail.

python tests/mutation/clean.py --out runs/clean                 # small random bundles of all encodings
python tests/mutation/clean.py --bundles runs/make/bundle       # bundles that exist
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from mutants.small import ENCODINGS, Kind, Recipe, Target, make

PREDICTIONS = ("v_prediction", "epsilon", "sample")
"""What networks predict; a flow has no export."""
TARGETS: tuple[Target, ...] = ("iOS16", "iOS17", "iOS18")
OTHERS: tuple[Kind, ...] = ("guided", "sdxl")


def recipes(seeds: Iterable[int], every: bool) -> Iterator[Recipe]:
    """Yield one bundle per encoding and seed, systems and parametrisations in turns or all; then others.

    Guided and SDXL's shapes have one encoding per seed, or all.
    """
    for number, (seed, encoding) in enumerate(itertools.product(seeds, ENCODINGS)):
        target = TARGETS[number % len(TARGETS)]
        for prediction in PREDICTIONS if every else (PREDICTIONS[(number + number // 5) % 3],):
            yield Recipe(encoding, prediction, seed, target=target)
    for seed, (turn, kind) in itertools.product(seeds, enumerate(OTHERS)):
        for encoding in ENCODINGS if every else (ENCODINGS[(seed + 2 * turn) % 5],):
            yield Recipe(encoding, "epsilon", seed, kind=kind)


def failures(bundle: Path) -> list[str]:
    """Return the sentences of what fails on a bundle."""
    from flashbulb.runtimes.stage import CheckConfig, check

    report = check(CheckConfig(bundle=str(bundle), threads=1))
    return list(report.failures) or ([] if report.ok else ["nothing was judged"])


def main() -> int:
    """Return 0 when no gate failed on any bundle."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bundles", nargs="+", type=Path, default=[], help="check these instead of small ones"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the random weights")
    parser.add_argument("--every", action="store_true", help="every encoding with every parametrisation")
    parser.add_argument("--out", type=Path, default=Path("runs/clean"), help="folder of the small bundles")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    made = (make(recipe, options.out) for recipe in recipes(options.seeds, options.every))
    results = []
    for bundle in options.bundles or made:
        start, failed = time.time(), failures(bundle)
        results.append(bool(failed))
        print(
            f"{'FAILED' if failed else 'clean '} {time.time() - start:6.1f} s  {bundle}",
            *failed,
            sep="\n    ",
            flush=True,
        )
    print(f"{len(results)} bundles, {sum(results)} failed a gate")
    return 1 if any(results) or not results else 0


if __name__ == "__main__":
    sys.exit(main())
