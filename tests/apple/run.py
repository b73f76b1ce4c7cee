"""Run Apple's operator tests against the interpreter and say what became of them.

    python tests/apple/run.py                 # one case of each test
    python tests/apple/run.py --per-test 0    # all of them, which takes hours
    python tests/apple/run.py --fault gelu-mode -k gelu

The tests lie in the coremltools wheel; nothing is downloaded.  Further arguments go to pytest.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LEAST_SHARE = 0.95
"""Of the tests that must pass."""
FOLDERS = ("iOS14", "iOS15", "iOS16", "iOS17", "iOS18", "coreml_dialect")


def suite() -> Path:
    """Return the folder of the tests in the wheel."""
    spec = importlib.util.find_spec("coremltools")
    if spec is None or spec.origin is None:
        raise SystemExit("wanted coremltools: pip install 'flashbulb[coreml]'")
    return Path(spec.origin).parent / "converters/mil/mil/ops/tests"


def outcomes(
    arguments: list[str], *, per_test: int = 1, fp32_only: bool = False, files: tuple[str, ...] = FOLDERS
) -> dict[str, Any]:
    """Run the tests in a process of their own and return what became of each."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "mil_plugin", "-p", "no:cacheprovider"]
        command += ["-c", os.devnull, "--rootdir", str(suite()), "-W", "ignore", f"--per-test={per_test}"]
        command += ["--fp32-only"] * fp32_only + [f"--record={record}", "--tb=short", *arguments]
        paths = os.pathsep.join([str(HERE), str(ROOT / ".src")])
        environment = {**os.environ, "PYTHONPATH": paths, "PYMIL_TEST_TARGETS": "mlprogram"}
        environment["INCLUDE_MIL_FP32_UNIT_TESTS"] = "1"
        done = subprocess.run(
            [*command, *(str(suite() / f) for f in files)],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        found: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
        if not found:
            words = done.stdout[-3000:] + done.stderr[-3000:]
            raise RuntimeError(f"wanted outcomes, got none and status {done.returncode}:\n{words}")
        return found


def summary(found: dict[str, Any]) -> tuple[Counter[str], dict[str, Any]]:
    """Count the outcomes of tests that predicted or could not load, and return those that did not pass.

    `rounding` is a test of an fp16 program that is held to what no fp16 can keep (`mil_plugin.close`), and
    `explained` one whose expectation is off, or says nothing, as `mil_plugin` has it.
    """
    judged = {
        name: r
        for name, r in found.items()
        if r["predictions"] or r["outcome"] in ("failed", "mismatch", "unsupported")
    }
    counts = Counter(r["outcome"] for r in judged.values())
    return counts, {name: r for name, r in judged.items() if r["outcome"] not in ("passed", "skipped")}


def passed(counts: Counter[str]) -> float:
    """Return the share that passes of the tests that predicted or could not load."""
    words = ("passed", "rounding", "explained", "failed", "mismatch", "unsupported")
    return counts["passed"] / max(1, sum(counts[word] for word in words))


def main() -> int:
    """Print the counts, and every test that did not pass with its reason."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--per-test", type=int, default=1, help="cases of each test; 0 runs all")
    parser.add_argument("--fp32-only", action="store_true", help="only the tight comparisons")
    parser.add_argument("--files", nargs="+", default=FOLDERS, help="folders or files of the suite")
    parser.add_argument("--record", type=Path, help="write the outcome of each test here as JSON")
    known, rest = parser.parse_known_args()
    found = outcomes(rest, per_test=known.per_test, fp32_only=known.fp32_only, files=tuple(known.files))
    if known.record:
        known.record.write_text(json.dumps(found, indent=1))
    counts, bad = summary(found)
    for name, result in bad.items():
        print(f"{result['outcome']:12} {name}\n             {result['reason']}")
    share = passed(counts)
    print(f"{dict(counts)}; {share:.1%} of those that say something pass")
    return 1 if counts["mismatch"] or counts["failed"] or share < LEAST_SHARE else 0


if __name__ == "__main__":
    sys.exit(main())
