"""The page says what the report says: its headline, every verdict, every device and how it was measured."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.runtimes.test_merge import GALAXY, HOST, PIXEL, device, latency, report, sanity
from tests.unit.runtimes.test_report import Balance

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.merge import merge
from flashbulb.runtimes.records import Device, ParityRecord, RegressionRecord, Report, now
from flashbulb.runtimes.report import ReportConfig, render
from flashbulb.runtimes.stage import identity
from flashbulb.runtimes.tables import (
    component_timings,
    condition,
    engine_name,
    headline,
    latency_tables,
    overview,
    parity_table,
    with_twin,
    worst,
)


def regression(verdict: Any = "undecided", **changes: Any) -> RegressionRecord:
    fields: dict[str, Any] = {
        "kind": "slowdown", "method": "interleaved", "engine": "ort", "subject": "generator",
        "value": 1.0834, "low": 1.0123, "high": 1.2345, "limit": 1.1, "turns": 48,
        "verdict": verdict, "sentence": f"it is {verdict}",
    }  # fmt: skip
    return RegressionRecord(**(fields | changes))


def parity(**changes: Any) -> ParityRecord:
    fields: dict[str, Any] = {
        "engine": "ort", "precision": "float32", "quantity": "image", "tensor": "image", "case": 0,
        "prompt": "p", "seed": 0, "metric": "psnr_db", "threshold_db": 60.0, "snr_db": 80.0,
        "psnr_db": 80.0, "max_abs": 1e-3, "exact": False, "finite": True, "verdict": "pass",
        "sentence": "fine",
    }  # fmt: skip
    return ParityRecord(**(fields | changes))


def page(bundle: Bundle, records: Report) -> str:
    text = render(ReportConfig(bundle=str(bundle.root)), bundle, records, [], [], [], [])
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    return text


def of(bundle: Bundle, where: Device, **fields: Any) -> Report:
    told: dict[str, Any] = {"command": "check", "versions": {}} | fields
    return Report(created=now(), bundle=identity(bundle), device=where, **told)


COMPUTER = device("desk", "host", governor="powersave")
VERDICTS = ("pass", "fail", "undecided", "skip")
SETS = [s for n in range(5) for s in itertools.combinations(VERDICTS, n)]


def told(words: tuple[str, ...]) -> dict[str, Any]:
    """Return records of some verdicts, twice each, in a table where each can be."""
    twice = [w for w in words for _ in range(2)]
    return {
        "sanity": tuple(sanity(w) for w in twice if w != "undecided"),
        "regression": tuple(regression(w) for w in twice if w == "undecided"),
    }


@pytest.mark.parametrize("words", SETS)
def test_the_headline_is_good_news_exactly_when_the_report_is_ok(words: tuple[str, ...]) -> None:
    for found in (
        report(COMPUTER, **told(words)),
        merge([report(device("idle", "host"), sanity=(sanity("skip"),)), report(COMPUTER, **told(words))]),
    ):
        shown = headline(found)
        assert (shown.style == "good") == found.ok
        assert bool(re.search(r"conditions? holds?", shown.words)) == found.ok
        assert ("2 undecided" in shown.words or "2 of" in shown.words) == (
            "undecided" in words or "fail" in words
        )
        assert ("could not be judged" in shown.beside) == bool(found.skipped)


@pytest.mark.parametrize("words", SETS)
def test_the_page_shows_every_verdict_and_the_same_headline(bundle: Bundle, words: tuple[str, ...]) -> None:
    found = of(bundle, COMPUTER, **told(words))
    text = page(bundle, found)
    assert ('<strong class="good">' in text) == found.ok
    for word in VERDICTS:
        assert text.count(f'<span class="mark {word}">') == 2 * (word in words)
    for sentence in (*found.failures, *found.undecided):
        assert f"<li>{sentence}</li>" in text


def test_one_pass_and_one_undecided_is_no_good_news(bundle: Bundle) -> None:
    text = page(bundle, of(bundle, COMPUTER, sanity=(sanity("pass"),), regression=(regression(),)))
    assert "1 of 2 conditions undecided, and undecided is not passed." in text
    assert "condition holds" not in text
    assert "conditions hold" not in text
    assert text.index("What is undecided") < text.index("Against the baseline") < text.index("Beside parity")


def test_regressions_have_their_table(bundle: Bundle) -> None:
    lost = regression("fail", kind="db_drop", method="record", subject="unet", value=2.5, low=None, high=None)
    lost_nothing = regression(kind="db_drop", value=None, low=None, high=None, turns=0)
    text = page(bundle, of(bundle, COMPUTER, regression=(regression("pass"), lost, lost_nothing)))
    rows = re.findall(r"<tr>.*?</tr>", text[text.index('id="regression"') :], re.DOTALL)[1:4]
    assert [re.findall("mark (\\w+)", row) for row in rows] == [["pass"], ["fail"], ["undecided"]]
    assert "<b>1.083</b> × the time" in rows[0]
    assert "1.012 to 1.234" in rows[0] or "1.012 to 1.235" in rows[0]
    assert "48 turns" in rows[0]
    assert "<b>2.50</b> dB lost" in rows[1]
    assert "not measured" in rows[2]


def joined(bundle: Bundle) -> Report:
    host = of(bundle, COMPUTER, latency=(latency("eager"), latency(ratio_to_eager=0.5)), parity=(parity(),))
    pixel = of(
        bundle,
        PIXEL.device,
        latency=(latency("ort@P", p50_ms=77.0),),
        parity=(parity(engine="ort@P", psnr_db=66.6), parity(engine="ort@P~x86_64", psnr_db=11.1)),
    )
    galaxy = of(bundle, GALAXY.device, sanity=(sanity("fail"),), regression=(regression("fail"),))
    return merge([pixel, host, galaxy])


def section(text: str, name: str) -> str:
    return re.split("<section|</section>", text[text.index(f'id="{name}"') :])[0]


def test_every_device_has_its_place_on_the_page(bundle: Bundle) -> None:
    text = page(bundle, joined(bundle))
    for name in ("desk", "Pixel", "Galaxy"):
        assert f'<th scope="col">{name}</th>' in section(text, "machine")
        assert f'<th scope="row">{name}<small>' in section(text, "devices")
    for governor in ("powersave", "walt", "energy"):
        assert governor in section(text, "machine")
    assert section(text, "parity").count('scope="colgroup"') == 3  # the third compares with the twin
    assert "66.6 dB PSNR" in section(text, "parity")
    assert "<td>Galaxy" not in text
    assert "Galaxy: it is fail" in section(text, "failures")
    assert "</span></span> Galaxy</th>" in section(text, "regression")


def test_latency_says_which_device_and_how(bundle: Bundle) -> None:
    text = page(bundle, joined(bundle))
    here, phone = section(text, "latency"), section(text, "latency-2")
    assert "Latency on desk" in here
    assert "in turns with PyTorch eager" in here
    assert "× eager" in here
    assert "77.0" not in here
    assert "Latency on Pixel" in phone
    assert "governor walt, thermal status 0" in phone
    assert "77.0" in phone
    assert "on the device itself, by a runner" in phone
    assert "in turns with PyTorch" not in phone
    assert "× eager" not in phone
    assert "no phone" not in text.lower()
    alone = page(bundle, of(bundle, COMPUTER, latency=(latency(),)))
    assert "without PyTorch eager beside it" in alone
    assert "in turns with" not in alone


def test_a_phone_alone_is_named_and_a_computer_alone_is_not(bundle: Bundle) -> None:
    phone = page(bundle, of(bundle, PIXEL.device, latency=(latency("ort@P"),)))
    assert "ONNX Runtime · Pixel</dt>" in phone
    assert "Latency on Pixel" in phone
    assert '<th scope="col">Pixel</th>' in section(phone, "machine")
    assert "desk" not in page(bundle, of(bundle, COMPUTER, latency=(latency(),)))


def test_a_timing_that_is_no_figure_is_marked(bundle: Bundle) -> None:
    warm = latency("ort@P", verdict="fail", target="unet", sentence="it got warm")
    text = page(bundle, of(bundle, PIXEL.device, latency=(warm,)))
    assert section(text, "latency").count("mark fail") == 2  # among the components, and in the full table


def test_what_is_held_to_its_twin_is_not_called_parity_with_pytorch(bundle: Bundle) -> None:
    found = joined(bundle)
    assert parity_table(found)["engines"] == [("ONNX Runtime", "float32")] * 2
    assert parity_table(found)["devices"] == {"desk": 1, "Pixel": 1}
    assert parity_table(found, with_twin)["engines"] == [("ONNX Runtime, against x86_64", "float32")]
    assert [row["picture"] and row["picture"].text for row in overview(found)] == [
        "80.0 dB PSNR",
        "66.6 dB PSNR",
        None,
    ]
    text = page(bundle, found)
    assert (
        text.index("66.6 dB PSNR") < text.index("The same files on another machine") < text.index("11.1 dB")
    )


def test_the_worst_is_what_failed_even_with_room_or_beside_a_skip() -> None:
    skipped = parity(verdict="skip", psnr_db=None)
    failed = parity(verdict="fail", psnr_db=99.0)
    for order in itertools.permutations([parity(), skipped, failed]):
        found = worst(order)
        assert found is not None and found.verdict == "fail"
    assert worst([]) is None


def test_engines_are_named_with_where_they_ran_unless_the_device_says_it() -> None:
    assert engine_name("ort@cortex-a53") == "ONNX Runtime @ cortex-a53"
    assert engine_name("ort@P", PIXEL.device) == "ONNX Runtime"
    assert engine_name("mil") == "mil"
    iphone = device("iPhone", "ios", udid="U")
    assert engine_name("coreml@all@U", iphone) == "Core ML @ all"


def test_components_timed_with_other_threads_have_their_own_column() -> None:
    found = [latency(target="unet", threads=n, p50_ms=10.0 / n) for n in (1, 4)]
    table = component_timings(found)
    assert table["engines"] == [("ort", "float32", 1, ""), ("ort", "float32", 4, "")]
    assert [cell.p50_ms for cell in table["rows"]["unet"]] == [10.0, 2.5]


PHONE: dict[str, Any] = {
    "governors": {"0,1,2,3": "schedutil", "4,5,6,7": "walt"},
    "thermal_before": 0,
    "thermal_after": 1,
    "cold": False,
}


def test_other_cores_have_their_own_column_and_every_condition_is_shown(bundle: Bundle) -> None:
    kinds = {"big (mask f0)": 10.0, "little (mask f)": 40.0}
    found = [
        latency("ort@P", target=target, cores=cores, p50_ms=ms, **PHONE)
        for cores, ms in kinds.items()
        for target in ("unet", "generator")
    ]
    table = component_timings(found)
    assert [engine[-1] for engine in table["engines"]] == list(kinds)
    assert [cell.p50_ms for cell in table["rows"]["unet"]] == [10.0, 40.0]
    text = page(bundle, of(bundle, PIXEL.device, latency=tuple(found)))
    there = section(text, "latency")
    for cores in kinds:
        assert f"<small>float32, 1 thread, cores: {cores}</small>" in there
        words = f"cores: {cores}; schedutil on 0,1,2,3, walt on 4,5,6,7; "
        words += "thermal status 0 before, 1 after; not opened cold</td>"
        assert there.count(words) == 2  # of the generator, and of the component
        assert f"1 thread, cores: {cores}</dd>" in text


def test_a_condition_that_nobody_asked_for_is_not_shown() -> None:
    assert condition(latency()) == ""
    assert condition(latency(cold=True)) == "opened cold"
    assert condition(latency(thermal_before=0)) == "thermal status 0 before, not told after"


def test_devices_without_timings_have_no_latency_section() -> None:
    assert [t["title"] for t in latency_tables(merge([HOST, PIXEL, GALAXY]))] == ["desk", "Pixel"]


def test_what_a_device_is_called_cannot_write_the_page(bundle: Bundle, world: SimpleNamespace) -> None:
    nasty = device("<script>x</script>", serial="<b>", governor="<i>")
    text = page(bundle, merge([joined(bundle), of(bundle, nasty, latency=(latency("ort@<u>"),))]))
    assert not re.search(r"<script|<u>|<i>(?!\W)", text.replace("<i style", ""))
