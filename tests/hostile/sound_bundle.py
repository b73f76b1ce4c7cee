"""A small sound bundle without any model in it, to be broken in every way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flashbulb.distill.components import TensorSpec
from flashbulb.distill.lineage import Lineage, LineageEntry
from flashbulb.distill.schedule import OneStep
from flashbulb.export.artifact import Artifact, Delegation, RuntimeFloor, digest, record, records
from flashbulb.export.bundle import (
    Gate,
    Golden,
    GoldenCase,
    ImageSpec,
    Licence,
    Manifest,
    NoiseSpec,
    Sampling,
    Sanity,
    Source,
    TokenizerInfo,
)

STEP = OneStep(timestep=999, alpha=0.0683, sigma=0.9977, prediction_type="v_prediction", latent_scale=0.5)


def write_files(root: Path) -> None:
    files = {
        "onnx/unet.onnx": b"onnx unet",
        "onnx/text_encoder.onnx": b"onnx text",
        "onnx/vae_decoder.onnx": b"onnx vae",
        "coreml/generator.mlpackage/Manifest.json": b"{}",
        "coreml/generator.mlpackage/Data/com.apple.CoreML/weights/weight.bin": b"\x80\x02\x00\x00\x02\x00",
        "tokenizer/tokenizer.json": b"{}",
        "golden/vectors.safetensors": b"vectors",
        **{f"golden/{i}.png": b"png %d" % i for i in range(4)},
        "licences/LICENSE": b"Do what you like.",
    }
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def artifact(root: Path, component: Any, backend: Any, file_format: Any) -> Artifact:
    folder = "onnx" if backend == "ort" else backend
    files = records(root / folder / f"{component}.{file_format}", root)
    return Artifact(
        component=component,
        backend=backend,
        format=file_format,
        path=f"{folder}/{component}.{file_format}",
        precision="float32" if backend == "ort" else "float16",
        inputs=(TensorSpec(name="sample", dtype="float32", shape=(1, 4, 8, 8)),),
        outputs=(TensorSpec(name="out", dtype="float32", shape=(1, 4, 8, 8)),),
        files=files,
        sha256=digest(files),
        size_bytes=sum(f.size_bytes for f in files),
        floor=RuntimeFloor(runtime="onnxruntime", version="1.17", platforms={"ios": "16.0"}),
        encodings={"palettize6": 3},
        delegation=Delegation(
            delegate="X", delegates=1, delegated_ops=9, portable_ops=1, portable={"embed": 1}
        ),
    )


def manifest_of(root: Path) -> Manifest:
    artifacts = [artifact(root, c, "ort", "onnx") for c in ("text_encoder", "unet", "vae_decoder")]
    artifacts.append(artifact(root, "generator", "coreml", "mlpackage"))
    own = {f.path for a in artifacts for f in a.files}
    rest = [p for p in sorted(root.rglob("*")) if p.is_file() and p.relative_to(root).as_posix() not in own]
    cz, cm = STEP.coefficients()
    cases = tuple(
        GoldenCase(prompt=f"prompt {i}", seed=i, token_ids={"input_ids": (1, i, 2)}, png=f"golden/{i}.png")
        for i in range(4)
    )
    return Manifest(
        name="sample",
        created="2026-01-02T00:00:00+00:00",
        versions={"flashbulb": "0"},
        source=Source(checkpoint="somewhere", sha256="0" * 64),
        image=ImageSpec(height=64, width=64, latent_shape=(4, 8, 8)),
        sampling=Sampling(one_step=STEP, noise_coefficient=cz, output_coefficient=cm, folded_timestep=999),
        noise=NoiseSpec(shape=(1, 4, 8, 8)),
        tokenizers=(
            TokenizerInfo(
                folder="tokenizer",
                input="input_ids",
                length=3,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=2,
            ),
        ),
        artifacts=tuple(artifacts),
        golden=Golden(cases=cases),
        gates=(Gate(backend="ort", precision="float32", quantity="x0", metric="snr_db", minimum_db=66.5),),
        sanity=Sanity(std_min=0.1, prompt_rms_min=0.01, noise_rms_min=0.02),
        licences=(Licence(subject="weights", identifier="Apache-2.0", file="licences/LICENSE"),),
        lineage=Lineage(entries=(LineageEntry(stage="distill", config={"steps": 3}, metrics={"fd": 1.5}),)),
        files=tuple(record(p, root) for p in rest),
    )
