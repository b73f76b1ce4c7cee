"""Verdicts are kept for the run that they are of, and refused by any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from mutants.fault import Refused
from mutants.judge import Verdict
from mutants.kept import Head, head, read_kept

ONE = Verdict(name="onnx/eps/0", kind="eps", format="onnx", component="", about="it")


def begun(folder: Path, seed: int = 0, **donors: Path) -> tuple[Path, Head]:
    """Make a file of verdicts for a bundle that is only a manifest."""
    (folder / "manifest.json").write_text("{}")
    return folder / "verdicts.jsonl", head(folder, donors, seed)


def test_verdicts_are_kept_for_the_same_bundle_seed_and_code(tmp_path: Path) -> None:
    kept, mine = begun(tmp_path)
    assert read_kept(kept, mine) == {}
    one = msgspec.structs.replace(ONE, gates={"weights": "w"})
    with kept.open("ab") as stream:
        stream.write(msgspec.json.encode(one) + b"\n")
    assert read_kept(kept, mine) == {"onnx/eps/0": one}


@pytest.mark.parametrize("field", ["manifest_sha256", "seed", "donors", "flashbulb"])
def test_verdicts_of_another_run_are_refused(tmp_path: Path, field: str) -> None:
    kept, mine = begun(tmp_path)
    read_kept(kept, mine)
    others: dict[str, Any] = {"seed": 1, "donors": {"stale": "0"}}
    other = msgspec.structs.replace(mine, **{field: others.get(field, "other")})
    with pytest.raises(Refused, match=rf"got those of another: {field} is .*remove that file"):
        read_kept(kept, other)


def test_a_head_knows_bundles_by_their_contents(tmp_path: Path) -> None:
    one, other = (tmp_path / name for name in ("a", "b"))
    for folder in (one, other):
        folder.mkdir()
    _, first = begun(one)
    begun(other)
    (other / "manifest.json").write_text("{ }")
    assert head(other, {}, 0).manifest_sha256 != first.manifest_sha256
    assert head(one, {"stale": other}, 0).donors != head(one, {"stale": one}, 0).donors
    (one / "manifest.json").unlink()
    begun(one)
    assert head(one, {}, 0) == first


def test_verdicts_without_a_head_are_refused(tmp_path: Path) -> None:
    kept, mine = begun(tmp_path)
    kept.write_bytes(msgspec.json.encode(ONE) + b"\n")
    with pytest.raises(Refused, match="first line does not say which"):
        read_kept(kept, mine)
