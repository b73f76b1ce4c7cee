"""Devices of Apple through a stand-in for ``xcrun``: commands, exchange of files, and a judgement of our own.

Its output has the form that Xcode's tool documents; no real device or Xcode takes part.
"""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flashbulb.export.artifact import digest, record
from flashbulb.export.bundle import Bundle, read_bundle, write_manifest
from flashbulb.runtimes.devices import check as check_module
from flashbulb.runtimes.devices import ios
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.records import LatencyRecord, ParityRecord, Report
from flashbulb.runtimes.stage import BenchConfig, CheckConfig, bench, check

UDID = "00008110-000A1B2C3D4E801E"
DEVICES = {
    "devices": [
        {
            "identifier": "5E1A7C0B-0000-4000-8000-00000000C0DE",
            "deviceProperties": {"name": "Anna's phone", "osVersionNumber": "18.1"},
            "hardwareProperties": {"udid": UDID, "marketingName": "iPhone 13", "platform": "iOS"},
            "connectionProperties": {"tunnelState": "connected"},
        }
    ]
}
FAKE = """#!{python} -IS
import json, pathlib, shutil, sys
root = pathlib.Path({root!r})
words = sys.argv[1:]
with (root / "asked").open("a") as asked:
    asked.write(repr(words) + "\\n")
def option(name): return words[words.index(name) + 1]
def say(value, outcome="success"):
    told = {{"info": {{"outcome": outcome, "jsonVersion": 2}}}} | value
    pathlib.Path(option("--json-output")).write_text(json.dumps(told))
assert words[0] == "devicectl"
app = root / "container"
if words[1:3] == ["list", "devices"]: say({{"result": json.loads((root / "devices").read_text())}})
elif words[1:4] == ["device", "copy", "to"]:
    source, target = pathlib.Path(option("--source")), app / option("--destination")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir(): shutil.copytree(source, target, dirs_exist_ok=True)
    else: shutil.copyfile(source, target)
    say({{"result": {{}}}})
elif words[1:4] == ["device", "copy", "from"]:
    source = app / option("--source")
    if not source.exists():
        say({{"error": {{"code": 7000, "domain": "com.apple.dt.CoreDeviceError"}}}}, "failed")
        sys.exit("ERROR: The file could not be found.")
    shutil.copyfile(source, option("--destination"))
    say({{"result": {{}}}})
elif words[1:4] == ["device", "process", "launch"]:
    request = json.loads((app / "Documents/flashbulb/request.json").read_text())
    answer = json.loads((root / "answer").read_text())
    kept = {{"nonce": request["nonce"], "manifest_sha256": request["manifest_sha256"]}} | answer
    (app / "Documents/flashbulb/answer.json").write_text(json.dumps(kept))
    say({{"result": {{"process": {{"processIdentifier": 1}}}}}})
else: sys.exit("unknown")
"""


@pytest.fixture
def xcrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "apple"
    root.mkdir()
    (root / "xcrun").write_text(FAKE.format(python=sys.executable, root=str(root)))
    (root / "xcrun").chmod(0o755)
    (root / "devices").write_text(json.dumps(DEVICES))
    monkeypatch.setenv("PATH", str(root), prepend=":")
    return root


@pytest.fixture
def coreml(bundle: Bundle) -> Bundle:
    """The numpy bundle, its programs said to be Core ML's."""
    root = bundle.root
    shutil.rmtree(root / "onnx")
    artifacts = []
    for held in bundle.manifest.artifacts:
        package = root / "coreml" / f"{held.component}.mlpackage"
        package.mkdir(parents=True)
        (package / "model").write_text(held.component)
        files = (record(package / "model", root),)
        artifacts.append(
            msgspec.structs.replace(
                held,
                backend="coreml",
                format="mlpackage",
                path=package.relative_to(root).as_posix(),
                files=files,
                sha256=digest(files),
                size_bytes=files[0].size_bytes,
            )
        )
    gates = tuple(msgspec.structs.replace(gate, backend="coreml") for gate in bundle.manifest.gates)
    write_manifest(msgspec.structs.replace(bundle.manifest, artifacts=tuple(artifacts), gates=gates), root)
    return read_bundle(root)


def sound(bundle: Bundle, cases: int = 2) -> list[dict[str, Any]]:
    """What an app would say of a device that computes well."""
    metrics = {gate.quantity: gate.metric for gate in bundle.manifest.gates}
    found = [
        ParityRecord(
            engine="coreml@cpuAndNeuralEngine",
            precision="float32",
            quantity=artifact.component,
            tensor=artifact.outputs[0].name,
            case=case,
            prompt=told.prompt,
            seed=told.seed,
            metric=metrics[artifact.component],
            threshold_db=1.0,
            snr_db=75.0,
            psnr_db=75.0,
            max_abs=1e-3,
            exact=False,
            finite=True,
            verdict="pass",
            sentence="fine",
        )
        for case, told in enumerate(bundle.manifest.golden.cases[:cases])
        for artifact in bundle.manifest.artifacts
    ]
    return [msgspec.to_builtins(item) for item in found]


def answer(xcrun: Path, parity: list[dict[str, Any]], **told: Any) -> None:
    device = {"kind": "ios", "name": "iPhone 13", "os": "iOS 18.1", "arch": "arm64e", "cpu": "A15"}
    device |= {"cores": 6, "memory_bytes": 4 << 30}
    (xcrun / "answer").write_text(json.dumps({"version": 1, "device": device, "parity": parity} | told))


@pytest.fixture(autouse=True)
def structure_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of this bundle are words, which no gate of files can take apart; test_check asks those."""
    monkeypatch.setattr(check_module, "program_gates", lambda *a: iter(()))


def run(bundle: Bundle, cases: int = 2) -> Report:
    return check(CheckConfig(bundle=str(bundle.root), device=f"ios:{UDID}", cases=cases))


def asked(xcrun: Path) -> list[list[str]]:
    return [ast.literal_eval(line) for line in (xcrun / "asked").read_text().splitlines()]


def test_the_exchange(xcrun: Path, coreml: Bundle):
    answer(xcrun, sound(coreml))
    report = run(coreml)
    assert report.failures == ()
    assert (report.device.kind, report.device.name) == ("ios", "iPhone 13")
    assert len(report.parity) == 2 * 4 and {r.threshold_db for r in report.parity} == {60.0}
    sent = xcrun / "container/Documents/flashbulb"
    assert read_bundle(sent / "bundle").manifest == coreml.manifest
    request = msgspec.json.decode((sent / "request.json").read_bytes(), type=ios.Request)
    assert (request.cases, request.runs, len(request.nonce)) == (2, 0, 32)


def test_the_commands(xcrun: Path, coreml: Bundle):
    answer(xcrun, sound(coreml))
    run(coreml)
    verbs = [words[1:4] for words in asked(xcrun)]
    assert verbs[0][:2] == ["list", "devices"]
    assert [verb[1:] for verb in verbs[1:]] == [["copy", "to"]] * 2 + [
        ["process", "launch"],
        ["copy", "from"],
    ]
    for words in asked(xcrun)[1:]:
        assert words[words.index("--device") + 1] == UDID
    launch = asked(xcrun)[3]
    own = launch[launch.index(ios.APP) :]
    assert own == [ios.APP, "--request", "flashbulb/request.json"]


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "below": (lambda r: r.update(snr_db=59.0, psnr_db=59.0), "59.0 dB, wanted 60.0 dB"),
    "not finite": (lambda r: r.update(finite=False), "not finite, wanted 60.0 dB"),
    "no value": (lambda r: r.update(snr_db=None, psnr_db=None), "no value, wanted 60.0 dB"),
    "another metric": (lambda r: r.update(metric="psnr_db"), "no such golden case or threshold"),
    "another precision": (lambda r: r.update(precision="float16"), "no such golden case or threshold"),
    "another prompt": (lambda r: r.update(prompt="nothing"), "no such golden case"),
    "another case": (lambda r: r.update(case=99), "no such golden case"),
}


@pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES)
def test_a_verdict_of_the_app_is_not_believed(xcrun: Path, coreml: Bundle, change, words: str):
    parity = sound(coreml)
    index = next(i for i, r in enumerate(parity) if r["quantity"] == "unet")
    change(parity[index])
    assert parity[index]["verdict"] == "pass"
    answer(xcrun, parity)
    report = run(coreml)
    assert not report.ok and any(words in sentence for sentence in report.failures)


def test_what_was_left_out_fails(xcrun: Path, coreml: Bundle):
    answer(xcrun, sound(coreml)[:-1])
    assert run(coreml).failures == (
        f"coreml@cpuAndNeuralEngine@{UDID} left out 1 comparisons, first generator image 1",
    )
    (xcrun / "container").rename(xcrun / "old")
    answer(xcrun, [])
    assert "coreml left out 8 comparisons" in run(coreml).failures[0]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"nonce": "old"}, "another nonce; start it again"),
        ({"manifest_sha256": "0" * 64}, "another manifest_sha256"),
        ({"version": 2}, "another version"),
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"device": None}, "wanted the app's answer"),
    ],
)
def test_an_answer_to_something_else(xcrun: Path, coreml: Bundle, told: dict[str, Any], words: str):
    answer(xcrun, sound(coreml), **told)
    with pytest.raises(EngineError, match=words):
        run(coreml)


def hashes(bundle: Bundle) -> dict[str, str]:
    return {file.path: file.sha256 for artifact in bundle.manifest.artifacts for file in artifact.files}


def test_records_name_the_device_and_its_files(xcrun: Path, coreml: Bundle):
    answer(xcrun, sound(coreml))
    report = run(coreml)
    assert {r.engine for r in report.parity} == {f"coreml@cpuAndNeuralEngine@{UDID}"}
    assert report.device.attributes["udid"] == UDID
    assert any("told no hashes" in sentence for sentence in report.skipped)
    answer(xcrun, sound(coreml), files=hashes(coreml))
    assert [r.verdict for r in run(coreml).sanity if r.gate == "device_files"] == ["pass"]
    for files in (hashes(coreml) | {next(iter(hashes(coreml))): "0" * 64}, {"another": "0" * 64}):
        answer(xcrun, sound(coreml), files=files)
        assert any("are not those of the bundle" in sentence for sentence in run(coreml).failures)


def test_only_core_ml_runs_there(xcrun: Path, coreml: Bundle):
    for command, config in ((check, CheckConfig), (bench, BenchConfig)):
        with pytest.raises(EngineError, match=r"wanted Core ML programs .* got engine 'ort'"):
            command(config(bundle=str(coreml.root), device=f"ios:{UDID}", engine="ort"))
    answer(xcrun, sound(coreml))
    report = check(CheckConfig(bundle=str(coreml.root), device=f"ios:{UDID}", engine="coreml", cases=2))
    assert report.failures == ()


def test_a_bundle_without_core_ml_is_not_sent(xcrun: Path, bundle: Bundle):
    with pytest.raises(EngineError, match=r"a bundle with \['ort'\]"):
        check(CheckConfig(bundle=str(bundle.root), device=f"ios:{UDID}"))
    assert not (xcrun / "asked").exists()


def times(bundle: Bundle, runs: int = 20) -> list[dict[str, Any]]:
    """What an app would say of a device that stayed cool."""
    figures = {"load_ms": 9.0, "first_ms": 5.0, "min_ms": 1.0, "p50_ms": 2.0, "p90_ms": 3.0, "p99_ms": 4.0}
    figures |= {"cpu_p50_ms": 2.0, "cpu_over_wall": 1.0, "ratio_to_eager": None, "cpu_ratio_to_eager": None}
    counts = {"threads": 1, "runs": runs, "disturbed_runs": 0, "baseline_rss_bytes": 1, "peak_rss_bytes": 2}
    counts |= {"artifact_bytes": 3, "thermal_before": 0, "thermal_after": 0}
    words = {"engine": "coreml@all", "verdict": "pass", "sentence": "fast"}
    return [
        figures | counts | words | {"precision": a.precision, "target": a.component}
        for a in bundle.manifest.artifacts
    ]


def clocked(bundle: Bundle, **options: Any) -> Report:
    return bench(BenchConfig(bundle=str(bundle.root), device=f"ios:{UDID}", runs=20, **options))


def test_an_app_times_every_program(xcrun: Path, coreml: Bundle):
    answer(xcrun, [], latency=times(coreml))
    report = clocked(coreml)
    assert report.ok and report.parity == () and report.device.kind == "ios"
    assert {r.target for r in report.latency} == set(coreml.components("coreml"))
    for figure in report.latency:
        assert isinstance(figure, LatencyRecord) and figure.verdict == "pass"
        assert (figure.engine, figure.p50_ms, figure.load_ms) == (f"coreml@all@{UDID}", 2.0, 9.0)
        assert figure.sentence.endswith("thermal status 0 before and 0 after")
    request = xcrun / "container/Documents/flashbulb/request.json"
    asked = msgspec.json.decode(request.read_bytes(), type=ios.Request)
    assert (asked.cases, asked.runs) == (0, 20)
    late = [r.target for r in clocked(coreml, budget_ms=1.5).latency if r.verdict == "fail"]
    assert late == ["generator"] and clocked(coreml, budget_ms=2.5).ok


TIMES: dict[str, tuple[dict[str, Any], str, str]] = {
    "warm": ({"thermal_after": 1}, "fail", "it was warm, so this is no figure"),
    "silent": ({"thermal_after": None}, "skip", "not judged: the device does not tell"),
    "few": ({"runs": 19}, "fail", "wanted 20 runs, got 19"),
    "unordered": ({"p50_ms": 3.5}, "fail", "wanted positive times that rise"),
    "negative": ({"min_ms": -1.0}, "fail", "wanted positive times that rise"),
    "another program": ({"target": "safety"}, "fail", "the bundle has no such program of float32"),
    "another precision": ({"precision": "float16"}, "fail", "no such program of float16"),
}


@pytest.mark.parametrize(("change", "verdict", "words"), TIMES.values(), ids=TIMES)
def test_a_figure_of_the_app_is_not_believed(xcrun: Path, coreml: Bundle, change, verdict: str, words: str):
    told = times(coreml)
    told[1] |= change
    answer(xcrun, [], latency=told)
    report = clocked(coreml)
    assert [r.verdict for r in report.latency] == ["pass", verdict, "pass", "pass"]
    assert words in report.latency[1].sentence


def test_a_program_that_was_not_timed_fails(xcrun: Path, coreml: Bundle):
    told = times(coreml)
    answer(xcrun, [], latency=told[1:])
    assert clocked(coreml).failures == (f"coreml@all@{UDID} left out {told[0]['target']}",)
    answer(xcrun, [], latency=[])
    assert "coreml left out generator, text_encoder, unet, vae_decoder" in clocked(coreml).failures[0]


def test_a_device_that_is_not_there_names_those_that_are(xcrun: Path):
    with pytest.raises(EngineError, match=f"got .*{UDID}.*connect it"):
        ios.Devicectl("11112222").device()
    assert ios.Devicectl("5E1A7C0B-0000-4000-8000-00000000C0DE").device()["deviceProperties"]["name"]


@pytest.mark.parametrize("udid", ["", "--help", "a b", "x;y", "../..", "12345678\n"])
def test_what_cannot_be_an_identifier(xcrun: Path, udid: str):
    with pytest.raises(ValueError, match="wanted an identifier"):
        ios.Devicectl(udid)


def test_failures_are_told(xcrun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(EngineError, match=r"device copy from ended with code 1: ERROR: The file could not"):
        ios.Devicectl(UDID).copy_from("none", tmp_path / "x")
    (tmp_path / "failed").write_text('{"info": {"outcome": "failed"}, "error": {"code": 4}}')
    with pytest.raises(EngineError, match=r'got \{"code": 4\}'):
        ios.result(tmp_path / "failed")
    (tmp_path / "nonsense").write_text("[")
    with pytest.raises(EngineError, match="wanted JSON of devicectl"):
        ios.result(tmp_path / "nonsense")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="from macOS with Xcode"):
        ios.Devicectl(UDID)
