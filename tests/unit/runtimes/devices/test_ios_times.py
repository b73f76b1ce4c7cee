"""Times that an app on a device of Apple took: what was asked, what is possible, and how warm it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.runtimes.devices.apple import UDID, answer, times

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.devices import exchange
from flashbulb.runtimes.records import LatencyRecord, Report
from flashbulb.runtimes.stage import BenchConfig, bench


def clocked(bundle: Bundle, **options: Any) -> Report:
    return bench(BenchConfig(bundle=str(bundle.root), device=f"ios:{UDID}", runs=20, **options))


def test_an_app_times_every_program(xcrun: Path, coreml: Bundle):
    answer(xcrun, latency=times(coreml))
    report = clocked(coreml)
    assert report.ok and report.parity == () and report.device.kind == "ios"
    assert {(r.engine, r.target) for r in report.latency} == {
        (f"coreml@{units}@{UDID}", target)
        for units in exchange.UNITS
        for target in coreml.components("coreml")
    }
    for figure in report.latency:
        assert isinstance(figure, LatencyRecord) and figure.verdict == "pass"
        assert (figure.p50_ms, figure.load_ms) == (2.0, 9.0)
        assert figure.artifact_bytes == coreml.artifact(figure.target, "coreml").size_bytes  # type: ignore[arg-type]
        assert figure.sentence.endswith("thermal status 0 before and 0 after")
    request = xcrun / "container/Documents/flashbulb/request.json"
    asked = msgspec.json.decode(request.read_bytes(), type=exchange.Request)
    assert (asked.cases, asked.runs) == (0, 20)
    late = [r.target for r in clocked(coreml, budget_ms=1.5).latency if r.verdict == "fail"]
    assert late == ["generator"] * 4 and clocked(coreml, budget_ms=2.5).ok


TIMES: dict[str, tuple[dict[str, Any], str, str]] = {
    "warm": ({"thermal_after": 1}, "fail", "it was warm, so this is no figure"),
    "silent": ({"thermal_after": None}, "skip", "not judged: the device does not tell"),
    "few": ({"runs": 19}, "fail", "wanted 20 runs, got 19"),
    "unordered": ({"p50_ms": 3.5}, "fail", "wanted positive times that rise"),
    "negative": ({"min_ms": -1.0}, "fail", "wanted positive times that rise"),
    **{
        f"{name} {value}": ({name: value}, "fail", f"wanted {name} from")
        for name, value in {
            "load_ms": -1.0,
            "first_ms": 0.0,
            "peak_rss_bytes": 0,
            "baseline_rss_bytes": -5,
            "threads": 0,
            "disturbed_runs": 21,
            "cpu_p50_ms": -1.0,
            "cpu_over_wall": 1e9,
            "thermal_before": -1,
            "runs": 10**9,
            "p99_ms": 1e300,
        }.items()
    },
    "placement": ({"placement": {"GPU": 1.5}}, "fail", "wanted placement of GPU from 0 to 1, got 1.5"),
    "other units": ({"engine": "coreml@gpu"}, "fail", "wanted compute units of cpuOnly, cpuAndGPU"),
    "another program": ({"target": "safety"}, "fail", "the bundle has no such program of float32"),
    "another precision": ({"precision": "float16"}, "fail", "no such program of float16"),
}


@pytest.mark.parametrize(("change", "verdict", "words"), TIMES.values(), ids=TIMES)
def test_a_figure_of_the_app_is_not_believed(xcrun: Path, coreml: Bundle, change, verdict: str, words: str):
    told = times(coreml)
    told[1] |= change
    answer(xcrun, latency=told)
    report = clocked(coreml)
    assert [r.verdict for r in report.latency] == ["pass", verdict, *["pass"] * 14]
    assert words in report.latency[1].sentence


def test_a_program_that_was_not_timed_fails(xcrun: Path, coreml: Bundle):
    told = times(coreml)
    answer(xcrun, latency=told[1:])
    assert clocked(coreml).failures == (f"coreml@cpuOnly@{UDID} left out {told[0]['target']}",)
    answer(xcrun, latency=[*told, told[0]])
    assert clocked(coreml).failures == (f"coreml@cpuOnly@{UDID} timed {told[0]['target']} 2 times",)
    answer(xcrun, latency=[])
    left = f"coreml@all@{UDID} left out generator, text_encoder, unet, vae_decoder"
    assert left in clocked(coreml).failures and len(clocked(coreml).failures) == 4
