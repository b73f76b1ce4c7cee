"""`pytest --flashbulb=bundle/`: one test per gate, failures for people, and nothing without the flag."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes import choice, inspection
from flashbulb.runtimes.choice import Choice
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.inspection import Inspection
from flashbulb.runtimes.questions import Record, program_questions
from flashbulb.runtimes.records import SanityRecord, read_report
from flashbulb.runtimes.stage import CheckConfig, check

pytest_plugins = ["pytester"]
PLUGIN = ("-p", "flashbulb.runtimes.pytest_plugin")
Run = Callable[..., pytest.RunResult]


def sound_programs(bundle: Bundle, *_: Any) -> list[Record]:
    """Stand in for the gates of programs, where a bundle's files are none: a record that passes for each."""
    names = [(".".join(filter(None, (q.gate, q.subject))), q.engine) for q in program_questions(bundle)]
    return [SanityRecord(gate=gate, engine=e, verdict="pass", sentence="sound") for gate, e in names]


@pytest.fixture
def run(
    pytester: pytest.Pytester, bundle: Bundle, world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Run pytest in this process on the numpy bundle, with some components replaced."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    real = choice.named

    def call(
        *words: str, programs: Callable[..., Any] = sound_programs, **fault: Callable[..., Any]
    ) -> pytest.RunResult:
        engine = world.Engine(fault=fault)
        monkeypatch.setattr(choice, "named", lambda name, path=None: engine if name == "ort" else real(name))
        monkeypatch.setattr(inspection, "program_gates", programs)
        flags = (f"--flashbulb={bundle.root}", "--flashbulb-engine", "ort")
        return pytester.runpytest_inprocess(*PLUGIN, *flags, *words)

    return call


def junit(path: Path) -> dict[str, ET.Element]:
    """Return the test cases of a JUnit file by their address."""
    return {f"{c.get('classname')}.{c.get('name')}": c for c in ET.parse(path).iter("testcase")}


def outcomes(path: Path) -> dict[str, str]:
    """Return the address of each test with what came out."""
    tags = {name: {child.tag for child in case} for name, case in junit(path).items()}
    return {
        name: "fail" if "failure" in t else "error" if "error" in t else "skip" if "skipped" in t else "pass"
        for name, t in tags.items()
    }


def test_a_sound_bundle_passes_every_gate_by_name(run: Run, pytester: pytest.Pytester) -> None:
    assert run("--junitxml", "out/junit.xml").ret == 0
    found = outcomes(pytester.path / "out/junit.xml")
    assert set(found.values()) == {"pass"}
    some = ("bundle.files", "bundle.tokens", "ort.load", "ort.unet.parity", "ort.x0.parity")
    more = ("ort.generator.range", "ort.pipeline.prompt_sensitivity", "ort.fused")
    assert {f"flashbulb.{name}" for name in (*some, *more)} <= set(found)
    report = read_report(pytester.path / "out/flashbulb/report.json")
    assert report.ok
    assert len(report.parity) >= 4 * 6
    assert "passed" in (pytester.path / "out/flashbulb/summary.md").read_text()


def test_each_record_of_a_sound_bundle_was_foreseen(
    bundle: Bundle, world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate that is added to `gates.py` wants a line in `questions.py`: this test says so."""
    monkeypatch.setattr(inspection, "program_gates", sound_programs)
    asked = Inspection(bundle, Choice(engines=(world.Engine(),), refusals=()), 1)
    answered = {question: asked.answers(question) for question in asked.parts}
    assert {q.gate for q, found in answered.items() if not found} == {"manifest", "other", "contract"}
    assert all(not found for q, found in answered.items() if q.gate == "other")
    assert {r for found in answered.values() for r in found} == set(asked.everything())


def test_a_record_that_no_question_is_about_is_not_passed_over(run: Run, pytester: pytest.Pytester) -> None:
    def with_a_new_gate(bundle: Bundle, *_: Any) -> list[Record]:
        new = SanityRecord(gate="new.unet", engine="bundle", verdict="fail", sentence="nobody foresaw it")
        return [*sound_programs(bundle), new]

    run("--junitxml", "junit.xml", programs=with_a_new_gate)
    found = outcomes(pytester.path / "junit.xml")
    assert {name for name, what in found.items() if what == "fail"} == {"flashbulb.bundle.other"}


@pytest.mark.parametrize("floor", ["prompt", "noise"])
def test_a_lowered_floor_fails_and_the_command_has_the_very_records(
    run: Run, pytester: pytest.Pytester, bundle: Bundle, world: SimpleNamespace, floor: str
) -> None:
    world.edit(bundle, lambda manifest: manifest["sanity"].__setitem__(f"{floor}_rms_min", 0.0))
    assert run("--junitxml", "junit.xml").ret == 1
    found = outcomes(pytester.path / "junit.xml")
    assert {name for name, what in found.items() if what == "fail"} == {"flashbulb.bundle.floors"}
    words = junit(pytester.path / "junit.xml")["flashbulb.bundle.floors"].findtext("failure") or ""
    assert f"the floor of {floor}_sensitivity" in words
    told = read_report(pytester.path / "flashbulb/report.json")
    command = check(CheckConfig(bundle=str(bundle.root), engine="ort", threads=1))
    assert (set(told.sanity), set(told.parity)) == (set(command.sanity), set(command.parity))
    assert len(told.records) == len(command.records)


def test_what_was_not_judged_is_skipped_with_the_reason(run: Run, pytester: pytest.Pytester) -> None:
    """The gates of programs as they are: these files are no programs, and there is no checkpoint."""
    pytest.importorskip("onnxruntime")
    assert run("--junitxml", "junit.xml", programs=inspection.program_gates).ret == 1
    cases, found = junit(pytester.path / "junit.xml"), outcomes(pytester.path / "junit.xml")
    components = ("text_encoder", "unet", "vae_decoder", "generator")
    failed = {name for name, what in found.items() if what == "fail"}
    rule = "flashbulb.bundle.rule"  # the thresholds of these files are lower than an export's
    unread = {f"flashbulb.bundle.{c}.ort.structure" for c in components}
    assert failed == {rule, "flashbulb.ort.load", *unread}  # no engine opens what cannot be taken apart
    unjudged = {f"flashbulb.bundle.{c}.ort.weights" for c in components}
    of_checkpoint = ("source", "schedule", "lineage", "codes", "tokenizer.tokenizer")
    unjudged |= {f"flashbulb.bundle.{gate}" for gate in of_checkpoint}
    unjudged |= {name for name in found if name.startswith("flashbulb.ort.")} - {"flashbulb.ort.load"}
    unjudged |= {"flashbulb.bundle.floors"}
    skipped = {name for name, what in found.items() if what == "skip"}
    assert skipped | {"flashbulb.ort.other"} == unjudged
    reason = cases["flashbulb.bundle.unet.ort.weights"].find("skipped")
    assert reason is not None
    assert "no weight could be held to the checkpoint: nowhere/at-all is not" in reason.get("message", "")
    told = read_report(pytester.path / "flashbulb/report.json")
    assert [r.gate for r in told.sanity].count("weights") == 1  # one record, though four tests tell it


def test_a_named_engine_that_cannot_run_fails(run: Run, pytester: pytest.Pytester) -> None:
    assert run("--flashbulb-engine", "executorch", "--junitxml", "junit.xml").ret == 1
    found = outcomes(pytester.path / "junit.xml")
    assert {name for name, what in found.items() if what != "pass"} == {"flashbulb.executorch.load"}
    text = junit(pytester.path / "junit.xml")["flashbulb.executorch.load"].findtext("failure") or ""
    assert "executorch: " in text
    assert "Traceback" not in text
    assert not read_report(pytester.path / "flashbulb/report.json").ok


def test_core_ml_programs_are_interpreted_by_default(bundle: Bundle) -> None:
    artifacts = [replace(a, backend="coreml", precision="float16") for a in bundle.manifest.artifacts]
    other = replace(bundle.manifest, artifacts=tuple(artifacts))
    found = choice.choose(Bundle(root=bundle.root, manifest=other), ())
    words = [*(e.name for e in found.engines), *(r.engine for r in found.refusals)]
    assert sorted(words) == ["coreml", "eager", "mil"]
    assert [e.label for e in found.variants(bundle) if e.name == "mil"]
    assert not any(r.wanted for r in found.refusals)
    assert found.backends == frozenset()


def test_where_no_engine_is_left_that_is_a_failure(bundle: Bundle) -> None:
    other = Bundle(root=bundle.root, manifest=replace(bundle.manifest, artifacts=()))
    found = choice.choose(other, ())
    assert [(r.engine, r.wanted) for r in found.refusals] == [("eager", True)]
    with pytest.raises(EngineError, match="no engine can run this bundle here: eager: "):
        found.require()


def test_a_fault_fails_its_own_gate_and_says_it_in_words(
    run: Run, pytester: pytest.Pytester, world: SimpleNamespace
) -> None:
    result = run("--junitxml", "junit.xml", vae_decoder=lambda latent: world.vae_decoder(latent)[:, ::-1])
    assert result.ret == 1
    found = outcomes(pytester.path / "junit.xml")
    failed = {name for name, what in found.items() if what == "fail"}
    names = ("vae_decoder.parity", "image.parity", "pipeline.channels", "fused")
    assert failed == {f"flashbulb.ort.{name}" for name in names}
    text = junit(pytester.path / "junit.xml")["flashbulb.ort.image.parity"].findtext("failure") or ""
    assert "PSNR" in text
    assert "order BGR" in text
    assert "Traceback" not in text
    assert "pytest_bundle.py" not in text
    result.stdout.fnmatch_lines(["*expected, got and difference x8: flashbulb*ort-image-parity.png*"])


def test_the_picture_shows_expected_got_and_difference(
    run: Run, pytester: pytest.Pytester, world: SimpleNamespace
) -> None:
    from PIL import Image

    run("--junitxml", "junit.xml", vae_decoder=lambda latent: world.vae_decoder(latent) * np.float32(0.9))
    path = pytester.path / "flashbulb/ort-vae_decoder-parity.png"
    properties = junit(pytester.path / "junit.xml")["flashbulb.ort.vae_decoder.parity"].iter("property")
    assert str(path) in {p.get("value") for p in properties}
    sheet = np.asarray(Image.open(path)).astype(float)
    side = (sheet.shape[1] - 4 * 8) // 3
    panels = [sheet[26 : 26 + side, 8 + i * (side + 8) : 8 + i * (side + 8) + side] for i in range(3)]
    assert np.abs(panels[0] * 0.9 - panels[1]).max() < 1.0
    assert np.abs(panels[2] - np.clip(panels[0] * 0.1 * 8, 0, 255)).max() < 4.0


def test_nan_is_a_failure_with_a_picture(run: Run, pytester: pytest.Pytester, world: SimpleNamespace) -> None:
    from PIL import Image

    def broken(latent: np.ndarray) -> np.ndarray:
        image = world.vae_decoder(latent).copy()
        image[0, :, :4, :4] = np.nan
        return image

    run("--junitxml", "junit.xml", vae_decoder=broken)
    found = outcomes(pytester.path / "junit.xml")
    assert found["flashbulb.ort.pipeline.range"] == "fail"
    assert found["flashbulb.ort.vae_decoder.parity"] == "fail"
    sheet = np.asarray(Image.open(pytester.path / "flashbulb/ort-vae_decoder-parity.png"))
    assert (sheet[30, 8 + sheet.shape[1] // 3] == (255, 0, 255)).all()


def test_a_changed_file_fails_once_and_nothing_is_opened(
    run: Run, pytester: pytest.Pytester, bundle: Bundle
) -> None:
    (bundle.root / "onnx/unet.ort").write_bytes(b"something else")
    assert run("--junitxml", "junit.xml").ret == 1
    found = outcomes(pytester.path / "junit.xml")
    assert [name for name, what in found.items() if what == "fail"] == ["flashbulb.bundle.files"]
    assert {what for name, what in found.items() if ".ort." in name} == {"skip"}


def test_a_broken_manifest_is_a_failed_test(run: Run, pytester: pytest.Pytester, bundle: Bundle) -> None:
    (bundle.root / "manifest.json").write_text("{}")
    assert run("--junitxml", "junit.xml").ret == 1
    assert outcomes(pytester.path / "junit.xml") == {"flashbulb.bundle.manifest": "fail"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--flashbulb=nowhere",), "nowhere without a manifest.json"),
        (("--flashbulb-engine", "tflite"), "'tflite'"),
    ],
)
def test_a_wrong_flag_is_a_usage_error(run: Run, flags: tuple[str, ...], words: str) -> None:
    result = run(*flags)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{words}*"])


def test_the_fixtures_and_a_conftest_of_the_project(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import pytest\n@pytest.fixture\ndef golden():\n    return 'mine'\n")
    pytester.makepyfile(
        test_mine="""
        def test_own_fixture_wins(golden):
            assert golden == "mine"

        def test_engine(bundle, engine):
            case = bundle.golden()[0]
            out = engine.run("unet", case)["out"]
            assert abs(out - case["out"]).max() < 1e-5
        """
    )
    result = run("-k", "mine", "-v")
    result.assert_outcomes(passed=2, deselected=result.parseoutcomes()["deselected"])
    result.stdout.fnmatch_lines(["*test_engine?ort?*"])


def test_the_golden_tensors_are_a_fixture(run: Run, pytester: pytest.Pytester, bundle: Bundle) -> None:
    from safetensors.numpy import load_file

    vectors = load_file(bundle.root / "golden/vectors.safetensors")
    np.savez(pytester.path / "vectors.npz", **vectors)
    pytester.makepyfile(
        test_mine="""
        import numpy

        def test_golden(golden):
            vectors = numpy.load("vectors.npz")
            told = {f"{i}.{name}": array for i, case in enumerate(golden) for name, array in case.items()}
            assert len(golden) == 4
            assert sorted(told) == sorted(vectors)
            assert all(numpy.array_equal(told[name], vectors[name]) for name in told)
        """
    )
    result = run("-k", "mine", "-v")
    result.assert_outcomes(passed=1, deselected=result.parseoutcomes()["deselected"])


def test_a_single_gate_can_be_chosen(run: Run) -> None:
    result = run("-k", "unet and parity")
    assert result.parseoutcomes()["passed"] == 1


def test_the_step_summary_of_github_gets_the_tables(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: SimpleNamespace
) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    step = tmp_path / "step.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    run(unet=lambda s, h: world.unet(s, h) * 0)
    assert "❌" in step.read_text()
    assert "| ort | unet (out) |" in step.read_text()


def isolated(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a process of its own, with our plugin and no other."""
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_without_the_flag_nothing_is_loaded_and_nothing_changes(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys, json, pytest\n"
        "def test_loaded():\n"
        "    open('loaded.json', 'w').write(json.dumps(sorted(m for m in sys.modules if 'flashbulb' in m)))\n"
        "    assert 'numpy' not in sys.modules and 'msgspec' not in sys.modules\n"
        "@pytest.fixture\n"
        "def engine():\n    return 7\n"
        "def test_own_engine(engine):\n    assert engine == 7\n"
        "@pytest.mark.flashbulb\n"
        "def test_marked(bundle):\n    assert False\n"
        "def test_typo(bundle):\n    pass\n"
    )
    found = isolated(tmp_path, *PLUGIN, "--strict-markers", "-rs")
    assert "2 passed, 1 skipped, 1 error" in found.stdout, found.stdout  # a missing fixture stays an error
    assert "needs --flashbulb=BUNDLE" in found.stdout
    loaded = json.loads((tmp_path / "loaded.json").read_text())
    assert loaded == ["flashbulb", "flashbulb.runtimes", "flashbulb.runtimes.pytest_plugin"]
