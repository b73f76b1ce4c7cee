"""The baseline of the bench: the checkpoint as optimum exports and runs it, with its own pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.engines.base import Array, Engine, EngineError, Session, require
from flashbulb.runtimes.engines.eager import described_components


class Optimum(Engine, frozen=True, tag="optimum"):
    """Draw with ``optimum.onnxruntime.ORTStableDiffusionPipeline`` from a folder in its layout."""

    folder: str
    """What optimum exported, or the ``optimum`` folder of a bundle."""

    modules: ClassVar[tuple[str, ...]] = ("optimum", "onnxruntime", "torch", "diffusers")
    extra: ClassVar[str] = "onnx"

    def warm(self) -> None:
        """Import what the pipeline needs."""
        import optimum.onnxruntime as package

        _ = package.ORTStableDiffusionPipeline

    def serves(self, bundle: Bundle) -> str | None:
        """It serves where the folder is."""
        found = (Path(self.folder) / "model_index.json").is_file()
        return None if found else f"there is no model_index.json in {self.folder}"

    def holds(self, bundle: Bundle) -> tuple[str, ...]:
        """It draws whole pictures only."""
        return ("generator",) if "generator" in described_components(bundle) else ()

    def load(self, bundle: Bundle, *, threads: int = 1, components: Sequence[str] | None = None) -> Session:
        """Open the folder."""
        require(self)
        import onnxruntime
        import torch
        from optimum.onnxruntime import ORTStableDiffusionPipeline, ORTStableDiffusionXLPipeline

        torch.set_num_threads(threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        sdxl = len(bundle.manifest.tokenizers) > 1
        pipeline = (ORTStableDiffusionXLPipeline if sdxl else ORTStableDiffusionPipeline).from_pretrained(
            self.folder, session_options=options, provider="CPUExecutionProvider"
        )
        pipeline.set_progress_bar_config(disable=True)
        return OptimumSession(self, {"generator": described_components(bundle)["generator"]}, pipeline)


class OptimumSession(Session):
    """The whole pipeline as one call, with one step and no guidance."""

    def __init__(self, engine: Engine, artifacts: Mapping[str, Artifact], pipeline: Any) -> None:
        super().__init__(engine, artifacts)
        self.pipeline = pipeline

    def call(self, component: str, arrays: Sequence[Array]) -> Sequence[Array]:
        """Draw from token ids and noise."""
        import torch

        if len(arrays) != 2:
            raise EngineError("the optimum baseline covers checkpoints with one text encoder")
        ids, noise = arrays
        hidden = self.pipeline.text_encoder(input_ids=torch.from_numpy(ids.astype(np.int32)))[0]
        found = self.pipeline(
            prompt_embeds=torch.as_tensor(hidden),
            latents=torch.from_numpy(noise),
            num_inference_steps=1,
            guidance_scale=0.0,
            output_type="np",
        )
        return [np.ascontiguousarray(found.images.transpose(0, 3, 1, 2), dtype=np.float32)]
