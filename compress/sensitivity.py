"""How much a compression changes the picture: response measured on one-step x0 and on the decoded image.

A UNet's own output is no measure: at t = 999 a noise-predicting model multiplies an error of its output by
14.6 in x0. So every figure here is taken behind that step. No torch at import.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from flashbulb.compress.encoding import split_key
from flashbulb.distill.schedule import OneStep, one_step

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.checkpoint import Checkpoint

Arrays = Mapping[str, npt.NDArray[np.float32]]


class Response(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What changed when some weights were replaced; decibels are null when exact or not finite."""

    name: str
    """Layer key, component, or ``all``."""
    encoding: str
    x0_snr_db: float | None
    """10 log10(power of x0 / power of its error)."""
    image_snr_db: float | None
    image_psnr_db: float | None
    """10 log10(1 / mean squared error) of images in [0, 1]."""
    image_max_abs: float | None
    exact: bool
    """Whether x0 and image are equal bit by bit."""
    finite: bool

    def passes(self, floor_psnr_db: float) -> bool:
        """Tell whether the image stays above a floor; non-finite never does."""
        return self.finite and (self.image_psnr_db is None or self.image_psnr_db >= floor_psnr_db)

    @property
    def robustness(self) -> float:
        """Image PSNR as a sorting key: infinite when exact, minus infinite when not finite."""
        if not self.finite:
            return float("-inf")
        return float("inf") if self.image_psnr_db is None else self.image_psnr_db


class Probe:
    """Draws the same pictures again after weights were replaced, re-running only what depends on them."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        modules: Mapping[str, torch.nn.Module],
        prompts: Sequence[str],
        seed: int,
    ) -> None:
        import torch

        self.modules = modules
        self.step: OneStep = one_step(checkpoint.config("scheduler"), checkpoint.config("vae"))
        self.size = checkpoint.image_size
        self.ids = [_token_ids(checkpoint, name, prompts) for name in _tokenizers(checkpoint)]
        generator = torch.Generator().manual_seed(seed)
        self.noise = torch.randn(len(prompts), *checkpoint.latent_shape, generator=generator)
        self.rebase()

    def rebase(self) -> None:
        """Take the present weights as the reference."""
        self.text = self._encode()
        self.x0 = self._denoise(self.text)
        self.image = self._decode(self.x0)

    def response(self, name: str, encoding: str, weights: Arrays) -> Response:
        """Measure with ``weights`` (layer key -> values) in place of the modules' own."""
        touched = {split_key(key)[0] for key in weights}
        with swapped(self.modules, weights):
            text = self._encode() if touched & {"text_encoder", "text_encoder_2"} else self.text
            x0 = self.x0 if touched <= {"vae_decoder"} else self._denoise(text)
            image = self._decode(x0)
        return compare(name, encoding, (self.x0, self.image), (x0, image))

    def _encode(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        with torch.inference_mode():
            if "text_encoder_2" not in self.modules:
                return self.modules["text_encoder"](self.ids[0])[0], None
            first = self.modules["text_encoder"](self.ids[0], output_hidden_states=True)
            second = self.modules["text_encoder_2"](self.ids[1], output_hidden_states=True)
            hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
            return hidden, second[0]

    def _denoise(self, text: tuple[torch.Tensor, torch.Tensor | None]) -> torch.Tensor:
        import torch

        hidden, pooled = text
        sizes = torch.tensor([[self.size, self.size, 0, 0, self.size, self.size]] * len(hidden))
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": sizes.float()}
        noise = self.noise * self.step.init_noise_sigma
        with torch.inference_mode():
            out = self.modules["unet"](noise, self.step.timestep, hidden, added_cond_kwargs=added).sample
        cz, cm = self.step.coefficients()
        return cz * noise + cm * out

    def _decode(self, x0: torch.Tensor) -> torch.Tensor:
        import torch

        latent = x0 / self.step.latent_scale + self.step.latent_shift
        with torch.inference_mode():
            decoded: torch.Tensor = self.modules["vae_decoder"].decode(latent).sample  # type: ignore[operator]
        return (decoded / 2 + 0.5).clamp(0, 1)


@contextmanager
def swapped(modules: Mapping[str, torch.nn.Module], weights: Arrays) -> Iterator[None]:
    """Put ``weights`` into the modules, and the old ones back afterwards."""
    import torch

    places = {key: modules[split_key(key)[0]].get_parameter(split_key(key)[1]) for key in weights}
    kept = {key: place.data for key, place in places.items()}
    try:
        for key, place in places.items():
            place.data = torch.from_numpy(np.ascontiguousarray(weights[key]))
        yield
    finally:
        for key, place in places.items():
            place.data = kept[key]


def compare(
    name: str,
    encoding: str,
    wanted: tuple[torch.Tensor, torch.Tensor],
    got: tuple[torch.Tensor, torch.Tensor],
) -> Response:
    """Return the record for (x0, image) against the reference's."""
    (x0, image), (x0_got, image_got) = wanted, got
    finite = bool(x0_got.isfinite().all() and image_got.isfinite().all())
    error = float((image_got - image).double().square().mean())
    return Response(
        name=name,
        encoding=encoding,
        x0_snr_db=decibels(_power(x0), _power(x0_got - x0)) if finite else None,
        image_snr_db=decibels(_power(image), error) if finite else None,
        image_psnr_db=decibels(1.0, error) if finite else None,
        image_max_abs=float((image_got - image).abs().max()) if finite else None,
        exact=bool((x0 == x0_got).all() and (image == image_got).all()),
        finite=finite,
    )


def decibels(reference: float, error: float) -> float | None:
    """Return 10 log10(reference / error); null when there is no error, or no reference to compare with."""
    return 10 * float(np.log10(reference / error)) if error > 0 and reference > 0 else None


def _power(tensor: torch.Tensor) -> float:
    return float(tensor.double().square().mean())


def _tokenizers(checkpoint: Checkpoint) -> tuple[str, ...]:
    return ("tokenizer", "tokenizer_2") if checkpoint.is_sdxl else ("tokenizer",)


def _token_ids(checkpoint: Checkpoint, name: str, prompts: Sequence[str]) -> Any:
    return checkpoint.tokenizer(name)(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=checkpoint.text_length,
        return_tensors="pt",
    ).input_ids
