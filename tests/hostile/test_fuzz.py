"""A short sample of `fuzz.py`, and every input in ``corpus/`` that once was worth keeping.

The whole run is ``python tests/hostile/fuzz.py --cases 100000``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fuzz
import pytest
from breaking import JUNK, Target, broken_json

HERE = Path(__file__).parent
CASES = 150
"""Per target; the sample is to take less than half a minute."""


NAMES = (
    "manifest", "vectors", "tokenizer", "path", "pickle", "index", "scheduler", "config-text_encoder",
    "config-unet", "config-vae", "lineage", "weights", "report", "mil-model", "mil-weights", "mil-manifest",
    "mil-folder", "mil-listing", "mil-doctor", "anatomy-onnx", "anatomy-ort", "anatomy-pte", "vocabulary",
    "checkpoint-tokenizer", "picture",
)  # fmt: skip


@pytest.fixture(scope="module")
def targets() -> Iterator[dict[str, Any]]:
    with fuzz.work_folder() as work:
        found = fuzz.all_targets(Path(work))
        fuzz.warm(found)
        yield {target.name: target for target in found}


def test_every_target_is_sampled(targets: dict[str, Any]) -> None:
    assert set(NAMES) <= set(targets)
    assert {p.name for p in fuzz.CORPUS.iterdir()} <= set(targets)


def test_broken_files_end_in_documented_errors(tmp_path: Path) -> None:
    """A process of its own, as hypothesis draws constants from the modules that happen to be loaded."""
    command = [sys.executable, HERE / "fuzz.py", "--each", str(CASES), "--save", tmp_path]
    run = subprocess.run([*command, "--seed", "1"], capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stdout + run.stderr[-4000:]
    lines = re.findall(r"^(\S+) +(\d+) cases, .*?: (.*)$", run.stdout, re.MULTILINE)
    assert {name for name, *_ in lines} >= set(NAMES), run.stdout
    for name, cases, outcomes in lines:
        accepted = re.search(r"accepted (\d+)", outcomes)
        refused = int(cases) - int(accepted[1] if accepted else 0)
        assert int(cases) >= CASES, name
        assert refused > CASES // 20 or name == "pickle", name


def test_the_documented_run_has_a_third_of_its_cases_for_each_of_the_foremost() -> None:
    shares = {name: fuzz.share(name, 100_000) for name in NAMES}
    foremost = {name for name, count in shares.items() if count >= 33_334}
    assert foremost == {"manifest", "mil-model", "mil-weights"}
    assert min(shares.values()) == 5_000


@pytest.mark.parametrize("path", sorted(fuzz.CORPUS.glob("*/*")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_the_corpus_ends_as_its_names_say(targets: dict[str, Any], path: Path) -> None:
    """A name that begins with ``ok-`` is a sound file, any other is to be refused."""
    outcome = fuzz.run_case(targets[path.parent.name], path.read_bytes())
    assert (outcome == "accepted") == path.name.startswith("ok-"), outcome


def test_an_error_that_is_not_documented_is_found(tmp_path: Path) -> None:
    def read(data: bytes) -> None:
        if b"7" in data:
            raise KeyError("oops")

    bad = Target("bad", read, (ValueError,), broken_json({"a": [1, 2, 3]}))
    with pytest.raises(KeyError):
        fuzz.fuzz(bad, 5000, seed=0, save=tmp_path)
    assert any(b"7" in p.read_bytes() for p in (tmp_path / "bad").iterdir())


def test_a_hang_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "MOST_SECONDS", 0.1)

    def read(data: bytes) -> None:
        begin = time.monotonic()
        while time.monotonic() - begin < 60:
            pass

    with pytest.raises(fuzz.Hang):
        fuzz.run_case(Target("slow", read, (Exception,), JUNK), b"")


def test_a_large_allocation_is_found() -> None:
    target = Target("large", lambda data: bytearray(65 << 20), (), JUNK)
    with pytest.raises(AssertionError, match="MiB were allocated"):
        fuzz.run_case(target, b"")


def test_an_error_without_words_is_found() -> None:
    def read(data: bytes) -> None:
        raise ValueError

    with pytest.raises(AssertionError, match="without a message"):
        fuzz.run_case(Target("mute", read, (ValueError,), JUNK), b"")
