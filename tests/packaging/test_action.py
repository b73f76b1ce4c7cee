"""The GitHub Action and the example workflow: sound YAML, every input used, no input inside a script."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flashbulb.apps.cli import arguments
from flashbulb.export.bundle import MANIFEST
from flashbulb.runtimes.engines import engine_names
from flashbulb.runtimes.stage import CheckConfig

ROOT = Path(__file__).parents[2]
ACTION = ROOT / ".github/actions/check/action.yml"
WORKFLOWS = sorted([*(ROOT / ".github/examples").glob("*.yml"), *(ROOT / ".github/workflows").glob("*.yaml")])
EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)


@pytest.fixture(scope="module")
def action() -> dict[str, Any]:
    return yaml.safe_load(ACTION.read_text())


def steps(action: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {s.get("name", s.get("uses")): s for s in action["runs"]["steps"]}


def test_every_input_is_described_and_used(action: dict[str, Any]) -> None:
    used = set(re.findall(r"inputs\.([a-z-]+)", yaml.safe_dump(action["runs"])))
    assert used == set(action["inputs"])
    for name, told in action["inputs"].items():
        assert told["description"].strip(), name
        assert told.get("required") or "default" in told, name


def test_each_step_says_its_shell_and_holds_no_input(action: dict[str, Any]) -> None:
    """An input that is pasted into a script can end the command and begin another."""
    for step in action["runs"]["steps"]:
        assert set(step) <= {"name", "id", "if", "shell", "env", "run", "uses", "with"}
        assert ("uses" in step) != ("run" in step)
        if "run" in step:
            assert step["shell"] == "bash"
            assert not EXPRESSION.search(step["run"])
            assert step["run"].startswith("set -euo pipefail")
            given = set(re.findall(r"\$\{?([A-Z_]+)", step["run"])) - {"GITHUB_OUTPUT", "PWD"}
            assert given <= set(step["env"]), step["name"]
            assert set(step["env"]) <= given, step["name"]
        else:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])


def test_outputs_come_from_steps_that_write_them(action: dict[str, Any]) -> None:
    written = {
        (s["id"], name)
        for s in action["runs"]["steps"]
        if "id" in s
        for name in re.findall(r"(?:^|\\n|')([a-z]+)=%s", s["run"])
    }
    wanted = re.findall(r"steps\.(\w+)\.outputs\.(\w+)", yaml.safe_dump(action["outputs"]))
    assert wanted
    assert set(wanted) <= written


def test_the_scripts_are_sound_bash(action: dict[str, Any]) -> None:
    for step in action["runs"]["steps"]:
        if "run" in step:
            subprocess.run(["bash", "-n"], input=step["run"], text=True, check=True)
            if shutil.which("shellcheck"):
                subprocess.run(["shellcheck", "-s", "bash", "-"], input=step["run"], text=True, check=True)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_a_workflow_gives_the_action_what_it_takes(path: Path, action: dict[str, Any]) -> None:
    flow = yaml.safe_load(path.read_text())
    assert flow["permissions"] == {"contents": "read"}
    assert flow[True]  # YAML 1.1 reads `on` as true
    for job in flow["jobs"].values():
        assert {"runs-on", "steps", "timeout-minutes"} <= set(job)
        for step in job["steps"]:
            assert not EXPRESSION.search(step.get("run", ""))
            if ".github/actions/check@" in step.get("uses", ""):
                given = set(step["with"])
                assert given <= set(action["inputs"])
                assert {n for n, told in action["inputs"].items() if told.get("required")} <= given


def test_the_engines_are_all_named(action: dict[str, Any]) -> None:
    told = set(re.findall(r"\w+", action["inputs"]["engine"]["description"]))
    assert set(engine_names()) <= told


def test_the_example_asks_for_a_baseline_only_where_there_is_one() -> None:
    flow = yaml.safe_load((ROOT / ".github/examples/check-bundle.yml").read_text())
    *_, checkout, step = flow["jobs"]["check"]["steps"]
    given = re.fullmatch(r"\$\{\{ hashFiles\('(.+)'\) != '' && '(.+)' \|\| '' \}\}", step["with"]["baseline"])
    assert given
    assert given[2] == f"{checkout['with']['path']}/{step['with']['bundle']}"
    assert given[1] == f"{given[2]}/{MANIFEST}"


def shims(folder: Path) -> dict[str, str]:
    """Make stand-ins for ``python`` and ``flashbulb`` that only write down their words, one a line."""
    folder.mkdir()
    for name in ("python", "flashbulb"):
        path = folder / name
        path.write_text(f'#!/bin/sh\nprintf \'%s\\n\' {name} "$@" >> "$LOG"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "LOG": str(folder / "log")}


def script(
    action: dict[str, Any], name: str, folder: Path, environment: dict[str, str], **inputs: str
) -> subprocess.CompletedProcess[str]:
    """Run the script of one step as the runner would."""
    step = steps(action)[name]
    values = {n: told.get("default", "") for n, told in action["inputs"].items()} | inputs

    def fill(match: re.Match[str]) -> str:
        return values[match[1].strip().removeprefix("inputs.")]

    told = {k: EXPRESSION.sub(fill, v) if "inputs." in v else v for k, v in step["env"].items()}
    environment = environment | told | {"GITHUB_OUTPUT": str(folder / "output"), "HERE": "/action"}
    command = ["bash", "-c", step["run"]]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def play(action: dict[str, Any], name: str, folder: Path, **inputs: str) -> list[str]:
    """Run the script of one step with stand-ins for the programs; return their words."""
    environment = shims(folder / "bin")
    done = script(action, name, folder, environment, **inputs)
    assert done.returncode == 0, done.stderr
    return Path(environment["LOG"]).read_text().splitlines()


HOSTILE = "a b; touch owned $(touch owned) `touch owned` 'x\""


def test_words_with_spaces_and_commands_stay_words(action: dict[str, Any], tmp_path: Path) -> None:
    found = play(action, "Baseline", tmp_path, bundle=HOSTILE, baseline=HOSTILE, engine="ort")
    assert found[:3] == ["flashbulb", "check", HOSTILE]
    assert found[found.index("--baseline") + 1] == HOSTILE
    assert not (tmp_path / "owned").exists()


def test_the_flags_of_the_baseline_are_those_of_the_command(action: dict[str, Any], tmp_path: Path) -> None:
    words = play(action, "Baseline", tmp_path, bundle="b", baseline="old", engine="ort", checkpoint="c")
    config = arguments.resolve(
        CheckConfig, arguments.blank(CheckConfig, bundle=words[2]), words[3:], program="flashbulb check"
    )
    assert isinstance(config, CheckConfig)
    assert (config.bundle, config.baseline, config.engine, config.checkpoint) == ("b", "old", "ort", "c")
    assert (config.max_slowdown, config.max_db_drop, config.seconds, config.threads) == (1.1, 1.0, 120.0, 1)
    assert config.summary == "flashbulb-check/baseline.md"


def test_the_flags_of_the_gates_are_those_of_the_plugin(
    action: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flashbulb.runtimes import pytest_plugin

    (tmp_path / "b").mkdir()
    words = play(action, "Gates", tmp_path, bundle="b", engine="ort", checkpoint="embedded:student")
    parser = pytest.Parser(_ispytest=True)
    pytest_plugin.pytest_addoption(parser)
    known = {name for group in parser._groups for option in group.options for name in option.names()}
    told = dict(w.split("=", 1) for w in words if w.startswith("--flashbulb"))
    assert set(told) == known
    assert told["--flashbulb"] == str(tmp_path / "b")
    assert "junit=" in (tmp_path / "output").read_text()


def test_the_gates_know_nothing_of_the_repositorys_pytest(action: dict[str, Any], tmp_path: Path) -> None:
    """The repository's flags want plugins that nobody installed, and its conftest is not asked for."""
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = '--cov=x'\n")
    for name in ("conftest.py", "flashbulb-check/empty/conftest.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('it was imported')\n")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / MANIFEST).write_text("{}")
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "--cov=y"}
    environment["PYTHONPATH"] = os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)
    environment["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"  # loads the one plugin that the action's environment has
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@" -p flashbulb.runtimes.pytest_plugin\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    done = script(action, "Gates", tmp_path, environment, bundle="bundle")
    assert "wanted a manifest of schema 1" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1
    assert "1 failed in" in done.stdout
    assert (tmp_path / "flashbulb-check/junit.xml").is_file()


def test_what_is_installed_by_default_is_the_checkout_of_the_action(
    action: dict[str, Any], tmp_path: Path
) -> None:
    assert "/action/../../..[onnx,executorch]" in play(action, "Install flashbulb", tmp_path)
    assert (ACTION.parent / "../../.." / "pyproject.toml").is_file()
