"""CLIP score (arXiv 2104.08718) with any CLIP that transformers can open from a folder or the Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flashbulb.distill.metrics.inception import to_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

Floats = npt.NDArray[np.float64]


class ClipScorer:
    """Scores pictures against their captions by the cosine of their CLIP embeddings."""

    def __init__(self, source: str, device: torch.device | str = "cpu") -> None:
        """Open the model, onto a device, its tokenizer and its picture preparation.

        Raises:
            ValueError: when ``source`` is neither a folder nor a Hub id that can be reached.
        """
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

        try:
            model: Any = CLIPModel.from_pretrained(source, use_safetensors=True)
            self.tokenizer: Any = CLIPTokenizerFast.from_pretrained(source)
            self.prepare: Any = CLIPImageProcessor.from_pretrained(source)
        except (OSError, KeyError) as error:
            raise ValueError(
                f"wanted a CLIP folder or Hub id with safetensors, a tokenizer and preprocessor_config.json, "
                f"got {source!r}: {str(error).splitlines()[0]}"
            ) from error
        self.model, self.device = model.eval().requires_grad_(False).to(device), device

    def __call__(self, pictures: torch.Tensor, captions: Sequence[str]) -> Floats:
        """Return ``100 max(cos, 0)`` for each picture (n, 3, h, w) in [-1, 1] and its caption (eq. 1).

        The paper's w is 2.5; 100 is the scale in which CLIP scores are mostly given, and hundredths of it are
        what tables of text-to-image models print.
        """
        import torch

        found = []
        for i in range(0, len(captions), 32):
            part = to_bytes(pictures[i : i + 32]).permute(0, 2, 3, 1).cpu().numpy()
            found.append(self._cosines(list(part), list(captions[i : i + 32])))
        return 100 * torch.cat(found).clamp_min(0).double().numpy()

    def _cosines(self, pictures: list[npt.NDArray[np.uint8]], captions: list[str]) -> torch.Tensor:
        import torch

        tokens = self.tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        pixels = self.prepare(images=pictures, return_tensors="pt", input_data_format="channels_last")
        with torch.inference_mode():
            ours = self.model.get_image_features(pixels.pixel_values.to(self.device))
            theirs = self.model.get_text_features(**tokens.to(self.device))
        return torch.cosine_similarity(ours, theirs).cpu()
