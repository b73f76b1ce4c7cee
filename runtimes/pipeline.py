"""Text to picture over any engine.  Numpy only, and the same few lines that an app needs.

Two ways lead to the same picture: ``generator`` is one call from token ids and noise to RGB; the other runs
the components one by one and applies the single step in float32, with numbers that the manifest holds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flashbulb.export.bundle import Bundle, BundleError, TokenizerInfo
from flashbulb.export.noise import gaussian
from flashbulb.export.tokenizer_file import read_tokenizer
from flashbulb.runtimes.engines.base import Array, EngineError, Session

log = logging.getLogger(__name__)

MOST_ID = 2**31 - 1
"""Programs take ids of int32; a vocabulary or a manifest may claim others."""


@contextmanager
def _faults_told(wanted: str) -> Iterator[None]:
    """Turn what the tokenizers library raises into a `BundleError`: plain ``Exception``, or Rust's panic."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BundleError(f"wanted {wanted}, got: {error}; export it again") from error


class Tokenizer:
    """A prompt to a fixed number of ids, by the ``tokenizer.json`` that phones read.

    Raises:
        BundleError: when the file is no tokenizer of the kind.
    """

    def __init__(self, info: TokenizerInfo, root: Path) -> None:
        from tokenizers import Tokenizer as Fast

        self.info = info
        text = read_tokenizer(root / info.folder / "tokenizer.json")
        with _faults_told(f"a tokenizer in {info.folder}"):
            self.fast = Fast.from_str(text)
        self.fast.no_truncation()
        self.fast.no_padding()

    def __call__(self, prompt: str) -> Array:
        """Return the ids, int32 of shape (1, length); a longer prompt is cut with a warning."""
        with _faults_told(f"ids from {self.info.folder}"):  # a vocabulary may lack its own unknown token
            body = self.fast.encode(prompt, add_special_tokens=False).ids
        room = self.info.length - 2
        if len(body) > room:
            log.warning(
                "the prompt has %d tokens and %s takes %d: the rest is cut", len(body), self.info.folder, room
            )
        ids = [self.info.bos_token_id, *body[:room], self.info.eos_token_id]
        ids += [self.info.pad_token_id] * (self.info.length - len(ids))
        if beyond := [i for i in ids if not 0 <= i <= MOST_ID]:
            raise BundleError(
                f"wanted ids of int32 from {self.info.folder}, got {beyond[0]}; export the bundle again"
            )
        return np.asarray([ids], dtype=np.int32)


class Pipeline:
    """Draw pictures with a session."""

    def __init__(self, bundle: Bundle, session: Session | None) -> None:
        self.bundle, self._session = bundle, session

    @property
    def session(self) -> Session:
        """What runs the components; a pipeline without one only tokenizes and computes."""
        if self._session is None:
            raise EngineError("wanted a pipeline with a session, got one without; load an engine first")
        return self._session

    @cached_property
    def tokenizers(self) -> tuple[Tokenizer, ...]:
        """One tokenizer per text encoder."""
        return tuple(Tokenizer(info, self.bundle.root) for info in self.bundle.manifest.tokenizers)

    def tokens(self, prompt: str) -> dict[str, Array]:
        """Tokenize a prompt: input name -> ids."""
        return {t.info.input: t(prompt) for t in self.tokenizers}

    def noise(self, seed: int) -> Array:
        """Make the noise of a seed, the same on every platform."""
        return gaussian(seed, self.bundle.manifest.noise.shape)

    def draw(self, prompt: str, seed: int, *, fused: bool | None = None) -> Array:
        """Draw one picture: float32 (height, width, 3) in [0, 1].

        Args:
            prompt: any text, also an empty one.
            seed: noise seed.
            fused: use the one-call generator; by default where the session holds it.
        """
        ids, noise = self.tokens(prompt), self.noise(seed)
        use = "generator" in self.session.components if fused is None else fused
        image = self.generate(ids, noise) if use else self.trace(ids, noise)["image"]
        return np.ascontiguousarray(image[0].transpose(1, 2, 0))

    def generate(self, ids: Mapping[str, Array], noise: Array) -> Array:
        """Run the fused generator: image of shape (1, 3, height, width)."""
        return self.session.run("generator", {**ids, "noise": noise})["image"]

    def trace(self, ids: Mapping[str, Array], noise: Array) -> dict[str, Array]:
        """Run component by component and return every tensor on the way, ``x0`` and ``image`` included."""
        missing = [c for c in ("text_encoder", "unet", "vae_decoder") if c not in self.session.components]
        if missing:
            raise EngineError(
                f"wanted the components {missing} of {self.session.engine}, it has {self.session.components}"
            )
        found: dict[str, Array] = {**ids, "noise": noise, "sample": self.sample(noise)}
        for component in self.session.components:
            if component.startswith("text_encoder"):
                found |= self.session.run(component, found)
        if "hidden_1" in found:  # Stable Diffusion XL joins the states of its two encoders
            found["hidden"] = np.concatenate([found["hidden_1"], found["hidden_2"]], axis=-1)
        found |= self.session.run("unet", found)
        found["x0"] = self.clean(found["sample"], found[self.session.artifact("unet").outputs[0].name])
        found["latent"] = self.latent(found["x0"])
        return found | self.session.run("vae_decoder", found)

    def sample(self, noise: Array) -> Array:
        """Scale noise to what the denoiser takes at the last timestep."""
        return np.asarray(noise * np.float32(self.bundle.manifest.sampling.one_step.init_noise_sigma))

    def clean(self, sample: Array, out: Array) -> Array:
        """Apply the one step in float32: the denoised latent from the noise and the UNet's output."""
        sampling = self.bundle.manifest.sampling
        cz, cm = np.float32(sampling.noise_coefficient), np.float32(sampling.output_coefficient)
        return np.asarray(cz * sample.astype(np.float32) + cm * out.astype(np.float32))

    def latent(self, x0: Array) -> Array:
        """Undo the scale that the denoiser works in, as the decoder expects."""
        step = self.bundle.manifest.sampling.one_step
        return np.asarray(x0 / np.float32(step.latent_scale) + np.float32(step.latent_shift))


def to_bytes(image: Array) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Round a picture in [0, 1] to 8 bits.

    Raises:
        EngineError: when it is not finite, rather than writing a picture of nonsense.
    """
    if not np.isfinite(image).all():
        raise EngineError(
            "the picture holds NaN or infinite values; run `flashbulb check` on the bundle to see where"
        )
    return (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def save_png(image: Array, path: Path) -> Path:
    """Write a picture (height, width, 3) in [0, 1] as a PNG, through a temporary name."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    Image.fromarray(to_bytes(image)).save(temporary, format="PNG")
    return temporary.replace(path)
