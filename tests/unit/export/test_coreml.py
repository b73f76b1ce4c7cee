"""Core ML packages hold the given codes and keep the affine in fp32; they run on Apple systems only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.schedule import one_step
from flashbulb.export import encodings
from flashbulb.export.artifact import Artifact
from flashbulb.export.backends import Coreml
from flashbulb.export.backends.coreml import quiet
from flashbulb.export.coreml_passes import pipeline
from flashbulb.export.doctor import examine
from flashbulb.export.graph import Graph, build

ct = pytest.importorskip("coremltools")


@pytest.fixture(scope="module")
def graphs(encoded_checkpoint: Path) -> dict[str, Graph]:
    checkpoint = Checkpoint.open(encoded_checkpoint)
    step = one_step(checkpoint.config("scheduler"), checkpoint.config("vae"))
    return {str(g.component): g for g in build(checkpoint, step, Coreml().rewrite())}


@pytest.fixture(scope="module")
def packages(
    graphs: dict[str, Graph], encoded_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Artifact]]:
    root = tmp_path_factory.mktemp("coreml")
    chosen = [graphs["text_encoder"], graphs["generator"]]
    found = Coreml().lower(chosen, encodings.read(encoded_checkpoint), root)
    return root, {str(a.component): a for a in found}


def operations(path: Path) -> list[Any]:
    model = ct.models.MLModel(str(path), skip_model_load=True)
    functions = model.get_spec().mlProgram.functions
    return [o for f in functions.values() for b in f.block_specializations.values() for o in b.operations]


@pytest.mark.slow
def test_codes_decode_to_the_checkpoints_weights(
    packages: tuple[Path, dict[str, Artifact]], graphs: dict[str, Graph], encoded_checkpoint: Path
) -> None:
    root, artifacts = packages
    encoded = encodings.read(encoded_checkpoint)
    with quiet():
        model = ct.models.MLModel(str(root / artifacts["generator"].path), skip_model_load=True)
        plain = ct.optimize.coreml.decompress_weights(model)
    program = plain._mil_program.functions["main"]
    stored = {o.outputs[0].val.tobytes() for o in program.operations if is_weight(o)}
    wanted = encodings.of_graph(graphs["generator"], encoded)
    assert len(wanted) > 30
    for name, weight in wanted.items():
        values = weight.decode().astype(np.float16)
        forms = {values.tobytes(), np.ascontiguousarray(values.T).tobytes()}
        assert forms & stored, f"{name} is not what its codes say"


def is_weight(op: Any) -> bool:
    return op.op_type == "const" and getattr(op.outputs[0].val, "ndim", 0) >= 2


@pytest.mark.slow
def test_one_constexpr_per_encoded_weight(packages: tuple[Path, dict[str, Artifact]]) -> None:
    root, artifacts = packages
    for artifact in artifacts.values():
        kinds = [o.type for o in operations(root / artifact.path)]
        assert kinds.count("constexpr_lut_to_dense") == artifact.encodings.get("palettize6", 0)
        assert kinds.count("constexpr_affine_dequantize") == artifact.encodings.get("int8_weight_only", 0)


@pytest.mark.slow
def test_the_affine_stays_in_fp32(packages: tuple[Path, dict[str, Artifact]]) -> None:
    root, artifacts = packages
    ops = operations(root / artifacts["generator"].path)
    types = {o.outputs[0].name: o.outputs[0].type.tensorType.dataType for o in ops if o.outputs}
    producers = [
        o for o in ops if any(a.name.startswith("affine_") for v in o.inputs.values() for a in v.arguments)
    ]
    adds = [o for o in producers if o.type == "add"]
    assert len(adds) == 1
    assert types[adds[0].outputs[0].name] == 11  # FLOAT32
    assert not [o for o in producers if o.type == "cast"]


@pytest.mark.parametrize(("passes", "epsilon"), [(pipeline(ct), 1e-12), (ct.PassPipeline(), 1e-5)])
def test_an_affine_as_a_normalisation_adds_nothing_under_its_root(passes: Any, epsilon: float) -> None:
    """coremltools alone adds its default."""
    import torch

    class Affine(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(x) * torch.arange(1.0, 5.0).view(1, 4, 1, 1) + torch.ones(1, 4, 1, 1)

    traced = torch.jit.trace(Affine(), torch.zeros(1, 4, 8, 8))
    kinds = {"minimum_deployment_target": ct.target.iOS16, "compute_precision": ct.precision.FLOAT32}
    inputs = [ct.TensorType(name="x", shape=(1, 4, 8, 8))]
    with quiet():
        model = ct.convert(traced, inputs=inputs, pass_pipeline=passes, skip_model_load=True, **kinds)
    (norm,) = model._mil_program.functions["main"].find_ops(op_type="batch_norm")
    assert norm.epsilon.val == np.float32(epsilon)


@pytest.mark.slow
def test_doctor_finds_no_fp16_trouble(packages: tuple[Path, dict[str, Artifact]]) -> None:
    from types import SimpleNamespace

    root, artifacts = packages
    bundle: Any = SimpleNamespace(path=lambda a: root / a.path)
    for artifact in artifacts.values():
        findings = list(examine(bundle, artifact))
        assert not [f for f in findings if f.severity != "info"], findings
        kinds = {o.type for o in operations(root / artifact.path)}
        assert "inverse" not in kinds  # it adds 1e-4 to what it inverts


def test_unknown_precision_of_an_encoding_is_refused(graphs: dict[str, Graph], tmp_path: Path) -> None:
    from flashbulb.compress.encoding import EncodedTensor, Encoding

    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    shape = tuple(graphs["text_encoder"].module.get_parameter(name).shape)
    single = EncodedTensor(
        encoding=Encoding(kind="float32", bits=32, granularity="per_tensor", shape=shape),
        codes=np.zeros(shape),
    )
    with pytest.raises(encodings.NotExpressible, match="float32"):
        Coreml().lower([graphs["text_encoder"]], {f"text_encoder/{name}": single}, tmp_path)
