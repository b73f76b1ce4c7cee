"""Devices of Apple through a stand-in: what an app computed passes the gates of every engine, or fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.unit.runtimes.devices.apple import DEVICE, UDID, answer, sound

from flashbulb.export.bundle import Bundle, read_bundle
from flashbulb.runtimes.devices import exchange
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.gates import engine_gates
from flashbulb.runtimes.records import Report
from flashbulb.runtimes.stage import BenchConfig, CheckConfig, bench, check

pytestmark = pytest.mark.usefixtures("no_structure")


def run(bundle: Bundle, cases: int = 2) -> Report:
    return check(CheckConfig(bundle=str(bundle.root), device=f"ios:{UDID}", cases=cases))


def test_the_exchange(xcrun: Path, coreml: Bundle, world: SimpleNamespace):
    answer(xcrun, sound(coreml, world))
    report = run(coreml)
    assert report.failures == ()
    assert (report.device.kind, report.device.name) == ("ios", "iPhone 13")
    asked = {f"coreml@{units}@{UDID}" for units in exchange.UNITS}
    assert {r.engine for r in report.parity} == asked
    sent = xcrun / "container/Documents/flashbulb"
    assert read_bundle(sent / "bundle").manifest == coreml.manifest
    request = msgspec.json.decode((sent / "request.json").read_bytes(), type=exchange.Request)
    assert (request.version, request.cases, request.runs, len(request.nonce)) == (2, 2, 0, 32)
    assert request.units == exchange.UNITS and request.draws == ((0, 0), (1, 1), (1, 0), (0, 1))


def test_every_gate_of_an_engine_is_asked(
    xcrun: Path, bundle: Bundle, world: SimpleNamespace, tmp_path: Path, request: pytest.FixtureRequest
):
    here = [getattr(r, "gate", "") for r in engine_gates(bundle, world.Engine(), 1, 2)]
    coreml = request.getfixturevalue("coreml")
    answer(xcrun, sound(coreml, world))
    report = run(coreml)
    for units in exchange.UNITS:
        own = [r for r in report.records if r.engine == f"coreml@{units}@{UDID}"]
        assert sorted(getattr(r, "gate", "") for r in own) == sorted(here)


FAULTS: dict[str, tuple[Callable[[SimpleNamespace], dict[str, Any]], str]] = {
    "a wrong component": (lambda w: {"unet": lambda s, h: 1.01 * w.unet(s, h)}, "below the required 60.0 dB"),
    "not finite": (lambda w: {"vae_decoder": lambda z: np.full_like(w.vae_decoder(z), np.nan)}, "are NaN"),
    "not of the prompt": (
        lambda w: {"text_encoder": lambda ids: w.text_encoder(ids * 0)},
        "another prompt changes the picture by 0 rms",
    ),
    "not of the noise": (
        lambda w: {"unet": lambda s, h: -w.STEP[0] / w.STEP[1] * s},
        "another noise changes the picture by",
    ),
    "another order": (
        lambda w: {"vae_decoder": lambda z: w.vae_decoder(z)[:, ::-1]},
        "the channels come in the order BGR",
    ),
    "another range": (
        lambda w: {"generator": lambda i, n: 2 * w.generator(i, n) - 1},
        "wanted within [0, 1]",
    ),
    "one colour": (
        lambda w: {"generator": lambda i, n: np.full_like(w.generator(i, n), 0.5)},
        "the picture has a standard deviation of 0",
    ),
    "two pictures": (
        lambda w: {"generator": lambda i, n: w.generator(i, n * 1.01)},
        "the fused generator draws the components' picture at",
    ),
    "another shape": (
        lambda w: {"text_encoder": lambda ids: w.text_encoder(ids)[:, :, :3]},
        "in shape (1, 12, 6), got (1, 12, 3)",
    ),
}


@pytest.mark.parametrize(("fault", "words"), FAULTS.values(), ids=FAULTS)
def test_a_wrong_picture_fails_the_gates(
    xcrun: Path, coreml: Bundle, world: SimpleNamespace, fault: Any, words: str
):
    world.STEP = (coreml.manifest.sampling.noise_coefficient, coreml.manifest.sampling.output_coefficient)
    try:
        tensors = sound(coreml, world, **fault(world))
    except EngineError:  # what runs here holds shapes to the manifest: break them afterwards
        tensors = {n: t[:, :, :3] if n.endswith("hidden") else t for n, t in sound(coreml, world).items()}
        tensors = {n: np.ascontiguousarray(t) for n, t in tensors.items()}
    answer(xcrun, tensors)
    report = run(coreml)
    assert not report.ok and any(words in sentence for sentence in report.failures)


def test_one_kind_of_units_that_computes_badly_is_named(xcrun: Path, coreml: Bundle, world: SimpleNamespace):
    tensors = sound(coreml, world)
    tensors["cpuAndGPU/golden/1/unet/out"] = tensors["cpuAndGPU/golden/1/unet/out"] * np.float32(1.01)
    answer(xcrun, tensors)
    report = run(coreml)
    failed = [r for r in report.parity if r.verdict == "fail"]
    assert {r.engine for r in failed} == {f"coreml@cpuAndGPU@{UDID}"}
    assert {(r.quantity, r.case) for r in failed} >= {("unet", 1)}


@pytest.mark.parametrize(
    "name", ["all/golden/1/generator/image", "cpuOnly/draw/1-0/unet/out", "cpuOnly/draw/0-1/generator/image"]
)
def test_what_was_left_out_fails(xcrun: Path, coreml: Bundle, world: SimpleNamespace, name: str):
    tensors = sound(coreml, world)
    del tensors[name]
    answer(xcrun, tensors)
    assert [s for s in run(coreml).failures if s.endswith(f"it left out {name}")]


def test_tensors_that_are_none(xcrun: Path, coreml: Bundle, world: SimpleNamespace):
    tensors = sound(coreml, world)
    answer(xcrun, tensors, tensors_sha256="0" * 64)
    with pytest.raises(EngineError, match=r"wanted tensors of SHA-256 0+, got"):
        run(coreml)
    answer(xcrun, {n: t.astype(np.float64) for n, t in tensors.items()})
    with pytest.raises(EngineError, match=r"wanted the app's tensors as F32 or F16, got all/\S+ F64"):
        run(coreml)
    (xcrun / "tensors").write_bytes(b"x" * 100)
    with pytest.raises(EngineError, match=r"wanted the app's tensors, got: answer\.safetensors is not"):
        run(coreml)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"nonce": "old"}, "another nonce; start it again"),
        ({"manifest_sha256": "0" * 64}, "another manifest_sha256"),
        ({"version": 1}, "another version"),
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"device": None}, "wanted the app's answer"),
        ({"device": DEVICE | {"cores": -1}}, "wanted cores of the device from 1 to 1024, got -1"),
        ({"device": DEVICE | {"memory_bytes": 0}}, "wanted memory_bytes of the device from 1 to"),
        ({"device": DEVICE | {"kind": "adb"}}, "wanted an answer of a device of kind ios, got adb"),
        ({"tensors_sha256": "x"}, "wanted the app's answer"),
    ],
)
def test_an_answer_to_something_else(xcrun: Path, coreml: Bundle, told: dict[str, Any], words: str):
    answer(xcrun, **told)
    with pytest.raises(EngineError, match=words):
        run(coreml)


def hashes(bundle: Bundle) -> dict[str, str]:
    return {file.path: file.sha256 for artifact in bundle.manifest.artifacts for file in artifact.files}


def test_records_name_the_device_and_its_files(xcrun: Path, coreml: Bundle, world: SimpleNamespace):
    tensors = sound(coreml, world)
    answer(xcrun, tensors)
    report = run(coreml)
    assert report.device.attributes["udid"] == UDID
    assert any("told no hashes" in sentence for sentence in report.skipped)
    answer(xcrun, tensors, files=hashes(coreml))
    assert [r.verdict for r in run(coreml).sanity if r.gate == "device_files"] == ["pass"]
    for files in (hashes(coreml) | {next(iter(hashes(coreml))): "0" * 64}, {"another": "0" * 64}):
        answer(xcrun, tensors, files=files)
        assert any("are not those of the bundle" in sentence for sentence in run(coreml).failures)


def test_only_core_ml_runs_there(xcrun: Path, coreml: Bundle, world: SimpleNamespace):
    for command, config in ((check, CheckConfig), (bench, BenchConfig)):
        with pytest.raises(EngineError, match=r"wanted Core ML programs .* got engine 'ort'"):
            command(config(bundle=str(coreml.root), device=f"ios:{UDID}", engine="ort"))
    answer(xcrun, sound(coreml, world))
    report = check(CheckConfig(bundle=str(coreml.root), device=f"ios:{UDID}", engine="coreml", cases=2))
    assert report.failures == ()


def test_a_bundle_without_core_ml_is_not_sent(xcrun: Path, bundle: Bundle):
    with pytest.raises(EngineError, match=r"a bundle with \['ort'\]"):
        check(CheckConfig(bundle=str(bundle.root), device=f"ios:{UDID}"))
    assert not (xcrun / "asked").exists()
