"""The wheel holds the whole package and nothing beside it, and works from any folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("distill", "compress", "export", "runtimes", "apps")
SOURCES = ("pyproject.toml", "README.md", ".src", ".licenses", *PACKAGES)
NOT_PYTHON = ("apps/ios", "apps/android", "apps/web")
DATA = (".yaml", ".jinja", ".json", ".txt", ".safetensors", ".parquet", ".md", ".html", ".css", ".js", ".svg")
DATA += (".slurm", ".cpp", ".hpp")

pytestmark = pytest.mark.packaging


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, so that nothing is written into the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    copy.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "node_modules", "build")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, copy / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    ]
    command += ["-w", str(folder / "out"), str(copy)]
    subprocess.run(command, cwd=folder, check=True, stdin=subprocess.DEVNULL)
    return next((folder / "out").glob("*.whl"))


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked as an installer would."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def expected() -> set[str]:
    """Return every file of the five packages that a user needs."""
    found = {"flashbulb/__init__.py", "flashbulb/py.typed"}
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*"):
            name = file.relative_to(ROOT).as_posix()
            if "__pycache__" in name or name.startswith(NOT_PYTHON) or not file.is_file():
                continue
            in_assets = name.startswith("distill/assets/")
            if file.suffix == ".py" or in_assets or file.suffix in DATA:
                found.add(f"flashbulb/{name}")
    return found


def test_the_wheel_holds_every_file(names: set[str]) -> None:
    held = {name for name in names if name.startswith("flashbulb/") and not name.endswith("/")}
    assert expected() - held == set()
    assert held - expected() == set()


def test_nothing_else_is_installed_at_the_top(names: set[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in names} == {"flashbulb"}


def test_the_licences_are_carried(names: set[str]) -> None:
    carried = {Path(name).name for name in names if ".dist-info/licenses/" in name}
    assert carried == {"LICENSE", "NOTICE", "THIRD_PARTY"}


def test_the_metadata_names_the_extras_and_the_licence(site: Path) -> None:
    text = next(site.glob("*.dist-info/METADATA")).read_text()
    assert "License-Expression: Apache-2.0" in text
    extras = {line.split(": ")[1] for line in text.splitlines() if line.startswith("Provides-Extra")}
    assert {"coreml", "onnx", "executorch", "train", "all", "test"} <= extras
    assert "Requires-Dist: torch==2.13.0" in text


def run(site: Path, code: str, cwd: Path) -> str:
    start = f"import sys; sys.path.insert(0, {str(site)!r})\n"
    result = subprocess.run(
        [sys.executable, "-P", "-c", start + code], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_it_imports_from_another_folder(site: Path, tmp_path: Path) -> None:
    for name in PACKAGES:  # names that would have been ours in a flat layout
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a bare name was imported')\n")
    code = "import flashbulb.export.bundle as b, flashbulb.distill.checkpoint; print(b.__file__)"
    assert run(site, code, tmp_path).startswith(str(site))


def test_the_command_starts_from_the_wheel(site: Path, tmp_path: Path) -> None:
    code = "from flashbulb.apps.cli import main; sys.exit(main(['--help']))"
    assert "flashbulb COMMAND" in run(site, code, tmp_path)


def test_links_that_became_text_are_named(tmp_path: Path) -> None:
    package = tmp_path / "flashbulb"
    package.mkdir()
    shutil.copy(ROOT / ".src/flashbulb/__init__.py", package)
    for name in PACKAGES:
        (package / name).write_text(f"../../{name}")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import flashbulb"
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "git config core.symlinks true && git checkout -- .src" in result.stderr
