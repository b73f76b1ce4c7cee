"""Weight files that coremltools wrote are read back exactly, and damaged ones are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from flashbulb.runtimes.engines.mil.blob import read_blob
from flashbulb.runtimes.engines.mil.dtypes import BY_NAME
from flashbulb.runtimes.engines.mil.errors import ProgramError

storage = pytest.importorskip("coremltools.libmilstoragepython")
SHAPE = (7, 3)
PLAIN = {
    "fp32": "<f4", "fp16": "<f2", "uint8": "|u1", "int8": "|i1",
    "uint16": "<u2", "int16": "<i2", "uint32": "<u4", "int32": "<i4",
}  # fmt: skip
WORDS = {"fp32": "float"}


def blob(path: Path, name: str, values: np.ndarray) -> tuple[np.ndarray, int]:
    writer = storage._BlobStorageWriter(str(path))
    writer.write_float_data(np.ones(5, np.float32))  # so that the record is not the first
    given = values.reshape(-1).view(np.uint16) if name == "fp16" else values.reshape(-1)
    offset = getattr(writer, f"write_{WORDS.get(name, name)}_data")(np.ascontiguousarray(given))
    del writer
    return np.fromfile(path, np.uint8), offset


def random_values(name: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    dtype = BY_NAME[name]
    if name.startswith("fp"):
        return rng.standard_normal(SHAPE).astype(PLAIN[name])
    low = -(1 << (dtype.bits - 1)) if name.startswith("int") else 0
    return rng.integers(low, low + (1 << dtype.bits), SHAPE).astype(dtype.array)


@pytest.mark.parametrize("name", [*PLAIN, "int4", "uint1", "uint2", "uint3", "uint4", "uint6"])
def test_every_stored_type_comes_back_exactly(name: str, tmp_path: Path) -> None:
    values = random_values(name)
    data, offset = blob(tmp_path / "weight.bin", name, values)
    found = read_blob(data, offset, BY_NAME[name], SHAPE)
    assert found.dtype == np.dtype(BY_NAME[name].array)
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 0xDEADBEEE, "wanted the mark"),
        (4, 5, "wanted a stored type"),
        (4, 1, "the file says fp16"),
        (8, 80, "wanted 84 bytes"),
        (8, 1 << 40, "the file has|it is cut"),
        (16, 1 << 40, "it is cut"),
        (16, 1, "aligned"),
    ],
)
def test_a_damaged_record_is_refused(place: int, value: int, message: str, tmp_path: Path) -> None:
    data, offset = blob(tmp_path / "weight.bin", "fp32", random_values("fp32"))
    record = struct.pack("<Q" if place >= 8 else "<I", value)
    data[offset + place : offset + place + len(record)] = np.frombuffer(record, np.uint8)
    with pytest.raises(ProgramError, match=message):
        read_blob(data, offset, BY_NAME["fp32"], SHAPE)


@pytest.mark.parametrize("offset", [1, 1 << 40, -64])
def test_a_record_outside_the_file_is_refused(offset: int, tmp_path: Path) -> None:
    data, _ = blob(tmp_path / "weight.bin", "fp32", random_values("fp32"))
    with pytest.raises(ProgramError, match="wanted an aligned record"):
        read_blob(data, offset, BY_NAME["fp32"], SHAPE)
