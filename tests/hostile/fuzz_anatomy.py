"""Broken ONNX, `.ort` and `.pte` programs for `fuzz.py`: what takes them apart, and `doctor`.

What is broken lies in ``corpus/anatomy-*/ok-*``, three forms of one small network; this file writes them anew
when it is run as a script.
"""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from breaking import BYTE_CHANGES, CHOICES, JUNK, Target, change_bytes
from hypothesis import strategies as st

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
FORMATS = ("onnx", "ort", "pte")
WORDS = (0, 1, 2, 3, 4, 8, 255, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 4, 2**32 - 2**16)
"""Numbers that are put in place of others: offsets and sizes that point back, far away, or nowhere."""


def sound(kind: str) -> bytes:
    """Return the sound program of a format."""
    return (CORPUS / f"anatomy-{kind}" / f"ok-sound.{kind}").read_bytes()


def change_words(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    """Overwrite aligned 32-bit words: flat buffers are made of them."""
    found = bytearray(data)
    for where, which in changes:
        at = where % max(1, len(found) // 4) * 4
        if at + 4 <= len(found):
            found[at : at + 4] = struct.pack("<I", WORDS[which])
    return bytes(found)


def broken(data: bytes) -> st.SearchStrategy[bytes]:
    """Break a program at some words and some bytes."""
    words = st.lists(st.tuples(CHOICES, st.integers(0, len(WORDS) - 1)), max_size=4)
    return st.one_of(
        st.builds(lambda w, b: change_bytes(change_words(data, w), b), words, BYTE_CHANGES),
        st.builds(change_words, st.just(data), words),
        JUNK,
    )


def read(path: Path, kind: str, data: bytes) -> None:
    """Take a program apart, look at every constant in it, and let `doctor` look at the file."""
    from flashbulb.export.anatomy import read as take_apart
    from flashbulb.export.artifact import Artifact, RuntimeFloor
    from flashbulb.export.doctor import look

    path.write_bytes(data)
    artifact = Artifact(
        component="unet",
        backend={"onnx": "ort", "ort": "ort", "pte": "executorch"}[kind],
        format=kind,
        path=path.name,
        files=(),
        size_bytes=len(data),
        sha256="0" * 64,
        precision="float32",
        floor=RuntimeFloor(runtime="onnxruntime", version="1.17"),
        inputs=(),
        outputs=(),
    )
    list(look(path, artifact))
    listing = take_apart(path, kind)
    for constant in listing.constants.values():
        for load in (constant.load, constant.scale, constant.table):
            if load is not None:
                assert isinstance(load(), np.ndarray)


def targets(work: Path) -> list[Any]:
    """Return the readers of programs."""
    from flashbulb.export.anatomy import AnatomyError

    return [
        Target(
            f"anatomy-{kind}",
            partial(read, work / f"anatomy.{kind}", kind),
            (AnatomyError,),
            broken(sound(kind)),
        )
        for kind in FORMATS
    ]


# The sound programs


def write_onnx(path: Path) -> None:
    """Write a convolution and a product with weights that are decoded from a palette and from int8."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    arrays = {
        "kernel": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "bias": np.zeros(4, np.float32),
        "palette": rng.standard_normal(4).astype(np.float16),
        "codes": rng.integers(0, 4, (4, 4)).astype(np.int64),
        "int8": rng.integers(-127, 128, (4, 4)).astype(np.int8),
        "scale": np.full((4, 1), 0.01, np.float32),
    }
    f32, nodes = TensorProto.FLOAT, helper.make_node
    graph = helper.make_graph(
        [
            nodes("Gather", ["palette", "codes"], ["half"], axis=0),
            nodes("Cast", ["half"], ["first"], to=f32),
            nodes("Cast", ["int8"], ["floats"], to=f32),
            nodes("Mul", ["floats", "scale"], ["second"]),
            nodes("Conv", ["x", "kernel", "bias"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            nodes("ReduceMean", ["c"], ["m"], axes=[2, 3], keepdims=0),
            nodes("MatMul", ["m", "first"], ["p"]),
            nodes("MatMul", ["p", "second"], ["y"]),
        ],
        "small",
        [helper.make_tensor_value_info("x", f32, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", f32, [1, 4])],
        [numpy_helper.from_array(v, k) for k, v in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_ort(onnx_path: Path, path: Path) -> None:
    """Write the same network as ONNX Runtime keeps it, without folding its constants."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(str(onnx_path), options, providers=["CPUExecutionProvider"])


def write_pte(path: Path) -> None:
    """Write a convolution and a linear layer for XNNPACK."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(64, 4)
    ).eval()
    exported = torch.export.export(network, (torch.zeros(1, 3, 4, 4),))
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    path.write_bytes(program.to_executorch().buffer)


def main() -> None:
    """Write the sound programs."""
    paths = {kind: CORPUS / f"anatomy-{kind}" / f"ok-sound.{kind}" for kind in FORMATS}
    for path in paths.values():
        path.parent.mkdir(exist_ok=True)
    write_onnx(paths["onnx"])
    write_ort(paths["onnx"], paths["ort"])
    write_pte(paths["pte"])


if __name__ == "__main__":
    main()
