"""A stand-in for ``xcrun`` and for the benchmark app, and what such an app would answer.

Its output has the form that Xcode's tool documents; no real device or Xcode takes part.
"""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import save_file

from flashbulb.export.artifact import digest, record
from flashbulb.export.bundle import Bundle, read_bundle, write_manifest
from flashbulb.runtimes.devices import exchange
from flashbulb.runtimes.engines.base import Session
from flashbulb.runtimes.pipeline import Pipeline

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
DEVICE: dict[str, Any] = {
    "kind": "ios",
    "name": "iPhone 13",
    "os": "iOS 18.1",
    "arch": "arm64e",
    "cpu": "A15",
}
DEVICE |= {"cores": 6, "memory_bytes": 4 << 30}
FAKE = """#!{python} -IS
import hashlib, json, pathlib, shutil, sys
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
    if (root / "tensors").exists():
        shutil.copyfile(root / "tensors", app / "Documents/flashbulb/answer.safetensors")
        digest = hashlib.sha256((root / "tensors").read_bytes()).hexdigest()
        kept = {{"tensors_sha256": digest}} | kept
    (app / "Documents/flashbulb/answer.json").write_text(json.dumps(kept))
    say({{"result": {{"process": {{"processIdentifier": 1}}}}}})
else: sys.exit("unknown")
"""


def install(root: Path) -> None:
    """Write the stand-in into a folder."""
    root.mkdir()
    (root / "xcrun").write_text(FAKE.format(python=sys.executable, root=str(root)))
    (root / "xcrun").chmod(0o755)
    (root / "devices").write_text(json.dumps(DEVICES))


def as_coreml(bundle: Bundle) -> Bundle:
    """Return the numpy bundle, its programs said to be Core ML's."""
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


class Recorder(Session):
    """Computes with numpy what an app would with Core ML, and keeps it under the names of the exchange."""

    def __init__(self, bundle: Bundle, functions: dict[str, Callable[..., np.ndarray]]) -> None:
        engine: Any = SimpleNamespace(label="app", backend="coreml")
        super().__init__(engine, {a.component: a for a in bundle.manifest.artifacts})
        self.functions, self.place, self.found = functions, "", dict[str, np.ndarray]()

    def call(self, component: str, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        image = np.ascontiguousarray(self.functions[component](*arrays))
        self.found[f"{self.place}/{component}/{self.artifacts[component].outputs[0].name}"] = image
        return [image]


def sound(bundle: Bundle, world: SimpleNamespace, cases: int = 2, **fault: Any) -> dict[str, np.ndarray]:
    """What an app would leave of a device that computes well, but for some components."""
    session = Recorder(bundle, world.sound | fault)
    pipeline, golden = Pipeline(bundle, session), bundle.golden()
    for units in exchange.UNITS:
        for case in range(cases):
            session.place = f"{units}/golden/{case}"
            for component in session.components:
                session.run(component, {"sample": pipeline.sample(golden[case]["noise"]), **golden[case]})
        for prompt, noise in exchange.draws(cases):
            session.place = f"{units}/draw/{prompt}-{noise}"
            ids = {"input_ids": golden[prompt]["input_ids"]}
            pipeline.trace(ids, golden[noise]["noise"])
            if prompt != noise:
                pipeline.generate(ids, golden[noise]["noise"])
    return session.found


def answer(xcrun: Path, tensors: dict[str, np.ndarray] | None = None, **told: Any) -> None:
    (xcrun / "answer").write_text(json.dumps({"version": exchange.VERSION, "device": DEVICE} | told))
    if tensors:
        save_file(tensors, xcrun / "tensors")


def asked(xcrun: Path) -> list[list[str]]:
    return [ast.literal_eval(line) for line in (xcrun / "asked").read_text().splitlines()]


def times(bundle: Bundle, runs: int = 20) -> list[dict[str, Any]]:
    """What an app would say of a device that stayed cool."""
    figures = {"load_ms": 9.0, "first_ms": 5.0, "min_ms": 1.0, "p50_ms": 2.0, "p90_ms": 3.0, "p99_ms": 4.0}
    figures |= {"cpu_p50_ms": 2.0, "cpu_over_wall": 1.0, "ratio_to_eager": None, "cpu_ratio_to_eager": None}
    counts = {"threads": 1, "runs": runs, "disturbed_runs": 0, "baseline_rss_bytes": 1, "peak_rss_bytes": 2}
    counts |= {"artifact_bytes": 3, "thermal_before": 0, "thermal_after": 0}
    words = {"verdict": "pass", "sentence": "fast"}
    return [
        figures
        | counts
        | words
        | {"engine": f"coreml@{units}", "precision": a.precision, "target": a.component}
        for units in exchange.UNITS
        for a in bundle.manifest.artifacts
    ]
