"""Codes are written in the form of each opset, and decode to the checkpoint's weights when they run."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from flashbulb.compress.methods import Palettize, QuantizeInt8
from flashbulb.export.artifact import Artifact
from flashbulb.export.backends import Coreml
from flashbulb.export.graph import Graph
from flashbulb.runtimes.bisect.reference import snr_db
from flashbulb.runtimes.engines.mil import Program
from flashbulb.runtimes.engines.mil.listing import read_package_listing

pytest.importorskip("coremltools")


@pytest.fixture(scope="module")
def unet(tiny_sticker: Path) -> Graph:
    """A UNet, into which each test writes what its codes decode to."""
    from flashbulb.distill.checkpoint import Checkpoint
    from flashbulb.distill.schedule import one_step
    from flashbulb.export.graph import build

    checkpoint = Checkpoint.open(tiny_sticker)
    step = one_step(checkpoint.config("scheduler"), checkpoint.config("vae"))
    return next(g for g in build(checkpoint, step, Coreml().rewrite()) if g.component == "unet")


METHODS = (Palettize(bits=6, max_rounds=5), Palettize(bits=4, max_rounds=5), QuantizeInt8())


def lowered(graph: Graph, root: Path, target: Any) -> tuple[Artifact, Path]:
    """Encode every weight of two and more axes, by all methods in turns, and write the package."""
    encoded, methods = {}, itertools.cycle(METHODS)
    for name, (component, piece) in graph.origins.items():
        weight = graph.module.get_parameter(name)
        if weight.ndim >= 2 and piece.rows is None and piece.columns is None:
            found = next(methods).encode(weight.detach().numpy())
            encoded[f"{component}/{piece.weight}"] = found
            weight.data = torch.from_numpy(found.decode())
    (artifact,) = Coreml(target=target, precision="float32").lower([graph], encoded, root)
    return artifact, root / artifact.path


@pytest.mark.slow
@pytest.mark.parametrize("target", ["iOS16", "iOS17", "iOS18"])
def test_a_compressed_unet_runs_as_its_weights_decode(unet: Graph, tmp_path: Path, target: str) -> None:
    artifact, package = lowered(unet, tmp_path, target)
    given = unet.example()
    with torch.no_grad():
        wanted = unet.module(*given).numpy()
    names = [s.name for s in unet.inputs]
    found = Program.load(package).predict({n: g.numpy() for n, g in zip(names, given, strict=True)})
    assert snr_db(wanted, found[unet.outputs[0].name]) > 100
    constants = read_package_listing(package).constants.values()
    sizes = Counter(c.table().size for c in constants if c.table is not None)
    assert min(artifact.encodings[k] for k in ("palettize6", "palettize4", "int8_weight_only")) >= 10
    assert sizes == {64: artifact.encodings["palettize6"], 16: artifact.encodings["palettize4"]}
