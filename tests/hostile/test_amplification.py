"""A small program that asks its readers for far more than it holds is refused before the memory is gone."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashbulb.export import anatomy
from flashbulb.export.anatomy import AnatomyError, read


def ort_inputs(count: int, size: int) -> bytes:
    """Write an `.ort` file whose graph has one name of some letters as its input, many times."""
    tables = (
        struct.pack("<I4s", 16, b"ORTM")
        + struct.pack("<4H", 8, 8, 0, 4)
        + struct.pack("<iI", 8, 44 - 20)
        + struct.pack("<10H", 20, 8, *[0] * 7, 4)
        + struct.pack("<iI", 20, 68 - 48)
        + struct.pack("<8H", 16, 8, *[0] * 5, 4)
        + struct.pack("<iI", 16, 76 - 72)
    )
    first = 76 + 4
    end = first + 4 * count
    offsets = [end - place for place in range(first, end, 4)]
    return tables + struct.pack(f"<I{count}I", count, *offsets) + struct.pack("<I", size) + b"a" * size


def test_one_name_may_stand_in_a_few_places(tmp_path: Path) -> None:
    (tmp_path / "m.ort").write_bytes(ort_inputs(3, 1000))
    assert read(tmp_path / "m.ort", "ort").lines["(inputs)"] == ", ".join(["a" * 1000] * 3)


def test_many_offsets_to_one_name_are_refused(tmp_path: Path) -> None:
    data = ort_inputs(20_000, 200_000)
    (tmp_path / "m.ort").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(AnatomyError, match="many share one place"):
        read(tmp_path / "m.ort", "ort")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * len(data)


def save(path: Path, places: list[tuple[int, int]], location: str = "m.data", size: int = 4096) -> Path:
    """Write an ONNX model whose constants lie at some places of a file beside it."""
    import onnx
    from onnx import TensorProto, helper

    path.parent.mkdir(exist_ok=True)
    with (path.parent / "m.data").open("wb") as stream:
        stream.write(np.arange(size // 4, dtype=np.float32).tobytes())
    tensors = []
    for index, (offset, count) in enumerate(places):
        tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[count])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", 4 * count)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    node = helper.make_node("Sum", [t.name for t in tensors], ["y"])
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [], [value], tensors)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert onnx.load(path, load_external_data=False).graph.initializer
    return path


def test_constants_beside_a_program_are_read_where_they_lie(tmp_path: Path) -> None:
    found = read(save(tmp_path / "m.onnx", [(0, 3), (400, 100)]), "onnx").constants
    assert found["w0"].load().tolist() == [0.0, 1.0, 2.0]
    assert np.array_equal(found["w1"].load(), np.arange(100, 200, dtype=np.float32))
    for _ in range(20):  # once they are known, as often as somebody likes
        assert found["w1"].load().size == 100


@pytest.mark.parametrize("count", [20, 150])
def test_many_constants_of_one_large_file_are_refused(tmp_path: Path, count: int) -> None:
    path = save(tmp_path / "m.onnx", [(0, 1 << 24)] * count)
    with (tmp_path / "m.data").open("wb") as stream:
        stream.truncate(1 << 26)  # sparse: it has no bytes on disk
    tracemalloc.start()
    with pytest.raises(AnatomyError, match=r"at most 4 times the file 'm\.data'"):
        read(path, "onnx")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 26


@pytest.mark.parametrize(
    "location", ["../m.data", "/etc/passwd", "", ".", "nothing", "link", "pipe", "folder/m"]
)
def test_constants_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    path = save(tmp_path / "inside/m.onnx", [(0, 3)], location)
    (tmp_path / "m.data").write_bytes(bytes(64))
    (tmp_path / "inside/link").symlink_to(tmp_path / "m.data")
    os.mkfifo(tmp_path / "inside/pipe")
    with pytest.raises(AnatomyError, match="wanted a file beside the program"):
        read(path, "onnx")


@pytest.mark.parametrize("place", [(4096, 1), (4000, 100), (0, 2000), (-4, 1)])
def test_constants_behind_the_end_are_refused(tmp_path: Path, place: tuple[int, int]) -> None:
    with pytest.raises(AnatomyError, match=r"wanted \d+ bytes of w0"):
        read(save(tmp_path / "m.onnx", [place]), "onnx")


def decoding(*nodes: tuple[str, list[str], str]) -> Callable[[Path], Path]:
    """Return what writes an ONNX model whose nodes decode two small constants."""

    def write(path: Path) -> Path:
        from onnx import TensorProto, helper, numpy_helper

        arrays = {"wide": np.ones((1, 4000), np.float32), "tall": np.zeros((4000, 1), np.int64)}
        arrays["high"] = arrays["tall"].astype(np.float32)
        made = [helper.make_node(op, inputs, [output]) for op, inputs, output in nodes]
        value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        made.append(helper.make_node("Identity", [nodes[-1][2]], ["y"]))
        tensors = [numpy_helper.from_array(v, k) for k, v in arrays.items()]
        graph = helper.make_graph(made, "g", [], [value], tensors)
        path.write_bytes(helper.make_model(graph).SerializeToString())
        return path

    return write


@pytest.mark.parametrize(
    "write",
    [
        decoding(("Gather", ["wide", "tall"], "c")),
        decoding(("Mul", ["wide", "high"], "c")),
    ],
    ids=["gather", "mul"],
)
def test_a_constant_that_decodes_to_far_more_is_refused(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    constants = read(write(tmp_path / "m.onnx"), "onnx").constants
    with pytest.raises(AnatomyError, match=r"at most 8 times the 12000 values that are stored, got 16000000"):
        constants["c"].load()


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("too deep")])
def test_what_fills_the_memory_or_the_stack_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(anatomy, "_read", fail)
    with pytest.raises(AnatomyError, match=f"got: .*({type(error).__name__}|too deep); export it again"):
        read(tmp_path / "m.ort", "ort")
