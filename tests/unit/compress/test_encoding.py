"""The record, its file, and what a reader refuses."""

from __future__ import annotations

import json
import sys
from subprocess import run

import numpy as np
import pytest

from flashbulb.compress.encoding import (
    PALETTE_BITS,
    PLAN_FILE,
    CompressionPlan,
    Encoding,
    EncodingError,
    pack,
    read_encoded,
    read_plan,
    unpack,
    write_plan,
)
from flashbulb.compress.methods import Palettize, QuantizeInt8
from flashbulb.distill.checkpoint import CODES_FILE


@pytest.fixture
def folder(tmp_path):
    weight = np.random.default_rng(0).normal(size=(7, 5, 3, 3))
    encoded = {f"unet/p{bits}.weight": Palettize(bits=bits).encode(weight) for bits in PALETTE_BITS}
    write_plan(tmp_path, encoded | {"vae_decoder/q.weight": QuantizeInt8().encode(weight)})
    return tmp_path


def edit(folder, change):
    plan = json.loads((folder / PLAN_FILE).read_text())
    change(plan)
    (folder / PLAN_FILE).write_text(json.dumps(plan))


def test_what_is_written_is_read(tmp_path):
    weight = np.random.default_rng(1).normal(size=(6, 4))
    encoded = {
        "unet/a.weight": Palettize(bits=6).encode(weight),
        "unet/b.weight": QuantizeInt8().encode(weight),
    }
    write_plan(tmp_path, encoded)
    back = read_encoded(tmp_path)
    assert back.keys() == encoded.keys()
    for key, value in encoded.items():
        assert back[key].encoding == value.encoding
        assert back[key].codes.dtype == value.codes.dtype
        np.testing.assert_array_equal(back[key].codes, value.codes)
        np.testing.assert_array_equal(back[key].decode(), value.decode())


def test_the_same_codes_give_the_same_bytes(tmp_path):
    weight = np.random.default_rng(1).normal(size=(6, 4))
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_plan(tmp_path / name, {"unet/a.weight": Palettize(bits=4).encode(weight)})
        files.append([(tmp_path / name / f).read_bytes() for f in (PLAN_FILE, CODES_FILE)])
    assert files[0] == files[1]


def test_codes_are_stored_packed(folder):
    from safetensors.numpy import load_file

    tensors = load_file(folder / CODES_FILE)
    assert tensors["unet/p6.weight#codes"].nbytes == -(-7 * 5 * 9 * 6 // 8)
    assert tensors["unet/p1.weight#codes"].nbytes == -(-7 * 5 * 9 // 8)


def test_packing_is_little_endian_in_bits():
    np.testing.assert_array_equal(pack(np.array([1, 2, 3, 0]), 2), [0b00111001])
    np.testing.assert_array_equal(unpack(np.array([0b00111001], np.uint8), 2, (4,)), [1, 2, 3, 0])


def test_a_folder_without_a_plan_has_no_encodings(tmp_path):
    assert read_plan(tmp_path) == CompressionPlan()
    assert read_encoded(tmp_path) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan.update(schema_version=999), "schema_version"),
        (lambda plan: plan.update(extra=1), "unknown field"),
        (lambda plan: plan["layers"].update({"../../etc": plan["layers"]["unet/p1.weight"]}), "layer key"),
        (lambda plan: plan["layers"].update({"unet/": plan["layers"]["unet/p1.weight"]}), "layer key"),
        (lambda plan: plan["layers"]["unet/p6.weight"].update(bits=3), "3"),
        (lambda plan: plan["layers"]["unet/p6.weight"].update(bits=16), "wanted bits"),
        (lambda plan: plan["layers"]["unet/p6.weight"].update(granularity="per_channel"), "granularity"),
        (lambda plan: plan["layers"]["vae_decoder/q.weight"].update(axis=1), "axis"),
        (lambda plan: plan["layers"]["unet/p6.weight"].update(shape=[7, 5, 3, 0]), "positive sizes"),
        (lambda plan: plan["layers"]["unet/p6.weight"].update(shape=[2**40, 5]), "positive sizes"),
        (
            lambda plan: plan["layers"]["unet/p6.weight"].update(shape=[7, 5, 3, 4]),
            "wanted unet/p6.weight#codes",
        ),
        (lambda plan: plan["layers"]["unet/p6.weight"].update(bits=4), "wanted unet/p6.weight#codes"),
        (
            lambda plan: plan["layers"].update({"unet/gone": plan["layers"]["unet/p6.weight"]}),
            "wanted unet/gone#codes .*got nothing",
        ),
        (lambda plan: plan.update(tensors_sha256="0" * 64), "not the file"),
    ],
)
def test_a_hostile_plan_is_refused(folder, change, message):
    edit(folder, change)
    with pytest.raises(EncodingError, match=message):
        read_encoded(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", "[" * 100_000, '{"layers": {"unet/a": 1}}'])
def test_broken_json_is_refused(folder, text):
    (folder / PLAN_FILE).write_text(text)
    with pytest.raises(EncodingError, match=PLAN_FILE):
        read_plan(folder)


@pytest.mark.parametrize("position", [3, -1])
def test_a_flipped_byte_in_the_codes_is_refused(folder, position):
    blob = bytearray((folder / CODES_FILE).read_bytes())
    blob[position] ^= 1
    (folder / CODES_FILE).write_bytes(blob)
    with pytest.raises(EncodingError, match="not the file"):
        read_encoded(folder)


def test_missing_codes_are_refused(folder):
    (folder / CODES_FILE).unlink()
    with pytest.raises(EncodingError, match="missing"):
        read_encoded(folder)


@pytest.mark.parametrize(
    ("part", "value"), [("lut", np.nan), ("lut", np.inf), ("scale", 0.0), ("scale", -1.0)]
)
def test_tables_must_be_usable(tmp_path, part, value):
    weight = np.random.default_rng(0).normal(size=(6, 4))
    encoded = (Palettize(bits=2) if part == "lut" else QuantizeInt8()).encode(weight)
    getattr(encoded, part)[0] = value
    write_plan(tmp_path, {"unet/a.weight": encoded})
    with pytest.raises(EncodingError, match=part):
        read_encoded(tmp_path)


def test_size_counts_codes_and_tables():
    encoding = Encoding(kind="palettize", bits=6, granularity="per_tensor", shape=(10, 10))
    assert encoding.size_bytes == 75 + 2 * 64
    encoding = Encoding(kind="int8_weight_only", bits=8, granularity="per_channel", axis=0, shape=(10, 10))
    assert encoding.size_bytes == 100 + 2 * 10


@pytest.mark.parametrize(
    "module", ["encoding", "selection", "sensitivity", "coupling", "stage", "methods.channels"]
)
def test_import_is_light(module):
    heavy = "{'torch', 'diffusers', 'transformers', 'coremltools', 'onnx'} & set(sys.modules)"
    code = f"import sys, flashbulb.compress.{module}; sys.exit(str({heavy}) if {heavy} else 0)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
