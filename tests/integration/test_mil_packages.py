"""Every node and constant of the packages that we export is what coremltools makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mil_nodes import Arrays, compare_constants, constants, judge_nodes, mil_function, run
from mutants.small import compressed, write_least

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.schedule import one_step
from flashbulb.export import encodings
from flashbulb.export.artifact import Artifact
from flashbulb.export.backends import Coreml
from flashbulb.export.graph import build

ct = pytest.importorskip("coremltools")
pytestmark = pytest.mark.slow
Packages = dict[str, tuple[Path, Artifact]]
LEAST = {"text_encoder": 50, "unet": 100, "vae_decoder": 50, "generator": 200}
"""Nodes of each that coremltools can infer, at least."""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """A small student, its UNet as palettes and the rest as int8, lowered in fp16 as an export does."""
    root = tmp_path_factory.mktemp("packages")
    checkpoint = Checkpoint.open(compressed(write_least(root / "checkpoint"), "mixed"))
    step, backend = one_step(checkpoint.config("scheduler"), checkpoint.config("vae")), Coreml()
    graphs = list(build(checkpoint, step, backend.rewrite()))
    artifacts = backend.lower(graphs, encodings.read(checkpoint.path), root)
    return {str(a.component): (root / a.path, a) for a in artifacts}


def inputs(artifact: Artifact) -> Arrays:
    rng = np.random.default_rng(0)
    return {
        s.name: rng.integers(0, 90, s.shape).astype(np.int32)
        if s.dtype == "int32"
        else rng.standard_normal(s.shape).astype(np.float32)
        for s in artifact.inputs
    }


@pytest.mark.parametrize("name", list(LEAST))
def test_every_node_and_constant_is_what_coremltools_makes_of_it(packages: Packages, name: str) -> None:
    path, artifact = packages[name]
    function = mil_function(ct.models.MLModel(str(path), skip_model_load=True))
    _, seen = run(path, inputs(artifact))
    judged = judge_nodes(function, seen)
    assert len(judged) >= LEAST[name], len(judged)
    assert max(judged.values()) < 5e-6, max(judged, key=lambda n: judged[n])
    changed = list(judged)[-1]
    seen[changed] = seen[changed] * np.float32(1.001)
    assert judge_nodes(function, seen)[changed] > 5e-6  # the same comparison sees a thousandth
    count = compare_constants(function, constants(path))
    assert count["const"] > 50
    assert sum(n for kind, n in count.items() if kind != "const") >= sum(artifact.encodings.values()) > 0
