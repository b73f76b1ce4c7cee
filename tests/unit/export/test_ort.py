"""ONNX Runtime's artifacts compute what PyTorch computes, from the weights that were stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.schedule import one_step
from flashbulb.export import encodings
from flashbulb.export.artifact import Artifact
from flashbulb.export.backends import Ort
from flashbulb.export.bundle import Bundle
from flashbulb.export.graph import Graph, build

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


def snr_db(wanted: Any, got: Any) -> float:
    a, b = (np.asarray(x, dtype=np.float64) for x in (wanted, got))
    error = float(((a - b) ** 2).sum())
    return float("inf") if error == 0 else float(10 * np.log10((a**2).sum() / error))


def call(path: Path, found: Artifact, given: dict[str, Any]) -> dict[str, Any]:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {s.name: given[s.name] for s in found.inputs})
    return dict(zip([s.name for s in found.outputs], outputs, strict=True))


@pytest.mark.parametrize("file_format", ["onnx", "ort"])
def test_every_program_gives_the_golden_vectors(ort_bundle: Bundle, file_format: str) -> None:
    found = [a for a in ort_bundle.manifest.artifacts if a.format == file_format]
    assert {a.component for a in found} == {"text_encoder", "unet", "vae_decoder", "generator"}
    for case in ort_bundle.golden():
        for artifact in found:
            for name, got in call(ort_bundle.path(artifact), artifact, case).items():
                assert snr_db(case[name], got) > 100, f"{artifact.path} {name}"


def test_onnx_tells_nothing_about_the_machine(ort_bundle: Bundle) -> None:
    for artifact in ort_bundle.manifest.artifacts:
        data = ort_bundle.path(artifact).read_bytes()
        assert b"site-packages" not in data
        assert str(Path.home()).encode() not in data


def test_export_is_deterministic(tiny_sticker: Path, tmp_path: Path) -> None:
    backend, digests = Ort(generator=False, ort_format=False), []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        graph = graphs(tiny_sticker, backend)["text_encoder"]
        digests.append(backend.lower([graph], {}, tmp_path / name)[0].sha256)
    assert digests[0] == digests[1]


def test_encoded_weights_are_stored_as_codes_and_decode_exactly(
    encoded_checkpoint: Path, tmp_path: Path
) -> None:
    backend, encoded = Ort(), encodings.read(encoded_checkpoint)
    made = graphs(encoded_checkpoint, backend)
    for name in ("text_encoder", "unet", "vae_decoder"):
        graph = made[name]
        artifacts = backend.lower([graph], encoded, tmp_path)
        given = dict(zip([s.name for s in graph.inputs], graph.example(), strict=True))
        with torch.no_grad():
            wanted = graph.module(*given.values())
        for artifact in artifacts:
            got = call(tmp_path / artifact.path, artifact, {n: t.numpy() for n, t in given.items()})
            assert snr_db(wanted, got[graph.outputs[0].name]) > 110, artifact.path
            assert sum(artifact.encodings.values()) == len(encodings.of_graph(graph, encoded))
        model = onnx.load(tmp_path / artifacts[0].path)
        assert stored_codes(model) == sum(e.codes.size for e in encodings.of_graph(graph, encoded).values())


def test_floats_instead_of_codes_draw_the_same(encoded_checkpoint: Path, tmp_path: Path) -> None:
    backend, encoded = Ort(codes=False), encodings.read(encoded_checkpoint)
    graph = graphs(encoded_checkpoint, backend)["vae_decoder"]
    artifacts = backend.lower([graph], encoded, tmp_path)
    given = dict(zip([s.name for s in graph.inputs], graph.example(), strict=True))
    with torch.no_grad():
        wanted = graph.module(*given.values())
    got = call(tmp_path / artifacts[0].path, artifacts[0], {n: t.numpy() for n, t in given.items()})
    assert snr_db(wanted, got[graph.outputs[0].name]) > 110
    assert stored_codes(onnx.load(tmp_path / artifacts[0].path)) == 0


def stored_codes(model: Any) -> int:
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.name.endswith(".codes"))


def test_half_storage_is_lossless(tiny_sticker: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_sticker)
    step = one_step(checkpoint.config("scheduler"), checkpoint.config("vae"))
    graph = next(g for g in build(checkpoint, step, Ort().rewrite()) if g.component == "text_encoder")
    with torch.no_grad():
        for parameter in graph.module.parameters():
            parameter.copy_(parameter.half().float())
    outputs, sizes = [], []
    for weights in ("float32", "lossless_float16"):
        (tmp_path / weights).mkdir()
        backend = Ort(weights=weights, ort_format=False)  # type: ignore[arg-type]
        artifact = backend.lower([graph], {}, tmp_path / weights)[0]
        given = {"input_ids": graph.example()[0].numpy()}
        outputs.append(call(tmp_path / weights / artifact.path, artifact, given)["hidden"])
        sizes.append(artifact.size_bytes)
    assert np.array_equal(*outputs)
    assert sizes[1] < 0.75 * sizes[0]


def graphs(folder: Path, backend: Ort) -> dict[str, Graph]:
    checkpoint = Checkpoint.open(folder)
    step = one_step(checkpoint.config("scheduler"), checkpoint.config("vae"))
    return {str(g.component): g for g in build(checkpoint, step, backend.rewrite())}


def test_optimum_opens_its_folder_and_draws_the_pipelines_picture(
    ort_bundle: Bundle, tiny_sticker: Path
) -> None:
    optimum = pytest.importorskip("optimum.onnxruntime")
    case = ort_bundle.golden()[0]
    given = {
        "prompt": ort_bundle.manifest.golden.cases[0].prompt,
        "num_inference_steps": 1,
        "guidance_scale": 0.0,
        "latents": torch.from_numpy(case["noise"]),
        "output_type": "np",
    }
    theirs = optimum.ORTStableDiffusionPipeline.from_pretrained(ort_bundle.root / "optimum")
    wanted = Checkpoint.open(tiny_sticker).pipeline()(**given).images[0]
    got = theirs(**given).images[0]
    assert float(wanted.std()) > 0.01
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_optimum_unet_follows_its_timestep(ort_bundle: Bundle, tiny_sticker: Path) -> None:
    unet = Checkpoint.open(tiny_sticker).load("unet")
    case = ort_bundle.golden()[0]
    session = runtime.InferenceSession(str(ort_bundle.root / "optimum/unet/model.onnx"))
    for timestep in (1, 499):
        given = {"sample": case["sample"], "encoder_hidden_states": case["hidden"]}
        got = session.run(None, {**given, "timestep": np.array(timestep, dtype=np.int64)})[0]
        sample, hidden = (torch.from_numpy(case[n]) for n in ("sample", "hidden"))
        with torch.no_grad():
            wanted = unet(sample, timestep, hidden).sample
        assert snr_db(wanted, got) > 90
