"""A budget is held on every device: by the fused generator, or by the components together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.runtimes.devices.apple import UDID, answer, times
from tests.unit.runtimes.test_merge import latency

from flashbulb.export.bundle import Bundle, read_bundle, write_manifest
from flashbulb.runtimes.devices.timing import AnyRecord, together, within_all
from flashbulb.runtimes.records import LatencyRecord, SanityRecord
from flashbulb.runtimes.stage import BenchConfig, bench

PARTS = ("text_encoder", "unet", "vae_decoder")


def timed(**changes: Any) -> list[LatencyRecord]:
    return [latency("ort@x", target=name, p50_ms=10.0, **changes) for name in PARTS]


@pytest.mark.parametrize(
    ("records", "budget_ms", "verdict", "words"),
    [
        (timed(), 30.0, "pass", "add up to 30.00 ms, the budget is 30.00 ms"),
        (timed(), 29.9, "fail", "add up to 30.00 ms, the budget is 29.90 ms"),
        (timed(verdict="skip"), 30.0, "skip", "add up to 30.00 ms"),
        (timed(verdict="skip"), 29.9, "fail", "add up to 30.00 ms"),
        (timed(verdict="fail"), 30.0, "fail", "add up to 30.00 ms"),
        (timed()[1:], 30.0, "fail", "no time of text_encoder, so that the budget of 30.00 ms is not met"),
        ([], 30.0, "fail", "no time of text_encoder, unet, vae_decoder"),
    ],
)
def test_components_are_held_together(records: list[AnyRecord], budget_ms: float, verdict: str, words: str):
    others = [latency("ort@y", target="unet", p50_ms=500.0), latency("ort@x", target="safety", p50_ms=500.0)]
    found = together("ort@x", PARTS, [*records, *others], budget_ms)
    assert (found.gate, found.engine, found.verdict) == ("budget", "ort@x", verdict)
    assert words in found.sentence


def test_a_fused_generator_is_held_alone():
    records: list[AnyRecord] = [*timed(), latency("ort@x", p50_ms=50.0)]
    held = {"ort@x": (*PARTS, "generator")}
    assert [r.verdict for r in within_all(records, held, 40.0)] == ["pass"] * 3 + ["fail"]
    assert within_all(records, {"ort@x": PARTS}, None) == records


def without_generator(bundle: Bundle) -> Bundle:
    kept = tuple(a for a in bundle.manifest.artifacts if a.component != "generator")
    for file in {f.path for a in bundle.manifest.artifacts if a not in kept for f in a.files}:
        (bundle.root / file).unlink()
    write_manifest(msgspec.structs.replace(bundle.manifest, artifacts=kept), bundle.root)
    return read_bundle(bundle.root)


def budgets(bundle: Bundle, **options: Any) -> list[SanityRecord]:
    report = bench(BenchConfig(bundle=str(bundle.root), runs=10, **options))
    return [r for r in report.sanity if r.gate == "budget"]


def test_the_budget_of_a_bundle_without_a_generator_is_held_on_a_phone(
    fake_adb: Path, runners: Path, bundle: Bundle, thermal: Path, there: Path
):
    thermal.write_text("0\n")
    bundle = without_generator(bundle)
    for budget_ms, verdict in ((3.0, "fail"), (3.1, "pass")):
        (found,) = budgets(bundle, device="adb:fake:5555", runners=str(runners), budget_ms=budget_ms)
        assert (found.verdict, found.threshold, found.unit) == (verdict, budget_ms, "ms")


def test_the_budget_is_held_by_an_app_too(xcrun: Path, coreml: Bundle):
    coreml = without_generator(coreml)
    answer(xcrun, latency=times(coreml))
    for budget_ms, verdict in ((5.9, "fail"), (6.0, "pass")):
        found = budgets(coreml, device=f"ios:{UDID}", budget_ms=budget_ms)
        assert [(r.verdict, r.value) for r in found] == [(verdict, 6.0)] * 4
