"""Records survive JSON; an empty or broken report is not ok."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from flashbulb.runtimes.merge import merge
from flashbulb.runtimes.parity import Subject, Threshold, judge
from flashbulb.runtimes.records import (
    BundleIdentity,
    Report,
    SanityRecord,
    host,
    now,
    read_report,
    runtime_versions,
    write_report,
)

SUBJECT = Subject(
    engine="ort", precision="float32", quantity="image", tensor="image", case=0, prompt="x", seed=1
)


def make(digest: str = "a", **fields) -> Report:
    bundle = BundleIdentity(name="n", path="p", manifest_sha256=digest, checkpoint_sha256="c", created="")
    versions = runtime_versions()
    return Report(command="check", created=now(), bundle=bundle, device=host(), versions=versions, **fields)


def verdict(word: str) -> SanityRecord:
    return SanityRecord(gate="g", engine="ort", verdict=word, sentence=f"it is {word}")  # type: ignore[arg-type]


def test_a_report_survives_json(tmp_path: Path) -> None:
    bad = judge(SUBJECT, Threshold(metric="psnr_db", minimum_db=3), np.ones(3), np.full(3, np.nan))
    report = make(sanity=(verdict("pass"),), parity=(bad,))
    path = write_report(report, tmp_path / "a/report.json")
    assert read_report(path) == report
    assert "NaN" not in path.read_text().replace("are NaN", "")
    assert not report.ok


@pytest.mark.parametrize(
    ("words", "ok"),
    [((), False), (("skip",), False), (("pass",), True), (("pass", "skip"), True), (("pass", "fail"), False)],
)
def test_ok_needs_a_pass_and_no_failure(words: tuple[str, ...], ok: bool) -> None:
    report = make(sanity=tuple(verdict(w) for w in words))
    assert report.ok is ok
    assert report.failures == tuple("it is fail" for w in words if w == "fail")


def test_merge_keeps_all_records_of_one_bundle_and_refuses_two() -> None:
    joined = merge([make(sanity=(verdict("pass"),)), make(sanity=(verdict("skip"),))])
    assert [s.verdict for s in joined.sanity] == ["pass", "skip"]
    with pytest.raises(ValueError, match="of 2 bundles"):
        merge([make("a"), make("b")])


def test_what_is_no_report_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="wanted a report"):
        read_report(path)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(make(), schema_version=9)))
    with pytest.raises(ValueError, match=r"schema 2.*got 9"):
        read_report(path)


def test_the_host_is_described() -> None:
    device = host()
    assert device.cores >= 1
    assert device.memory_bytes > 1 << 28
    assert device.cpu
