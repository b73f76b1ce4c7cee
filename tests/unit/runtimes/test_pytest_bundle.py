"""`pytest --flashbulb=` on real programs of all three runtimes: every test by name, each fault in its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flashbulb.export.bundle import Bundle, read_bundle

pytest.importorskip("onnxruntime")
pytest.importorskip("executorch")
pytest.importorskip("coremltools")
pytestmark = pytest.mark.slow
Outcomes = dict[str, tuple[str, str]]
COMPONENTS = ("text_encoder", "unet", "vae_decoder")
INTERPRETED = ("mil", "mil-fp16")
ENGINES = ("eager", "ort", "onnx", "executorch", *INTERPRETED)
OF_FILES = (
    *("manifest", "files", "golden", "tokens", "noise", "constants", "thresholds", "rule", "variance.floors"),
    *("pictures", "source", "tokenizer.vocabulary", "optimum", "floors", "other"),
)
OF_CHECKPOINT = ("schedule", "tokenizer.tokenizer", "lineage", "codes")
OF_ENGINE = (
    *("load", "contract", *(f"{what}.parity" for what in (*COMPONENTS, "x0", "image"))),
    *(f"pipeline.{gate}" for gate in ("range", "channels", "variance", "prompt_sensitivity")),
    *("pipeline.noise_sensitivity", "other"),
)


def names(*formats: str) -> list[str]:
    """Return the programs of some formats, and of optimum."""
    return [f"{c}.{f}" for f in formats for c in COMPONENTS] + [f"optimum.{c}.onnx" for c in COMPONENTS]


def asked(folder: Path, bundle: Path, *words: str) -> Outcomes:
    """Run pytest in a process of its own: what came out of each test, and what was said."""
    environment = {k: v for k, v in os.environ.items() if k != "GITHUB_STEP_SUMMARY"}
    environment["PYTHONPATH"] = os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    plugin = ("-p", "flashbulb.runtimes.pytest_plugin", "-p", "no:cacheprovider", "-q")
    flags = (f"--flashbulb={bundle}", "--junitxml", "junit.xml", *words)
    command = [sys.executable, "-m", "pytest", *plugin, *flags]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = {}
    for case in ET.parse(folder / "junit.xml").iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}".removeprefix("flashbulb.")
        told = [child for child in case if child.tag in ("failure", "error", "skipped")]
        tag = told[0].tag if told else "pass"
        found[name] = (tag, told[0].get("message", "") + (told[0].text or "") if told else "")
    assert (done.returncode == 1) == any(tag in ("failure", "error") for tag, _ in found.values())
    return found


def by(found: Outcomes, tag: str) -> set[str]:
    return {name for name, (what, _) in found.items() if what == tag}


def edit(root: Path, change: Callable[[dict], None]) -> None:
    path = root / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_sound_programs_are_green_in_every_test_and_none_is_missing(programs: Path, tmp_path: Path) -> None:
    found = asked(tmp_path, programs)
    wanted = {f"bundle.{gate}" for gate in (*OF_FILES, *OF_CHECKPOINT)}
    programs_ = names("onnx", "ort", "pte", "mlpackage")
    wanted |= {f"bundle.{program}.{gate}" for program in programs_ for gate in ("structure", "weights")}
    wanted |= {f"mil.{component}.twin" for component in COMPONENTS}
    wanted |= {f"mil-fp16.{component}.finite" for component in COMPONENTS}
    wanted |= {f"{engine}.{gate}" for engine in ENGINES for gate in OF_ENGINE}
    if sys.platform != "darwin":
        assert by(found, "skipped") == {"coreml.load"}
        assert "only macOS has" in found["coreml.load"][1]
    assert by(found, "pass") == {n for n in found if not n.startswith("coreml")} == wanted


def test_a_lowered_floor_and_a_changed_weight_fail_in_their_own_tests(
    programs: Path, tmp_path: Path, resign: Callable[[Path], Bundle]
) -> None:
    from safetensors.numpy import load_file

    root = Path(shutil.copytree(programs, tmp_path / "bundle"))
    source = Path(read_bundle(root).manifest.source.checkpoint)
    tensors = load_file(next((source / "unet").glob("*.safetensors")))
    weight = np.ascontiguousarray(tensors["down_blocks.0.resnets.0.conv2.weight"].transpose(0, 2, 3, 1))
    last_bit = weight.copy()
    last_bit.view(np.uint32).flat[10] ^= 1  # so little that no picture shows it
    path = root / "executorch/model.pte"
    data = path.read_bytes()
    assert data.count(weight.tobytes()) == 1
    path.write_bytes(data.replace(weight.tobytes(), last_bit.tobytes()))
    edit(root, lambda manifest: manifest["sanity"].__setitem__("noise_rms_min", 0.0))
    resign(root)
    found = asked(tmp_path, root)
    wanted = {"bundle.floors", "bundle.unet.pte.structure", "bundle.unet.pte.weights"}
    assert by(found, "failure") == wanted
    assert "the floor of noise_sensitivity.pipeline is 0, far under half" in found["bundle.floors"][1]
    assert "down_blocks.0.resnets.0.conv2.weight" in found["bundle.unet.pte.weights"][1]


def test_without_the_checkpoint_what_needs_it_is_skipped(programs: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(programs, tmp_path / "bundle"))
    edit(root, lambda manifest: manifest["source"].__setitem__("checkpoint", "nowhere/at-all"))
    found = asked(tmp_path, root, "--flashbulb-engine", "ort")
    chosen = names("onnx", "ort")  # the programs of the named engine alone
    skipped = {f"bundle.{gate}" for gate in (*OF_CHECKPOINT, "optimum")}
    skipped |= {f"bundle.{program}.weights" for program in chosen}
    assert by(found, "skipped") == skipped
    assert all("nowhere/at-all is not on this machine" in found[name][1] for name in skipped)
    passed = {f"bundle.{gate}" for gate in OF_FILES if gate != "optimum"}
    passed |= {f"bundle.{program}.structure" for program in chosen}
    assert by(found, "pass") == passed | {f"{e}.{gate}" for e in ("ort", "onnx") for gate in OF_ENGINE}
    assert set(found) == by(found, "pass") | skipped
