"""Runners are made from wheels and our sources; hostile wheels and absent compilers are refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from flashbulb.runtimes.devices import toolchain
from flashbulb.runtimes.engines.base import EngineError


def wheel(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return path


def test_libraries_get_the_names_that_programs_ask_for(tmp_path: Path):
    names = ("a/lib/libx.so.1.31.1", "a/lib/liby.so", "a/include/y/z.h", "b/other.py", "a/lib/")
    toolchain.unpack(wheel(tmp_path / "x.whl", *names), ("a/lib/lib", "a/include/"), tmp_path / "out")
    found = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == {"lib/libx.so.1", "lib/liby.so", "a/include/y/z.h"}
    assert (tmp_path / "out/lib/libx.so.1").read_text() == "a/lib/libx.so.1.31.1"


@pytest.mark.parametrize("name", ["a/../../evil.h", "a/include/../../../evil.h", "a/..\\evil.h"])
def test_a_wheel_cannot_write_elsewhere(tmp_path: Path, name: str):
    with pytest.raises(EngineError, match="ordinary name"):
        toolchain.unpack(wheel(tmp_path / "x.whl", name), ("a/",), tmp_path / "out")
    assert not list(tmp_path.rglob("evil.h"))


def test_a_file_of_too_many_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(toolchain, "MOST_BYTES", 3)
    with pytest.raises(EngineError, match="size"):
        toolchain.unpack(wheel(tmp_path / "x.whl", "a/b.h"), ("a/",), tmp_path / "out")


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (toolchain.cache() / f"onnxruntime-{toolchain.installed('ort')}").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="apt-get install g\\+\\+-aarch64-linux-gnu"):
        toolchain.runner("ort")


def test_a_wheel_that_cannot_be_had_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(EngineError, match="cannot fetch onnxruntime=="):
        toolchain.runner("ort")
    assert [path.name for path in toolchain.cache().iterdir()] == []


def test_another_source_makes_another_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = toolchain._key()
    for file in toolchain.SOURCES.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(toolchain, "SOURCES", tmp_path)
    assert toolchain._key() == before
    (tmp_path / "ort.cpp").write_text("// changed")
    assert toolchain._key() != before
