"""A manifest is held to bounds before anything is allocated, and says nothing twice."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashbulb.export.bundle import Bundle, BundleError, read_bundle, verify

Edit = Callable[[Callable[[dict[str, Any]], None]], Path]


@pytest.mark.parametrize(
    "path",
    ["onnx/con", "onnx/NUL.onnx", "onnx/a.", "onnx/a ", "onnx/a:stream", "onnx/" + "a" * 300,
     "a/" * 600 + "b", "onnx/\u202egnp.exe", "onnx/a?b", "onnx/a\x7fb"],
)  # fmt: skip
def test_paths_that_not_every_system_has(edit: Edit, path: str) -> None:
    with pytest.raises(BundleError, match=r"wanted a relative path inside the bundle"):
        read_bundle(edit(lambda m: m["files"][0].update(path=path)))


def test_two_spellings_of_one_file(edit: Edit) -> None:
    def change(m: dict[str, Any]) -> None:
        m["files"] += [
            {**m["files"][0], "path": name} for name in ("golden/\u00e9.png", "golden/e\u0301.png")
        ]

    with pytest.raises(BundleError, match=r"wanted one record per file"):
        read_bundle(edit(change))


@pytest.mark.parametrize("field", ["schema_version", "name", "artifacts"])
def test_a_field_that_comes_twice(bundle: Bundle, field: str) -> None:
    """One parser takes the first, another the last: an app and a check would see two bundles."""
    path = bundle.root / "manifest.json"
    text = path.read_text()
    value = json.dumps(json.loads(text)[field])
    path.write_text(text.rstrip().removesuffix("}") + f', "{field}": {value}}}')
    with pytest.raises(BundleError, match=f"the field '{field}' comes twice"):
        read_bundle(bundle.root)


def test_a_nested_field_that_comes_twice(bundle: Bundle) -> None:
    path = bundle.root / "manifest.json"
    path.write_text(path.read_text().replace('"std_min"', '"std_min": 0.5, "std_min"'))
    with pytest.raises(BundleError, match=r"'std_min' comes twice"):
        read_bundle(bundle.root)


def set_in(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(m: Any) -> None:
        *parts, last = (int(p) if p.isdigit() else p for p in path.split("."))
        for part in parts:
            m = m[part]
        m[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("noise.shape", [1, 1000, 1000, 1000], "values in a tensor"),
        ("noise.shape", [], "values in a tensor"),
        ("noise.shape", [10**9], "values in a tensor"),
        ("noise.shape", [1] * 9, "values in a tensor"),
        ("image.width", 10**9, "pixels a side"),
        ("image.height", 0, "pixels a side"),
        ("image.latent_shape", [4, -8, 8], "positive sizes"),
        ("tokenizers.0.length", 10**12, "tokens and ids"),
        ("tokenizers.0.length", 2, "tokens and ids"),
        ("tokenizers.0.pad_token_id", -1, "tokens and ids"),
        ("artifacts.0.inputs.0.shape", [1 << 62, 4], "values in a tensor"),
        ("artifacts.0.inputs.0.name", "\x1b[2J", "a printable name"),
        ("artifacts.0.inputs.0.name", "x" * 1000, "a printable name"),
        ("name", "<b>\n", "a printable name"),
        ("sampling.one_step.alpha", 0.0, "alpha in"),
        ("sampling.one_step.sigma", -1.0, "alpha in"),
        ("sampling.one_step.latent_scale", 0.0, "scales that are not zero"),
        ("sampling.one_step.init_noise_sigma", 0.0, "scales that are not zero"),
        ("sampling.folded_timestep", -1, "timestep"),
    ],
)
def test_numbers_and_names_out_of_bounds(edit: Edit, path: str, value: Any, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        read_bundle(edit(set_in(path, value)))


def test_division_by_a_vanishing_alpha(edit: Edit) -> None:
    def change(m: dict[str, Any]) -> None:
        m["sampling"]["one_step"].update(alpha=0.0, prediction_type="epsilon")

    with pytest.raises(BundleError, match=r"alpha in"):
        read_bundle(edit(change))


def test_more_cases_than_any_bundle_has(edit: Edit) -> None:
    with pytest.raises(BundleError, match=r"golden cases"):
        read_bundle(edit(lambda m: m["golden"].update(cases=m["golden"]["cases"] * 100)))


@pytest.mark.parametrize("junk", ["[" * 900_000, "[" + "[]," * 340_000 + "[]]", "{" + '"a":{},' * 140_000])
def test_a_small_text_that_would_become_large(bundle: Bundle, junk: str) -> None:
    (bundle.root / "manifest.json").write_text(junk)
    tracemalloc.start()
    with pytest.raises(BundleError, match=r"objects and lists"):
        read_bundle(bundle.root)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(junk) + (1 << 20)


def test_a_manifest_that_is_too_long_is_not_read(bundle: Bundle) -> None:
    with (bundle.root / "manifest.json").open("wb") as stream:
        stream.truncate(1 << 40)  # sparse: it has no bytes on disk
    with pytest.raises(BundleError, match=r"wanted at most 1048576 bytes"):
        read_bundle(bundle.root)


def test_many_artifacts_take_no_longer_than_their_number(edit: Edit) -> None:
    import time

    root = edit(lambda m: m.update(artifacts=m["artifacts"] * 1500))
    begin = time.process_time()
    with pytest.raises(BundleError):
        read_bundle(root)
    assert time.process_time() - begin < 5.0


def test_a_zip_bomb_is_refused_unopened(bundle: Bundle, edit: Edit) -> None:
    from flashbulb.export.verify import is_pickle

    for head in (b"PK\x03\x04", b"PK\x05\x06"):
        (bundle.root / "onnx/unet.onnx").write_bytes(head + b"\xff" * 64)
        assert is_pickle(bundle.root / "onnx/unet.onnx")


def test_a_pipe_in_the_place_of_a_file(bundle: Bundle) -> None:
    import os

    path = bundle.root / "onnx/unet.onnx"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BundleError, match=r"wanted the file"):
        verify(bundle)


def test_a_pipe_in_the_place_of_the_manifest(bundle: Bundle) -> None:
    import os

    (bundle.root / "manifest.json").unlink()
    os.mkfifo(bundle.root / "manifest.json")
    with pytest.raises(BundleError, match=r"wanted a regular file"):
        read_bundle(bundle.root)
