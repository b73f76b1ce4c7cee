"""What the ExecuTorch runtime records of itself is what `check --bisect` interprets in its place.

Its events (ETDump, read by its Inspector) name every kernel inside a delegate and time it, but hold no
tensor of it: of a component that is one delegate they can name no first bad operation.  They do say
that the graph read from the file is the one that ran.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashbulb.export.anatomy.pte import read_method
from flashbulb.export.bundle import read_bundle
from flashbulb.runtimes.bisect.stage import golden_inputs

pytest.importorskip("executorch")

KERNELS = {
    "Add": "Add",
    "Batch Matrix Multiply": "BatchMatrixMultiply",
    "Convolution": "matrix product or convolution",
    "Conv2d": "matrix product or convolution",
    "Copy": "Concatenate2",
    "FullyConnected": "matrix product or convolution",
    "Fully Connected": "matrix product or convolution",
    "GELU": "Gelu",
    "GlobalAvgPooling2d": "mean",
    "Mean": "mean",
    "Mean Squared": "mean",
    "Reciprocal Square Root": "ReciprocalSquareRoot",
}
"""Two names of one thing: the record's and the file's; XNNPACK runs a 1 x 1 convolution as a product."""

ARRANGED = {"Static Reshape", "StaticReshape", "Transpose", "StaticTranspose"}
"""XNNPACK leaves these out where nothing need be moved."""


def events(path: Path, method: str, inputs: list[Any], scratch: Path) -> list[Any]:
    """Run a method with the wheel's runtime and return its events."""
    from executorch.devtools import Inspector
    from executorch.extension.pybindings import portable_lib

    data = path.read_bytes()  # must outlive the module
    module = portable_lib._load_for_executorch_from_buffer(
        data, enable_etdump=True, debug_buffer_size=1 << 26
    )
    module.run_method(method, inputs)
    dump, tensors = scratch / "etdump", scratch / "tensors"
    module.write_etdump_result_to_file(str(dump), str(tensors))
    blocks = Inspector(etdump_path=str(dump), debug_buffer_path=str(tensors)).event_blocks
    return [event for block in blocks for event in block.events]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text_encoder", "unet", "vae_decoder"])
def test_the_runtime_runs_the_graph_that_is_interpreted(programs: Path, tmp_path: Path, kind: str) -> None:
    import torch

    bundle = read_bundle(programs)
    artifact = next(a for a in bundle.manifest.artifacts if (a.format, a.component) == ("pte", kind))
    inputs = [torch.from_numpy(np.ascontiguousarray(a)) for a in golden_inputs(bundle, artifact).values()]
    path = bundle.path(artifact)
    ran = [e for e in events(path, artifact.method, inputs, tmp_path) if e.is_delegated_op]
    assert ran
    assert not any(e.debug_data for e in ran)  # once it has some, --bisect can use them
    graphs = [call.graph for call in read_method(path, artifact.method).calls if call.graph]
    read = Counter(step.op for graph in graphs for step in graph.steps.values())
    squares = sum(e.name.startswith("Mean Squared") for e in ran)
    read["Multiply"] -= squares  # a square and its mean are one kernel
    kernels = Counter(re.sub(r" \(.*| #.*", "", e.name) for e in ran)
    assert named(kernels) == named(read)


def named(counts: Counter[str]) -> Counter[str]:
    total: Counter[str] = Counter()
    for name, count in counts.items():
        if name not in ARRANGED:
            total[KERNELS.get(name, name)] += count
    return +total
