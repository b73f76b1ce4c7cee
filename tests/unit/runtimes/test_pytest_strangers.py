"""`pytest --flashbulb=bundle/` on a bundle of a stranger: nothing in it is imported."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from flashbulb.export.bounds import CONFIGURATIONS
from flashbulb.export.bundle import Bundle
from flashbulb.runtimes import pytest_plugin
from flashbulb.runtimes.records import read_report


def called(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a process of its own, with our plugin and no other."""
    environment = {k: v for k, v in os.environ.items() if k != "GITHUB_STEP_SUMMARY"}
    environment["PYTHONPATH"] = os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "flashbulb.runtimes.pytest_plugin", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def plant(bundle: Bundle, folder: Path, *names: str) -> Path:
    """Move the bundle to a folder, with files in it that leave a mark beside it when they are run."""
    root = bundle.root.rename(folder)
    mark = folder.parent / "it-ran"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        code = f"open({str(mark)!r}, 'w')\n"
        (root / name).write_text(code if name.endswith(".py") else f"[pytest]\naddopts = {root.name}\n")
    return mark


@pytest.mark.parametrize(
    ("name", "names", "words", "said"),
    [
        ("bundle", ("conftest.py", "pytest.ini"), ("--flashbulb", "bundle"), "wanted --flashbulb=FOLDER"),
        ("bundle", ("conftest.py", "test_evil.py"), ("--flashbulb=bundle",), "got conftest.py in it"),
        ("test-bundle", ("conftest.py",), ("--flashbulb=test-bundle",), "got conftest.py in it"),
        (
            "bundle",
            ("tests/conftest.py",),
            ("--flashbulb=bundle", "bundle"),
            "wanted pytest to be called out",
        ),
        (
            "bundle",
            ("onnx/conftest.py",),
            ("--flashbulb=bundle", "bundle/onnx"),
            "wanted pytest to be called",
        ),
        ("bundle", ("onnx/evil.py",), ("--flashbulb=bundle",), "got onnx/evil.py in it"),
    ],
)
def test_no_code_of_a_bundle_runs(
    bundle: Bundle, tmp_path: Path, name: str, names: tuple[str, ...], words: tuple[str, ...], said: str
) -> None:
    mark = plant(bundle, tmp_path / name, *names)
    done = called(tmp_path, *words)
    assert not mark.exists()
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout
    assert said in done.stderr


@pytest.mark.parametrize("flag", ["--flashbulb", "--flashbulb-checkpoint"])
def test_a_flag_without_its_sign_is_refused_for_a_sound_folder_too(
    bundle: Bundle, tmp_path: Path, flag: str
) -> None:
    """Where the folder has an ini file this comes too late: so the form must never work for anybody."""
    plant(bundle, tmp_path / "sound")
    done = called(tmp_path, flag, "sound")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"wanted {flag}=FOLDER, got {flag} FOLDER" in done.stderr


def test_pytest_is_not_called_inside_of_a_bundle(bundle: Bundle) -> None:
    done = called(bundle.root / "onnx", "--flashbulb=..")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "wanted pytest to be called outside of the bundle" in done.stderr


def test_all_files_are_refused_that_pytest_takes_its_configuration_from() -> None:
    from _pytest.config.findpaths import CONFIG_LOADERS_BY_NAME

    assert set(CONFIG_LOADERS_BY_NAME) <= CONFIGURATIONS


def test_workers_of_xdist_give_the_same_answers_and_one_report(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    flags = (f"--flashbulb={bundle.root}", "--flashbulb-engine=ort", "-k", "bundle", "-p", "xdist.plugin")
    found, sanity = [], []
    for count in ("0", "2"):
        (tmp_path / count).mkdir()
        done = called(tmp_path / count, *flags, "-n", count, "--junitxml=junit.xml")
        assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
        cases = ET.parse(tmp_path / count / "junit.xml").iter("testcase")
        found.append({c.get("name"): sorted(child.tag for child in c) for c in cases})
        sanity.append(set(read_report(tmp_path / count / "flashbulb/report.json").sanity))
    assert found[0] == found[1]
    assert len(found[0]) > 10 and [] in found[0].values()
    assert sanity[0] == sanity[1]


def test_the_installed_distribution_names_the_plugin() -> None:
    (found,) = importlib.metadata.entry_points(group="pytest11", name="flashbulb")
    assert found.load() is pytest_plugin
