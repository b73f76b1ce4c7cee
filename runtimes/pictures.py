"""The picture grid of the report: one row per way to draw, one column per prompt, all from the same noise."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.export.bundle import Bundle
from flashbulb.export.noise import gaussian
from flashbulb.runtimes.engines import AnyEngine
from flashbulb.runtimes.engines.base import Array, EngineError
from flashbulb.runtimes.pipeline import Pipeline, to_bytes

log = logging.getLogger(__name__)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """The pictures of one source, as PNG data in base64."""

    label: str
    """Who drew them."""
    note: str
    """How."""
    pictures: tuple[str, ...]
    """One per prompt; empty where it could not be drawn."""
    means: tuple[float | None, ...] = ()
    """Mean absolute difference from the reference row, in steps of 1/255."""


class Drawn(msgspec.Struct, frozen=True, kw_only=True):
    """Pictures of one source before they are encoded."""

    label: str
    note: str
    images: tuple[Array, ...]


def teacher_row(
    source: str, bundle: Bundle, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float
) -> Drawn:
    """Draw with diffusers' own pipeline from the bundle's noise."""
    import torch
    from diffusers import DDIMScheduler
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.disable_progress_bar()
    pipeline = Checkpoint.open(source).pipeline()
    pipeline.set_progress_bar_config(disable=True)
    # Start at the last timestep and end at x0 itself, whatever sampler the folder names.
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True
    )
    images = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        noise = torch.from_numpy(gaussian(seed, bundle.manifest.noise.shape))
        found = pipeline(
            prompt, latents=noise, num_inference_steps=steps, guidance_scale=guidance, output_type="np"
        )
        images.append(np.asarray(found.images[0], dtype=np.float32))
    name = "1 step" if steps == 1 else f"{steps} steps"
    note = "PyTorch, DDIM, " + (f"guidance {guidance:g}" if guidance > 1.0 else "no guidance")
    return Drawn(label=f"teacher, {name}", note=note, images=tuple(images))


def engine_row(
    engine: AnyEngine, bundle: Bundle, prompts: Sequence[str], seeds: Sequence[int], *, threads: int = 1
) -> Drawn:
    """Draw with one engine, by the fused generator where there is one."""
    fused = "generator" in engine.holds(bundle)
    session = engine.load(bundle, threads=threads, components=("generator",) if fused else None)
    pipeline = Pipeline(bundle, session)
    images = tuple(pipeline.draw(p, s, fused=fused) for p, s in zip(prompts, seeds, strict=True))
    note = "PyTorch" if engine.name == "eager" else f"{session.artifact(session.components[0]).precision}"
    names = {
        "eager": "student, 1 step",
        "ort": "ONNX Runtime",
        "executorch": "ExecuTorch",
        "coreml": "Core ML",
        "mil": "Core ML program, interpreted",
    }
    return Drawn(label=names.get(engine.name, engine.name), note=note, images=images)


def rows(drawn: Sequence[Drawn], reference: str | None) -> tuple[Row, ...]:
    """Encode pictures, each with its difference from the reference row if that is named."""
    base = next((d for d in drawn if d.label == reference), None)
    return tuple(
        Row(
            label=d.label,
            note=d.note,
            pictures=tuple(png_base64(i) for i in d.images),
            means=tuple(_difference(i, b) for i, b in zip(d.images, base.images, strict=True))
            if base is not None and d is not base and not d.label.startswith("teacher")
            else (),
        )
        for d in drawn
    )


def draw_all(sources: Sequence[Callable[[], Drawn]]) -> tuple[list[Drawn], list[str]]:
    """Draw every source; return what was drawn and why the rest was not."""
    drawn, reasons = [], []
    for source in sources:
        try:
            drawn.append(source())
        except (EngineError, ImportError) as error:
            log.warning("%s", error)
            reasons.append(str(error))
    return drawn, reasons


def png_base64(image: Array) -> str:
    """Encode a picture (height, width, 3) in [0, 1]; one that is not finite becomes an empty text."""
    from PIL import Image

    if not np.isfinite(image).all():
        return ""
    stream = io.BytesIO()
    Image.fromarray(to_bytes(image)).save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


def _difference(image: Array, reference: Array) -> float | None:
    if image.shape != reference.shape or not np.isfinite(image).all():
        return None
    first, other = to_bytes(image).astype(np.int16), to_bytes(reference).astype(np.int16)
    return float(np.abs(first - other).mean())
