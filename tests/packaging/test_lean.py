"""What must stay light: the help, the import of the package, and the modules marked "no torch"."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "coremltools",
    "onnx",
    "onnxruntime",
    "executorch",
    "matplotlib",
    "scipy",
)

NO_TORCH = (
    "flashbulb",
    "flashbulb.apps.cli",
    "flashbulb.apps.cli.arguments",
    "flashbulb.apps.cli.catalogue",
    "flashbulb.apps.cli.dispatch",
    "flashbulb.apps.cli.make.config",
    "flashbulb.apps.cli.make.stages",
    "flashbulb.apps.vote.server",
    "flashbulb.apps.vote.stage",
    "flashbulb.compress.encoding",
    "flashbulb.compress.methods",
    "flashbulb.compress.stage",
    "flashbulb.distill.checkpoint",
    "flashbulb.distill.components",
    "flashbulb.distill.metrics.preference",
    "flashbulb.distill.objectives",
    "flashbulb.distill.schedule",
    "flashbulb.distill.stage",
    "flashbulb.distill.teacher.stage",
    "flashbulb.export.artifact",
    "flashbulb.export.backends",
    "flashbulb.export.bundle",
    "flashbulb.export.noise",
    "flashbulb.export.stage",
    "flashbulb.runtimes.choice",
    "flashbulb.runtimes.engines",
    "flashbulb.runtimes.inspection",
    "flashbulb.runtimes.pytest_plugin",
    "flashbulb.runtimes.questions",
    "flashbulb.runtimes.machine",
    "flashbulb.runtimes.merge",
    "flashbulb.runtimes.records",
    "flashbulb.runtimes.report",
    "flashbulb.runtimes.stage",
)


def loaded_after(code: str) -> set[str]:
    """Run ``code`` in a new interpreter and return the top-level modules that it loaded."""
    show = "import sys; sys.stderr.write('\\n' + ' '.join({m.split('.')[0] for m in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return set(result.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("module", NO_TORCH)
def test_a_light_module_loads_nothing_heavy(module: str) -> None:
    assert loaded_after(f"import {module}") & set(HEAVY) == set()


@pytest.mark.parametrize("words", [[], ["--help"]], ids=["bare", "help"])
def test_the_help_loads_no_library_at_all(words: list[str]) -> None:
    loaded = loaded_after(f"from flashbulb.apps.cli import main; main({words!r})")
    assert loaded & {*HEAVY, "numpy", "tyro", "rich", "msgspec", "yaml"} == set()


@pytest.mark.parametrize("words", [[], ["--help"]], ids=["bare", "help"])
def test_the_help_is_there_at_once(words: list[str]) -> None:
    command = [sys.executable, "-m", "flashbulb.apps.cli", *words]
    best = min(_seconds(command) for _ in range(5))
    assert best < 0.3


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - start
