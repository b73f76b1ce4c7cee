"""Export a checkpoint: lower every component with every backend, and write a bundle that proves itself."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import msgspec

from flashbulb.distill.checkpoint import Checkpoint, replace_folder
from flashbulb.distill.schedule import OneStep, one_step
from flashbulb.export import structure
from flashbulb.export.artifact import Artifact, record
from flashbulb.export.backends import AnyBackend, Coreml, Executorch, Ort
from flashbulb.export.bundle import (
    Bundle,
    Golden,
    ImageSpec,
    Licence,
    Manifest,
    NoiseSpec,
    Sampling,
    Sanity,
    Source,
    TokenizerInfo,
    verify,
    write_manifest,
)
from flashbulb.export.lowering import STATE, lower_all, plan, versions
from flashbulb.export.thresholds import gates
from flashbulb.export.verify import check_manifest

log = logging.getLogger(__name__)
OnStep = Callable[[int, int, str], None]
"""Called as `on_step(done, total, what)` before each part of the work."""


class ExportConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to export, and to which runtimes."""

    checkpoint: str = "embedded:student"
    """A diffusers folder, a Hub id, or `embedded:teacher` / `embedded:student`."""
    out: str = "runs/bundle"
    """Folder of the bundle; an existing one is replaced when the new one is whole."""
    name: str | None = None
    """Name in the manifest; by default the checkpoint's."""
    backends: tuple[AnyBackend, ...] = (Ort(), Executorch(), Coreml())
    """Runtimes to export for."""
    timestep: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Timestep of the one step; by default the last of the schedule."""
    prompts: Annotated[tuple[str, ...], msgspec.Meta(min_length=4)] = (
        "a red apple",
        "a blue whale",
        "a smiling cat",
        "a small house with a garden, snow on the roof and smoke over the chimney",
    )
    """Prompts of the golden vectors; the first two must draw different pictures."""
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 1
    """Seed of the first golden noise; each further case adds one."""
    jobs: Annotated[int, msgspec.Meta(ge=1)] = 1
    """Backends lowered at the same time, each in a process with its own copy of the weights."""
    licence: str = "unknown"
    """SPDX identifier of the weights' licence."""


def run(config: ExportConfig, on_step: OnStep | None = None) -> Path:
    """Export and return the bundle's folder; a killed run continues where it was."""
    checkpoint = Checkpoint.open(config.checkpoint)
    for backend in config.backends:
        backend.check_installed()
    step = one_step(checkpoint.config("scheduler"), checkpoint.config("vae"), timestep=config.timestep)
    out = Path(config.out)
    root = out.with_name(f".{out.name}.partial")
    root.mkdir(parents=True, exist_ok=True)
    tasks = plan(config.backends, checkpoint)
    say = on_step or (lambda done, total, what: log.info("%d/%d %s", done, total, what))
    total = len(tasks) + 2
    artifacts = lower_all(
        tasks, checkpoint, step, root, jobs=config.jobs, say=lambda i, what: say(i, total, what)
    )
    say(total - 2, total, "optimum layout, structure, tokenizer, licences")
    _write_optimum(config, checkpoint, root)
    loose = [p for p in structure.OPTIMUM_PROGRAMS.values() if (root / p).is_file()]
    structure.write_all(artifacts, root, checkpoint.sha256(), loose)
    tokenizers, licences = write_tokenizers(checkpoint, root), write_licences(config, checkpoint, root)
    say(total - 1, total, "golden vectors")
    golden, sanity = _write_golden(config, checkpoint, step, root)
    manifest = _manifest(config, checkpoint, step, artifacts, tokenizers, licences, golden, sanity, root)
    _finish(manifest, root, out)
    say(total, total, "done")
    return out


def _write_optimum(config: ExportConfig, checkpoint: Checkpoint, root: Path) -> None:
    shutil.rmtree(root / structure.OPTIMUM, ignore_errors=True)
    for backend in config.backends:
        if isinstance(backend, Ort):
            from flashbulb.export import optimum
            from flashbulb.export.backends.ort import write_operators
            from flashbulb.export.encodings import read

            write_operators(root)
            if backend.optimum and not checkpoint.is_sdxl:
                optimum.write(checkpoint, backend, read(checkpoint.path), root)


def write_tokenizers(checkpoint: Checkpoint, root: Path) -> tuple[TokenizerInfo, ...]:
    """Save each tokenizer with its cutting and padding set, as other libraries read it."""
    names = ["tokenizer"] + (["tokenizer_2"] if checkpoint.is_sdxl else [])
    found = []
    for name in names:
        tokenizer, length = checkpoint.tokenizer(name), checkpoint.text_length
        # Using them once stores cutting and padding in `tokenizer.json`.
        tokenizer(["x"], padding="max_length", truncation=True, max_length=length)
        tokenizer.model_max_length = length
        tokenizer.save_pretrained(root / name)
        tokenizer.save_vocabulary(str(root / name))
        found.append(
            TokenizerInfo(
                folder=name,
                input=name.replace("tokenizer", "input_ids"),
                length=length,
                bos_token_id=int(tokenizer.bos_token_id),
                eos_token_id=int(tokenizer.eos_token_id),
                pad_token_id=int(tokenizer.pad_token_id),
            )
        )
    return tuple(found)


def write_licences(config: ExportConfig, checkpoint: Checkpoint, root: Path) -> tuple[Licence, ...]:
    """Copy the licence, notice and attribution texts that lie in the checkpoint."""
    wanted = ("LICEN", "NOTICE", "ATTRIBUTION")
    files = sorted(p for p in checkpoint.path.iterdir() if p.name.upper().startswith(wanted))
    found = []
    for path in (p for p in files if p.is_file() and p.stat().st_size):
        (root / "licences").mkdir(exist_ok=True)
        shutil.copyfile(path, root / "licences" / path.name)
        file = f"licences/{path.name}"
        found.append(Licence(subject="weights", identifier=config.licence, file=file))
    return tuple(found) or (Licence(subject="weights", identifier=config.licence),)


def _write_golden(
    config: ExportConfig, checkpoint: Checkpoint, step: OneStep, root: Path
) -> tuple[Golden, Sanity]:
    from flashbulb.export import golden

    shutil.rmtree(root / golden.FOLDER, ignore_errors=True)
    return golden.write(golden.Reference(checkpoint, step), config.prompts, config.seed, root)


def _manifest(
    config: ExportConfig,
    checkpoint: Checkpoint,
    step: OneStep,
    artifacts: list[Artifact],
    tokenizers: tuple[TokenizerInfo, ...],
    licences: tuple[Licence, ...],
    golden: Golden,
    sanity: Sanity,
    root: Path,
) -> Manifest:
    from_noise, from_output = step.coefficients()
    size = checkpoint.image_size
    own = {f.path for a in artifacts for f in a.files}
    shutil.rmtree(root / STATE, ignore_errors=True)
    rest = _rest(root, own, artifacts)
    return Manifest(
        name=config.name or checkpoint.path.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"flashbulb": _own_version(), **versions()},
        source=Source(checkpoint=config.checkpoint, sha256=checkpoint.sha256()),
        image=ImageSpec(height=size, width=size, latent_shape=checkpoint.latent_shape),
        sampling=Sampling(
            one_step=step,
            noise_coefficient=from_noise,
            output_coefficient=from_output,
            folded_timestep=step.timestep,
        ),
        noise=NoiseSpec(shape=(1, *checkpoint.latent_shape)),
        tokenizers=tokenizers,
        artifacts=tuple(artifacts),
        golden=golden,
        gates=gates(artifacts, step),
        sanity=sanity,
        licences=licences,
        lineage=checkpoint.lineage,
        files=rest,
    )


def _rest(root: Path, own: set[str], artifacts: list[Artifact]) -> tuple[Any, ...]:
    """Record all files outside the artifacts, and remove what an earlier configuration left."""
    found = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        name = path.relative_to(root).as_posix()
        if name.split("/")[0] in ("onnx", "coreml", "executorch") and not name.endswith(".config"):
            if name not in own:
                path.unlink()
        elif name != "manifest.json":
            found.append(record(path, root))
    return tuple(found)


def _own_version() -> str:
    try:
        return metadata.version("flashbulb")
    except metadata.PackageNotFoundError:
        return "0"


def _finish(manifest: Manifest, root: Path, out: Path) -> None:
    """Check the bundle as its readers will, then put it in its place."""
    check_manifest(manifest)
    write_manifest(manifest, root)
    verify(Bundle(root=root, manifest=manifest))
    replace_folder(root, out)
