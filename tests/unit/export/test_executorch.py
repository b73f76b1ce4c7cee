"""ExecuTorch's program computes what PyTorch computes, almost all of it in one delegate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.schedule import one_step
from flashbulb.export import encodings
from flashbulb.export.backends import Executorch
from flashbulb.export.backends.base import BackendError
from flashbulb.export.bundle import read_bundle
from flashbulb.export.graph import Graph, build

pytest.importorskip("executorch")


def graphs(folder: Path, *, generator: bool = False) -> list[Graph]:
    checkpoint = Checkpoint.open(folder)
    step = one_step(checkpoint.config("scheduler"), checkpoint.config("vae"))
    return list(build(checkpoint, step, Executorch().rewrite(), generator=generator))


def snr_db(wanted: Any, got: Any) -> float:
    a, b = (np.asarray(x, dtype=np.float64) for x in (wanted, got))
    error = float(((a - b) ** 2).sum())
    return float("inf") if error == 0 else float(10 * np.log10((a**2).sum() / error))


@pytest.mark.slow
def test_one_program_with_a_delegate_per_method(tiny_sticker: Path, sticker_bundle: Path) -> None:
    from executorch.runtime import Runtime

    bundle, made = read_bundle(sticker_bundle), graphs(tiny_sticker, generator=True)
    artifacts = {a.component: a for a in bundle.manifest.artifacts if a.backend == "executorch"}
    assert len({a.path for a in artifacts.values()}) == 1
    assert set(artifacts) == {graph.component for graph in made}
    program = Runtime.get().load_program(str(bundle.path(artifacts["unet"])))
    for graph in made:
        artifact = artifacts[graph.component]
        assert artifact.delegation is not None
        assert artifact.delegation.delegates == 1
        assert artifact.delegation.coverage() > 0.95
        given = graph.example()
        with torch.no_grad():
            wanted = graph.module(*given)
        got = program.load_method(graph.component).execute(list(given))[0]
        assert snr_db(wanted, got) > 100, graph.component


def test_codes_are_refused_rather_than_computed_wrongly(encoded_checkpoint: Path, tmp_path: Path) -> None:
    encoded = encodings.read(encoded_checkpoint)
    with pytest.raises(encodings.NotExpressible, match="allow_dequantized"):
        Executorch().lower(graphs(encoded_checkpoint), encoded, tmp_path)


def test_low_coverage_is_an_error(tiny_sticker: Path, tmp_path: Path) -> None:
    text = [g for g in graphs(tiny_sticker) if g.component == "text_encoder"]
    with pytest.raises(BackendError, match="wanted at least 100%"):
        Executorch(coverage_floor=1.0).lower(text, {}, tmp_path)
