"""Feed broken files to everything that reads a stranger's files.

    python tests/hostile/fuzz.py --cases 100000

The manifest, the loader of Core ML programs and the reader of their weights share these cases, a third for
each; every other target has a twentieth of them.  ``--each`` gives all targets the same number instead.

Each case is one file, broken at random by hypothesis, read by one target.  It must end in a result or in one
of the target's documented errors, within `MOST_SECONDS` of processor time and `MOST_BYTES` of allocation; the
whole run may not grow the process by more than `MOST_GROWTH`.  What fails is kept in ``--save`` and belongs,
once mended, into ``tests/hostile/corpus/TARGET/``, which `test_fuzz.py` replays together with a short sample.

A reader that is written later gets its cases in a file ``fuzz_NAME.py`` beside this one, with a function
``targets(work: Path) -> list[Target]``; it is found by its name.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import importlib
import logging
import os
import signal
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import hypothesis
from breaking import Target
from hypothesis import strategies as st

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
MOST_SECONDS = 2.0
"""Processor time of one case."""
MOST_BYTES = 64 << 20
"""Python's allocations in one case."""
MOST_GROWTH = 256 << 20
"""Resident memory that a whole run may add."""
ROUND = 1000
"""Cases that hypothesis draws before it starts anew: it remembers each one, which is no reader's memory."""
MOST_ROUND_SECONDS = 1800
"""Wall clock of one such round, of which the slowest takes a minute of processor time."""


FOREMOST = ("manifest", "mil-model", "mil-weights")
"""What every stranger's bundle goes through first."""
REST = 20
"""Of so many cases of the run, each other target has one."""


class Hang(BaseException):
    """A case took too long; no reader may catch it."""


@contextmanager
def bounded() -> Iterator[None]:
    """Hold what runs inside to the bounds of one case."""

    def late(*_: object) -> None:
        raise Hang(f"more than {MOST_SECONDS} s of processor time")

    before = signal.signal(signal.SIGVTALRM, late)
    started = tracemalloc.is_tracing()
    if not started:
        tracemalloc.start()
    tracemalloc.reset_peak()
    base = tracemalloc.get_traced_memory()[0]
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        peak = tracemalloc.get_traced_memory()[1] - base
        if not started:
            tracemalloc.stop()
        signal.signal(signal.SIGVTALRM, before)
    assert peak <= MOST_BYTES, f"{peak >> 20} MiB were allocated"


def run_case(target: Target, data: bytes) -> str:
    """Run one case; return ``accepted`` or the name of the documented error."""
    with bounded():
        try:
            target.read(data)
        except target.errors as error:
            assert str(error).strip(), "an error without a message"
            return type(error).__name__
    return "accepted"


def all_targets(work: Path) -> list[Target]:
    """Every target, from all sibling files."""
    found: list[Target] = []
    for path in sorted(HERE.glob("fuzz_*.py")):
        found += importlib.import_module(path.stem).targets(work)
    return found


# The run


def fuzz(target: Target, cases: int, seed: int, save: Path | None) -> Counter[str]:
    """Run cases of one target until there were enough; count what came out."""
    outcomes: Counter[str] = Counter()

    def one(data: bytes) -> None:
        try:
            outcomes[run_case(target, data)] += 1
        except BaseException:
            if save is not None:
                keep(save / target.name, data)
            raise

    while outcomes.total() < cases:
        faulthandler.dump_traceback_later(
            MOST_ROUND_SECONDS, exit=True
        )  # no signal ends a hang in native code
        left = cases - outcomes.total()
        test = hypothesis.given(target.files)(one)
        checks = list(hypothesis.HealthCheck)
        test = hypothesis.settings(
            max_examples=min(left, ROUND),
            database=None,
            deadline=None,
            suppress_health_check=checks,
            print_blob=False,
        )(hypothesis.seed(seed)(test))
        test()
        seed += 1_000_003
        print(f"{target.name}: {outcomes.total()} of {cases}", file=sys.stderr)
    faulthandler.cancel_dump_traceback_later()
    return outcomes


def keep(folder: Path, data: bytes) -> None:
    """Write an input under its hash."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def high_water() -> int:
    """Return the peak resident memory of this process in bytes, 0 where it is not told."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


def work_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder, in memory where there is one."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(
        prefix="flashbulb-fuzz-", dir=memory if os.access(memory, os.W_OK) else None
    )


def warm_hypothesis() -> None:
    """Draw one text: in a fresh clone hypothesis first makes tables of Unicode, which a tracer makes dear."""

    @hypothesis.settings(max_examples=1, database=None, deadline=None)
    @hypothesis.given(st.text())
    def one(_: str) -> None:
        pass

    one()


def warm(targets: list[Target]) -> None:
    """Read a sound file and an empty one of each target, so that no case pays for what is imported once."""
    for target in targets:
        for data in (b"", *(p.read_bytes() for p in sorted((CORPUS / target.name).glob("ok-*")))):
            with suppress(*target.errors):
                target.read(data)


def share(name: str, cases: int) -> int:
    """Return how many cases a target has of a run of some."""
    return -(-cases // (len(FOREMOST) if name in FOREMOST else REST))


def main() -> int:
    """Run as the command line says; return 1 on the first case that breaks a promise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases",
        type=int,
        default=100_000,
        help=f"cases over {', '.join(FOREMOST)} together; each other target has a {REST}th of it (100000)",
    )
    parser.add_argument("--each", type=int, help="cases of every target alike, instead")
    parser.add_argument("--target", action="append", help="only this target; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--save", type=Path, default=Path("fuzz-failures"), help="folder for inputs that fail"
    )
    told = parser.parse_args()
    faulthandler.enable()
    logging.disable()
    begin, total = time.monotonic(), 0
    with work_folder() as work:
        targets = [t for t in all_targets(Path(work)) if not told.target or t.name in told.target]
        warm_hypothesis()
        tracemalloc.start()  # once: started anew for each case it keeps some kilobytes of its own each time
        warm(targets)
        base = high_water()
        for target in targets:
            found = fuzz(target, told.each or share(target.name, told.cases), told.seed, told.save)
            total += found.total()
            shown = ", ".join(f"{name} {count}" for name, count in found.most_common())
            grown = high_water() - base >> 20
            print(f"{target.name:<20}{found.total():>8} cases, {grown:>4} MiB: {shown}", flush=True)
    growth = high_water() - base
    print(f"{total} cases in {time.monotonic() - begin:.0f} s, peak memory grew by {growth >> 20} MiB")
    return 1 if growth > MOST_GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
