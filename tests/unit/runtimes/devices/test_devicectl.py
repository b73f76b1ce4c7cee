"""What is said to ``xcrun devicectl``, and every form in which it can answer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.runtimes.devices.apple import UDID, answer, asked, sound

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.devices import devicectl, exchange
from flashbulb.runtimes.engines.base import EngineError


def test_the_commands(xcrun: Path, coreml: Bundle, world: SimpleNamespace):
    answer(xcrun, sound(coreml, world))
    exchange.exchange(coreml, UDID, "0" * 64, cases=2, runs=0)
    verbs = [words[1:4] for words in asked(xcrun)]
    assert verbs[0][:2] == ["list", "devices"]
    assert [verb[1:] for verb in verbs[1:]] == [["copy", "to"]] * 2 + [
        ["process", "launch"],
        ["copy", "from"],
        ["copy", "from"],
    ]
    for words in asked(xcrun)[1:]:
        assert words[words.index("--device") + 1] == UDID
    launch = asked(xcrun)[3]
    own = launch[launch.index(devicectl.APP) :]
    assert own == [devicectl.APP, "--request", "flashbulb/request.json"]


def test_a_device_that_is_not_there_names_those_that_are(xcrun: Path):
    with pytest.raises(EngineError, match=f"got .*{UDID}.*connect it"):
        devicectl.Devicectl("11112222").device()
    assert devicectl.Devicectl("5E1A7C0B-0000-4000-8000-00000000C0DE").device().device_properties.name


@pytest.mark.parametrize("udid", ["", "--help", "a b", "x;y", "../..", "12345678\n"])
def test_what_cannot_be_an_identifier(xcrun: Path, udid: str):
    with pytest.raises(ValueError, match="wanted an identifier"):
        devicectl.Devicectl(udid)


def test_failures_are_told(xcrun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(EngineError, match=r"device copy from ended with code 1: ERROR: The file could not"):
        devicectl.Devicectl(UDID).copy_from("none", tmp_path / "x")
    (tmp_path / "failed").write_text('{"info": {"outcome": "failed"}, "error": {"code": 4}}')
    with pytest.raises(EngineError, match=r'got \{"code": 4\}'):
        devicectl.result(tmp_path / "failed", devicectl.Nothing)
    (tmp_path / "nonsense").write_text("[")
    with pytest.raises(EngineError, match="wanted JSON of devicectl"):
        devicectl.result(tmp_path / "nonsense", devicectl.Nothing)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="from macOS with Xcode"):
        devicectl.Devicectl(UDID)


@pytest.mark.parametrize(
    "told",
    [
        [],
        {"info": None},
        {"info": "success", "result": {}},
        {"info": {"outcome": "success"}, "result": None},
        {"info": {"outcome": "success"}, "result": {"devices": {}}},
        {"info": {"outcome": "success"}, "result": {"devices": [None]}},
        {"info": {"outcome": "success"}, "result": {"devices": [{"deviceProperties": 1}]}},
        {"info": {"outcome": "success"}, "result": {"devices": [{"hardwareProperties": {"udid": 7}}]}},
    ],
)
def test_json_of_another_shape_is_refused(tmp_path: Path, told: Any):
    (tmp_path / "said").write_text(json.dumps(told))
    with pytest.raises(EngineError, match="wanted JSON of devicectl, got"):
        devicectl.result(tmp_path / "said", devicectl.Devices)
