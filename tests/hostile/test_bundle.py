"""Each way to break a bundle has its own error, and a sound bundle has none."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashbulb.export.artifact import FileRecord, digest, file_sha256
from flashbulb.export.bundle import Bundle, BundleError, read_bundle, verify, write_manifest
from flashbulb.export.verify import is_pickle

Edit = Callable[[Callable[[dict[str, Any]], None]], Path]


def test_a_sound_bundle_passes(bundle: Bundle) -> None:
    verify(bundle)
    assert bundle.components("ort") == ("text_encoder", "unet", "vae_decoder")
    assert bundle.path(bundle.artifact("generator", "coreml")).is_dir()


def test_one_flipped_byte(bundle: Bundle) -> None:
    path = bundle.root / "onnx/unet.onnx"
    path.write_bytes(b"onnX unet")
    with pytest.raises(BundleError, match=r"wanted sha256 .* for 'onnx/unet.onnx'"):
        verify(bundle)


def test_one_flipped_byte_inside_a_package(bundle: Bundle) -> None:
    (bundle.root / "coreml/generator.mlpackage/Manifest.json").write_bytes(b"[]")
    with pytest.raises(BundleError, match=r"wanted sha256 .*mlpackage"):
        verify(bundle)


@pytest.mark.parametrize(
    "path",
    [
        "../unet.onnx",
        "onnx/../../unet.onnx",
        "/etc/passwd",
        "C:/unet.onnx",
        "onnx\\unet.onnx",
        "onnx//x",
        "./x",
        "",
        "manifest.json",
        "onnx/a\x00b",
    ],
)
def test_paths_that_leave_the_bundle(edit: Edit, path: str) -> None:
    root = edit(lambda m: m["files"][0].update(path=path))
    with pytest.raises(BundleError, match=r"wanted a relative path inside the bundle"):
        read_bundle(root)


@pytest.mark.parametrize(
    "path",
    ["conftest.py", "a/Conftest.PY", "pytest.ini", ".pytest.toml", "a/pyproject.toml", "setup.cfg", "x.so"],
)
def test_paths_by_which_code_could_run(edit: Edit, path: str) -> None:
    root = edit(lambda m: m["files"][0].update(path=path))
    with pytest.raises(BundleError, match=r"wanted data, got .*, by which code could run"):
        read_bundle(root)


def test_artifact_path_that_leaves_the_bundle(edit: Edit) -> None:
    root = edit(lambda m: m["artifacts"][0].update(path="../elsewhere.onnx"))
    with pytest.raises(BundleError, match=r"wanted a relative path inside the bundle"):
        read_bundle(root)


def test_linked_file(bundle: Bundle, tmp_path: Path) -> None:
    path = bundle.root / "onnx/unet.onnx"
    path.rename(tmp_path / "unet.onnx")
    path.symlink_to(tmp_path / "unet.onnx")
    with pytest.raises(BundleError, match=r"wanted regular files, got the link"):
        verify(bundle)


def test_linked_folder(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.root / "onnx").rename(tmp_path / "onnx")
    (bundle.root / "onnx").symlink_to(tmp_path / "onnx", target_is_directory=True)
    with pytest.raises(BundleError, match=r"wanted regular files, got the link"):
        verify(bundle)


def test_linked_manifest(bundle: Bundle, tmp_path: Path) -> None:
    path = bundle.root / "manifest.json"
    path.rename(tmp_path / "manifest.json")
    path.symlink_to(tmp_path / "manifest.json")
    with pytest.raises(BundleError, match=r"wanted a regular file"):
        read_bundle(bundle.root)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"give the folder that `export` wrote"):
        read_bundle(tmp_path)


def test_missing_component(edit: Edit) -> None:
    root = edit(lambda m: m["artifacts"].pop(1))
    with pytest.raises(BundleError, match=r"for ort, missing \['unet'\]"):
        read_bundle(root)


def test_no_artifacts(edit: Edit) -> None:
    with pytest.raises(BundleError, match=r"wanted at least one artifact"):
        read_bundle(edit(lambda m: m.update(artifacts=[])))


def test_missing_file(bundle: Bundle) -> None:
    (bundle.root / "golden/0.png").unlink()
    with pytest.raises(BundleError, match=r"wanted the file 'golden/0.png'"):
        verify(bundle)


def test_file_that_nobody_vouches_for(bundle: Bundle) -> None:
    (bundle.root / "onnx/extra.onnx").write_bytes(b"hello")
    with pytest.raises(BundleError, match=r"wanted only files of the manifest .* got 'onnx/extra.onnx'"):
        verify(bundle)


def test_schema_of_the_future(edit: Edit) -> None:
    with pytest.raises(BundleError, match=r"wanted manifest schema 1, got 999"):
        read_bundle(edit(lambda m: m.update(schema_version=999, something_new=True)))


@pytest.mark.parametrize("keep", [0, 1, 100, -2])
def test_truncated_manifest(bundle: Bundle, keep: int) -> None:
    path = bundle.root / "manifest.json"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BundleError, match=r"wanted a manifest of schema 1"):
        read_bundle(bundle.root)


@pytest.mark.parametrize("data", [b"\xff\xfe", b"[]", b"null", b'{"schema_version": "1"}', b'{"a":' * 5000])
def test_manifest_that_is_something_else(bundle: Bundle, data: bytes) -> None:
    (bundle.root / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError, match=r"wanted a manifest of schema 1"):
        read_bundle(bundle.root)


def test_unknown_field(edit: Edit) -> None:
    with pytest.raises(BundleError, match=r"surprise"):
        read_bundle(edit(lambda m: m["artifacts"][0].update(surprise=1)))


def test_pickle_by_content(bundle: Bundle) -> None:
    replace(bundle, "onnx/unet.onnx", pickle.dumps({"weights": [1, 2, 3]}, protocol=4))
    with pytest.raises(BundleError, match=r"got a pickle, which can run code"):
        verify(read_bundle(bundle.root))


def test_pickle_inside_a_torch_archive(bundle: Bundle) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as stream:
        stream.writestr("model/data.pkl", pickle.dumps([1]))
    replace(bundle, "onnx/unet.onnx", archive.getvalue())
    with pytest.raises(BundleError, match=r"got a pickle"):
        verify(read_bundle(bundle.root))


class Calls:
    """What a pickle of it has called when it is opened."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("the pickle ran code",)


def zipped(prefix: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as stream:
        stream.writestr(zipfile.ZipInfo("data.pkl"), b"x")
    return prefix + archive.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        *(pickle.dumps({"weights": [Calls()]}, protocol=protocol) for protocol in range(6)),
        pickle.dumps([Calls(), *range(20_000)], protocol=0),  # more than is looked at
        gzip.compress(pickle.dumps([1]), mtime=0),
        bz2.compress(pickle.dumps([1])),
        lzma.compress(pickle.dumps([1])),
        zipped(b""),
        zipped(b"\x08\x07something in front" * 10_000),
        zipped(b"in front") + b"behind",
    ],
    ids=[*(f"protocol-{p}" for p in range(6)), "long", "gzip", "bz2", "xz", "zip", "far-zip", "zip-inside"],
)
def test_what_may_run_code_is_told_by_its_content(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "unet.onnx").write_bytes(data)
    assert is_pickle(tmp_path / "unet.onnx")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"copyright of somebody\nand others\nReserved.\n",
        b"(c) 2026 us.\n",
        b"N" * 70_000,
        bytes(70_000),
        b"text PK\x05\x06 that speaks of zips" * 9,
        *(random.Random(seed).randbytes(70_000) for seed in range(20)),
    ],
    ids=range(27),
)
def test_what_runs_no_code_is_no_pickle(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "LICENSE").write_bytes(data)
    assert not is_pickle(tmp_path / "LICENSE")


def test_no_file_of_the_embedded_checkpoints_looks_like_a_pickle() -> None:
    files = [p for p in (Path(__file__).parents[2] / "distill/assets").rglob("*") if p.is_file()]
    assert len(files) > 15
    assert not [p for p in files if is_pickle(p)]


def test_a_file_that_is_mostly_hole_is_refused_before_it_is_read(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flashbulb.export import verify as module
    from flashbulb.export.bounds import MOST_HOLE_BYTES
    from flashbulb.export.pickles import hole_bytes

    path = bundle.root / "onnx/unet.onnx"
    with path.open("r+b") as stream:
        stream.seek(MOST_HOLE_BYTES + (1 << 20))
        stream.write(b"end")
    if not hole_bytes(path, MOST_HOLE_BYTES):
        pytest.skip("this file system tells nothing of holes")
    read: list[Path] = []
    monkeypatch.setattr(module, "file_sha256", lambda p: read.append(p) or "0" * 64)
    record = FileRecord(path="onnx/unet.onnx", sha256="0" * 64, size_bytes=path.stat().st_size)
    with pytest.raises(BundleError, match="got a hole of more than 268435456"):
        module._check_file(bundle.root, record)
    assert not read
    monkeypatch.setattr(module, "MOST_HOLE_BYTES", 1 << 30)  # it is the hole, and nothing else
    module._check_file(bundle.root, record)
    assert read == [path]


def test_a_path_that_is_too_long_for_the_system(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="wanted a path of a folder, got File name too long"):
        read_bundle(tmp_path / ("x" * 300))


def test_pickle_by_name(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"anything")
    assert is_pickle(tmp_path / "model.pt")


def test_weights_that_begin_like_a_pickle_are_none(bundle: Bundle) -> None:
    found = bundle.root / "coreml/generator.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    assert found.read_bytes()[:2] == b"\x80\x02"
    assert not is_pickle(found)


def test_size_that_lies(edit: Edit) -> None:
    root = edit(lambda m: m["files"][0].update(size_bytes=m["files"][0]["size_bytes"] + 1))
    with pytest.raises(BundleError, match=r"wanted .* bytes in"):
        verify(read_bundle(root))


def test_total_size_that_lies(edit: Edit) -> None:
    with pytest.raises(BundleError, match=r"its files sum to"):
        read_bundle(edit(lambda m: m["artifacts"][0].update(size_bytes=1)))


def test_negative_size(edit: Edit) -> None:
    with pytest.raises(BundleError, match=r">= 0"):
        read_bundle(edit(lambda m: m["files"][0].update(size_bytes=-1)))


def test_artifact_hash_that_is_not_its_files(edit: Edit) -> None:
    with pytest.raises(BundleError, match=r"its file list has another"):
        read_bundle(edit(lambda m: m["artifacts"][0].update(sha256="0" * 64)))


def test_malformed_hash(edit: Edit) -> None:
    with pytest.raises(BundleError, match=r"regex"):
        read_bundle(edit(lambda m: m["files"][0].update(sha256="abc")))


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", '"NaN"', "null"])
def test_thresholds_that_are_no_numbers(bundle: Bundle, literal: str) -> None:
    path = bundle.root / "manifest.json"
    path.write_text(path.read_text().replace("66.5", literal))
    with pytest.raises(BundleError, match=r"wanted a (manifest|finite number)"):
        read_bundle(bundle.root)


def test_coefficients_that_are_not_those_of_the_step(edit: Edit) -> None:
    with pytest.raises(BundleError, match=r"wanted one-step coefficients"):
        read_bundle(edit(lambda m: m["sampling"].update(noise_coefficient=0.5)))


def test_one_file_twice(edit: Edit) -> None:
    def change(m: dict[str, Any]) -> None:
        m["files"].append({**m["files"][0], "path": m["files"][0]["path"].upper()})

    with pytest.raises(BundleError, match=r"wanted one record per file"):
        read_bundle(edit(change))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a/x", "MANIFEST.JSON"),
        ("a/x", "Manifest.json/x"),
        ("foo", "FOO/bar"),
        ("foo/bar", "Foo"),
        ("foo/a", "FOO/b"),
        ("a/foo", "a/FOO/b/c"),
        ("é", "e\u0301/x"),
    ],
)
def test_names_that_are_one_on_some_system(edit: Edit, one: str, other: str) -> None:
    def change(m: dict[str, Any]) -> None:
        m["files"] += [{**m["files"][0], "path": one}, {**m["files"][0], "path": other}]

    with pytest.raises(BundleError, match=r"wanted one record per file"):
        read_bundle(edit(change))


def test_one_artifact_twice(edit: Edit) -> None:
    with pytest.raises(BundleError, match=r"wanted one artifact per component"):
        read_bundle(edit(lambda m: m["artifacts"].append(m["artifacts"][0])))


def test_artifact_without_its_file(edit: Edit) -> None:
    with pytest.raises(BundleError, match=r"the manifest lists none"):
        read_bundle(edit(lambda m: m["artifacts"][0].update(path="onnx/other.onnx")))


@pytest.mark.parametrize("gone", ["golden/vectors.safetensors", "golden/2.png", "tokenizer/tokenizer.json"])
def test_reference_to_a_file_without_record(edit: Edit, gone: str) -> None:
    root = edit(lambda m: m.update(files=[f for f in m["files"] if f["path"] != gone]))
    with pytest.raises(BundleError, match=f"wanted a record of '{gone}'"):
        read_bundle(root)


def test_shape_of_nothing(edit: Edit) -> None:
    with pytest.raises(BundleError, match=r"wanted positive sizes"):
        read_bundle(edit(lambda m: m["artifacts"][0]["inputs"][0].update(shape=[1, 0, 8, 8])))


def test_unknown_artifact_lists_the_known(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"the bundle at .* holds .*unet/ort/onnx"):
        bundle.artifact("unet", "executorch")


def replace(bundle: Bundle, name: str, data: bytes) -> None:
    """Replace a file together with its records, as an attacker would."""
    import msgspec

    path = bundle.root / name
    path.write_bytes(data)
    new = FileRecord(path=name, sha256=file_sha256(path), size_bytes=len(data))
    artifacts = []
    for found in bundle.manifest.artifacts:
        files = tuple(new if f.path == name else f for f in found.files)
        size = sum(f.size_bytes for f in files)
        artifacts.append(msgspec.structs.replace(found, files=files, sha256=digest(files), size_bytes=size))
    write_manifest(msgspec.structs.replace(bundle.manifest, artifacts=tuple(artifacts)), bundle.root)


def test_manifest_round_trip(bundle: Bundle) -> None:
    before = (bundle.root / "manifest.json").read_bytes()
    write_manifest(read_bundle(bundle.root).manifest, bundle.root)
    assert (bundle.root / "manifest.json").read_bytes() == before
    assert json.loads(before)["schema_version"] == 1
