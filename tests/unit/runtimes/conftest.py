"""A bundle whose components are a few lines of numpy: every gate is asked, and broken, in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flashbulb.distill.components import TensorSpec
from flashbulb.distill.lineage import Lineage, LineageEntry
from flashbulb.distill.schedule import OneStep
from flashbulb.export.artifact import Artifact, RuntimeFloor, digest, record, records
from flashbulb.export.bundle import (
    Bundle,
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
    read_bundle,
    write_manifest,
)
from flashbulb.export.noise import gaussian
from flashbulb.runtimes.engines.base import Engine, Session
from flashbulb.runtimes.gates import bundle_gates, engine_gates
from flashbulb.runtimes.pipeline import Pipeline, Tokenizer, save_png
from flashbulb.runtimes.records import SanityRecord

LENGTH, WIDTH, LATENT, SIZE = 12, 6, (4, 8, 8), 16
PROMPTS = ("a red apple", "a blue cat", "", "a green frog 🐸 京")
STEP = OneStep(timestep=999, alpha=0.0683, sigma=0.9977, prediction_type="v_prediction", latent_scale=0.5)

IDS = TensorSpec(name="input_ids", dtype="int32", shape=(1, LENGTH))
HIDDEN = TensorSpec(name="hidden", dtype="float32", shape=(1, LENGTH, WIDTH))
SAMPLE = TensorSpec(name="sample", dtype="float32", shape=(1, *LATENT))
OUT = TensorSpec(name="out", dtype="float32", shape=(1, *LATENT))
LATENT_SPEC = TensorSpec(name="latent", dtype="float32", shape=(1, *LATENT))
IMAGE = TensorSpec(name="image", dtype="float32", shape=(1, 3, SIZE, SIZE))
NOISE = TensorSpec(name="noise", dtype="float32", shape=(1, *LATENT))
CONTRACTS = {
    "text_encoder": ((IDS,), (HIDDEN,)),
    "unet": ((SAMPLE, HIDDEN), (OUT,)),
    "vae_decoder": ((LATENT_SPEC,), (IMAGE,)),
    "generator": ((IDS, NOISE), (IMAGE,)),
}


def text_encoder(ids: np.ndarray) -> np.ndarray:
    table = np.random.default_rng(1).standard_normal((1024, WIDTH)).astype(np.float32)
    return table[ids]


def unet(sample: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    weight = np.random.default_rng(2).standard_normal((WIDTH, 4)).astype(np.float32)
    text = np.tanh(hidden.mean(1) @ weight)[:, :, None, None]
    ramp = np.linspace(-1.0, 1.0, 8, dtype=np.float32)
    return (-text * ramp - 0.5 * np.roll(sample, 1, -1)).astype(np.float32)


def vae_decoder(latent: np.ndarray) -> np.ndarray:
    image = latent[:, :3].repeat(2, axis=2).repeat(2, axis=3)
    return np.clip(image * 0.25 + 0.5, 0.0, 1.0).astype(np.float32)


def generator(ids: np.ndarray, noise: np.ndarray) -> np.ndarray:
    cz, cm = STEP.coefficients()
    x0 = np.float32(cz) * noise + np.float32(cm) * unet(noise, text_encoder(ids))
    return vae_decoder(x0 / np.float32(STEP.latent_scale))


SOUND: dict[str, Callable[..., np.ndarray]] = {
    "text_encoder": text_encoder,
    "unet": unet,
    "vae_decoder": vae_decoder,
    "generator": generator,
}


class NumpyEngine(Engine, frozen=True, tag="ort"):
    """Stands in for a runtime; ``fault`` replaces one component."""

    fault: Mapping[str, Callable[..., np.ndarray]] = {}

    def load(self, bundle: Bundle, *, threads: int = 1, components: Sequence[str] | None = None) -> Session:
        return NumpySession(self, self.artifacts(bundle, components), {**SOUND, **self.fault})


class NumpySession(Session):
    def __init__(
        self, engine: Engine, artifacts: Mapping[str, Artifact], functions: Mapping[str, Any]
    ) -> None:
        super().__init__(engine, artifacts)
        self.functions = functions

    def call(self, component: str, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return [self.functions[component](*arrays)]


def write_tokenizer(folder: Path) -> TokenizerInfo:
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    bpe = Fast(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    bpe.train_from_iterator(["a red apple", "a blue cat", "a green frog"] * 3, trainer)
    folder.mkdir(parents=True)
    bpe.save(str(folder / "tokenizer.json"))
    start, end = (bpe.token_to_id(t) for t in special)
    return TokenizerInfo(
        folder="tokenizer",
        input="input_ids",
        length=LENGTH,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )


def write_bundle(root: Path) -> Path:
    from safetensors.numpy import save_file

    info = write_tokenizer(root / "tokenizer")
    artifacts = []
    for name, (inputs, outputs) in CONTRACTS.items():
        path = root / "onnx" / f"{name}.ort"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(f"numpy {name}".encode())
        files = records(path, root)
        artifacts.append(
            Artifact(
                component=name,  # type: ignore[arg-type]
                backend="ort",
                format="ort",
                path=f"onnx/{name}.ort",
                precision="float32",
                inputs=inputs,
                outputs=outputs,
                files=files,
                sha256=digest(files),
                size_bytes=sum(f.size_bytes for f in files),
                floor=RuntimeFloor(runtime="onnxruntime", version="1.18"),
            )
        )
    cases, tensors = [], {}
    for index, prompt in enumerate(PROMPTS):
        ids = Tokenizer(info, root)(prompt)
        noise = gaussian(index, (1, *LATENT))
        hidden, cz, cm = text_encoder(ids), *STEP.coefficients()
        out = unet(noise, hidden)
        x0 = np.float32(cz) * noise + np.float32(cm) * out
        latent = x0 / np.float32(STEP.latent_scale)
        image = vae_decoder(latent)
        found = {"input_ids": ids, "noise": noise, "sample": noise, "hidden": hidden, "out": out, "x0": x0}
        found |= {"latent": latent, "image": image}
        tensors |= {f"{index}.{k}": np.ascontiguousarray(v) for k, v in found.items()}
        save_png(image[0].transpose(1, 2, 0), root / f"golden/{index}.png")
        token_ids = {"input_ids": tuple(int(i) for i in ids[0])}
        cases.append(GoldenCase(prompt=prompt, seed=index, token_ids=token_ids, png=f"golden/{index}.png"))
    save_file(tensors, root / "golden/vectors.safetensors")
    (root / "licences").mkdir()
    (root / "licences/weights.txt").write_text("Do what you like.\n")
    others = sorted(p for p in root.rglob("*") if p.is_file() and p.parent.name != "onnx")
    cz, cm = STEP.coefficients()
    entry = LineageEntry(
        stage="distill", config={"steps": 3}, created="2026-01-01T00:00:00+00:00", metrics={"fd": 12.5}
    )
    gates = [("text_encoder", "snr_db"), ("unet", "snr_db"), ("x0", "snr_db")]
    gates += [("vae_decoder", "psnr_db"), ("image", "psnr_db"), ("generator", "psnr_db")]
    manifest = Manifest(
        name="numpy sticker",
        created="2026-01-02T00:00:00+00:00",
        versions={"flashbulb": "0"},
        source=Source(checkpoint="nowhere/at-all", sha256="0" * 64),
        image=ImageSpec(height=SIZE, width=SIZE, latent_shape=LATENT),
        sampling=Sampling(one_step=STEP, noise_coefficient=cz, output_coefficient=cm, folded_timestep=999),
        noise=NoiseSpec(shape=(1, *LATENT)),
        tokenizers=(info,),
        artifacts=tuple(artifacts),
        golden=Golden(cases=tuple(cases)),
        gates=tuple(
            Gate(backend="ort", precision="float32", quantity=q, metric=m, minimum_db=60.0)  # type: ignore[arg-type]
            for q, m in gates
        ),
        sanity=floors(tensors),
        licences=(Licence(subject="weights", identifier="CC0-1.0", file="licences/weights.txt"),),
        lineage=Lineage(entries=(entry,)),
        files=tuple(record(p, root) for p in others),
    )
    write_manifest(manifest, root)
    return root


def floors(tensors: Mapping[str, np.ndarray]) -> Sanity:
    """Half of what the sound pictures show, rounded down."""
    ids, noise = ([tensors[f"{i}.{name}"] for i in (0, 1)] for name in ("input_ids", "noise"))
    first = generator(ids[0], noise[0])
    others = generator(ids[1], noise[0]), generator(ids[0], noise[1])
    prompt, seed = (float(np.sqrt(np.mean((first - other) ** 2))) for other in others)
    std = min(float(tensors[f"{i}.image"].std()) for i in range(len(PROMPTS)))
    halves = [float(np.floor(value / 2 * 1e6) / 1e6) for value in (std, prompt, seed)]
    return Sanity(std_min=halves[0], prompt_rms_min=halves[1], noise_rms_min=halves[2])


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A sound bundle, free to be broken."""
    root = tmp_path / "bundle"
    root.mkdir()
    return read_bundle(write_bundle(root))


@pytest.fixture
def pipeline(bundle: Bundle) -> Pipeline:
    return Pipeline(bundle, NumpyEngine().load(bundle))


def edit_manifest(bundle: Bundle, change: Callable[[dict[str, Any]], None]) -> Bundle:
    """Return the bundle with its manifest changed on disk."""
    path = bundle.root / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return read_bundle(bundle.root)


@pytest.fixture
def world() -> SimpleNamespace:
    """The pieces of the numpy model, for tests that break one."""
    return SimpleNamespace(
        Engine=NumpyEngine,
        sound=SOUND,
        text_encoder=text_encoder,
        unet=unet,
        vae_decoder=vae_decoder,
        generator=generator,
        edit=edit_manifest,
        failed=failed,
        prompts=PROMPTS,
        length=LENGTH,
    )


def failed(bundle: Bundle, **fault: Callable[..., np.ndarray]) -> dict[str, str]:
    """Return gate or quantity -> sentence of everything that fails with some components replaced."""
    found = {}
    for item in (*bundle_gates(bundle), *engine_gates(bundle, NumpyEngine(fault=fault), 1)):
        if item.verdict == "fail":
            found[item.gate if isinstance(item, SanityRecord) else item.quantity] = item.sentence
    return found
