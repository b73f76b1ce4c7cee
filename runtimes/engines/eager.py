"""PyTorch eager: the checkpoint's own diffusers and transformers modules, unchanged.  The reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from flashbulb.distill.checkpoint import Checkpoint, CheckpointError
from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle, Sampling
from flashbulb.runtimes.engines.base import Array, Engine, EngineError, Session, require

if TYPE_CHECKING:
    import torch


class Eager(Engine, frozen=True, tag="eager"):
    """Run the checkpoint that the bundle was exported from, without any rewrite, in fp32."""

    checkpoint: str | None = None
    """Folder, Hub id or `embedded:` name; by default the one that the manifest names."""

    modules: ClassVar[tuple[str, ...]] = ("torch", "diffusers", "transformers")
    extra: ClassVar[str] = "train"

    def warm(self) -> None:
        """Import the classes as well, which both libraries load late."""
        import diffusers
        import transformers

        _ = (diffusers.UNet2DConditionModel, diffusers.AutoencoderKL, transformers.CLIPTextModel)

    def serves(self, bundle: Bundle) -> str | None:
        """It serves where the very checkpoint of the bundle can be opened."""
        try:
            self.open(bundle)
        except CheckpointError as error:
            return f"the checkpoint of the bundle is not here ({error})"
        return None

    def holds(self, bundle: Bundle) -> tuple[str, ...]:
        """It has every component that the bundle describes."""
        return tuple(described_components(bundle))

    def open(self, bundle: Bundle) -> Checkpoint:
        """Open the bundle's checkpoint.

        Raises:
            CheckpointError: when there is none, or it has changed since the export.
        """
        source = bundle.manifest.source
        here = source.checkpoint.startswith("embedded:") or Path(source.checkpoint).is_dir()
        if not self.checkpoint and not here:  # a Hub id is never fetched without being asked for
            raise CheckpointError(f"{source.checkpoint} is not on this machine; give it with --checkpoint")
        found = Checkpoint.open(self.checkpoint or source.checkpoint)
        if (got := found.sha256()) != source.sha256:
            raise CheckpointError(
                f"wanted the checkpoint with sha256 {source.sha256[:12]} that the bundle was exported from, "
                f"{found.path} has {got[:12]}; export it again or give the old one with --checkpoint"
            )
        return found

    def load(self, bundle: Bundle, *, threads: int = 1, components: Sequence[str] | None = None) -> Session:
        """Load the modules in fp32."""
        require(self)
        import torch

        torch.set_num_threads(threads)
        described = described_components(bundle)
        names = tuple(described) if components is None else tuple(components)
        if absent := [n for n in names if n not in described]:
            raise EngineError(f"wanted the components {absent}, the bundle describes {list(described)}")
        return EagerSession(
            self, {n: described[n] for n in names}, self.open(bundle), bundle.manifest.sampling
        )


def described_components(bundle: Bundle) -> dict[str, Artifact]:
    """Return one artifact per component: all backends keep one contract, so any gives the specs."""
    found: dict[str, Artifact] = {}
    for artifact in bundle.manifest.artifacts:
        found.setdefault(artifact.component, artifact)
    order = ("text_encoder", "text_encoder_2", "unet", "vae_decoder", "generator")
    return {name: found[name] for name in order if name in found}


class EagerSession(Session):
    """The modules of a checkpoint, called as diffusers' own pipelines call them."""

    def __init__(
        self, engine: Engine, artifacts: Mapping[str, Artifact], checkpoint: Checkpoint, sampling: Sampling
    ) -> None:
        super().__init__(engine, artifacts)
        self.sampling, self.sdxl, self.size = sampling, checkpoint.is_sdxl, checkpoint.image_size
        wanted = checkpoint.components() if "generator" in artifacts else tuple(artifacts)
        self.modules: dict[str, Any] = {n: checkpoint.load(n.replace("vae_decoder", "vae")) for n in wanted}

    def call(self, component: str, arrays: Sequence[Array]) -> Sequence[Array]:
        """Run one component without gradients.

        Raises:
            EngineError: when the module refuses what it is given.
        """
        import torch

        with torch.no_grad():
            tensors = [torch.from_numpy(a) for a in arrays]
            try:
                found = self._components(component)(*tensors)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                names = [s.name for s in self.artifact(component).inputs]
                raise EngineError(
                    f"PyTorch refuses {names} as inputs of {component}: {error}; export the bundle again"
                ) from error
            return [np.asarray(t.float().numpy()) for t in found]

    def _components(self, component: str) -> Any:
        return getattr(self, f"_{component}")

    def _text_encoder(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if not self.sdxl:
            return (self.modules["text_encoder"](ids.long())[0],)
        return (self.modules["text_encoder"](ids.long(), output_hidden_states=True).hidden_states[-2],)

    def _text_encoder_2(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.modules["text_encoder_2"](ids.long(), output_hidden_states=True)
        return found.hidden_states[-2], found.text_embeds

    def _unet(
        self, sample: torch.Tensor, hidden: torch.Tensor, pooled: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        import torch

        ids = torch.tensor([[self.size, self.size, 0, 0, self.size, self.size]], dtype=torch.float32)
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": ids}
        found = self.modules["unet"](
            sample, self.sampling.folded_timestep, encoder_hidden_states=hidden, added_cond_kwargs=added
        )
        return (found.sample,)

    def _vae_decoder(self, latent: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return ((self.modules["vae_decoder"].decode(latent).sample / 2 + 0.5).clamp(0, 1),)

    def _generator(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        import torch

        *ids, noise = inputs
        step = self.sampling.one_step
        text: tuple[torch.Tensor, ...] = self._text_encoder(ids[0])
        if self.sdxl:
            hidden, pooled = self._text_encoder_2(ids[1])
            text = (torch.cat([text[0], hidden], dim=-1), pooled)
        sample = noise * step.init_noise_sigma
        (out,) = self._unet(sample, *text)
        x0 = self.sampling.noise_coefficient * sample + self.sampling.output_coefficient * out
        return self._vae_decoder(x0 / step.latent_scale + step.latent_shift)
