"""Between a caller's arrays and pictures and a program's tensors, held to what the model declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flashbulb.runtimes.engines.mil.contract import BANDS, spelled
from flashbulb.runtimes.engines.mil.description import Feature
from flashbulb.runtimes.engines.mil.dtypes import held_dtype
from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.spec import Named

if TYPE_CHECKING:
    import torch


def read_input(named: Named, feature: Feature | None, value: Any) -> torch.Tensor:
    """Turn one input into a tensor of the declared type and shape.

    Raises:
        ProgramError: with what is declared and what was given.
    """
    import torch

    if feature is not None and feature.kind == "image":
        value = _pixels(feature, value)
    try:
        array = np.asarray(value)
        tensor = torch.from_numpy(np.array(array, dtype=_plain(array)))
    except (TypeError, ValueError, OverflowError) as error:
        raise ProgramError(
            f"wanted an array for {named.name}, got {type(value).__name__}: {error}"
        ) from error
    if named.type.dtype is None:
        raise ProgramError(f"wanted a tensor as input {named.name}, it is declared as {named.type.kind}")
    tensor = tensor.to(held_dtype(named.type.dtype))
    if named.type.shape == () and tensor.numel() == 1:
        tensor = tensor.reshape(())
    _check_shape(named, feature, tuple(tensor.shape))
    return tensor.contiguous()


def _plain(array: np.ndarray[Any, Any]) -> Any:
    """Choose a type that torch has."""
    if array.dtype in (np.uint16, np.uint32, np.uint64):
        return np.int64
    if array.dtype == object or array.dtype.kind in "USV":
        raise TypeError(f"elements are {array.dtype}")
    return array.dtype


def _check_shape(named: Named, feature: Feature | None, got: tuple[int, ...]) -> None:
    wanted = named.type.shape
    fits = wanted is None or (
        len(wanted) == len(got) and all(w in (None, g) for w, g in zip(wanted, got, strict=True))
    )
    free: tuple[int, ...] = got[-2:] if feature is not None and feature.kind == "image" else got
    if fits and feature is not None and feature.choices:
        fits = free in feature.choices
    if fits and feature is not None and feature.ranges:
        fits = len(feature.ranges) == len(free) and all(
            low <= n <= (n if high is None else high)
            for n, (low, high) in zip(free, feature.ranges, strict=True)
        )
    if not fits:
        limits = (feature.choices or feature.ranges) if feature is not None else ()
        also = f", sizes {limits}" if limits else ""
        raise ProgramError(f"wanted {named.name} in shape {spelled(wanted)}{also}, got {list(got)}")


def default_input(named: Named, feature: Feature | None) -> np.ndarray[Any, Any] | None:
    """Return what stands for an optional input that is not given; None when it must be."""
    if feature is None or not feature.optional or feature.default is None or named.type.shape is None:
        return None
    shape = feature.shape or tuple(s or 1 for s in named.type.shape)
    return np.full(shape, feature.default, dtype=np.float32)


def _pixels(feature: Feature, value: Any) -> np.ndarray[Any, Any]:
    """Turn a picture into numbers (1 c h w) in the declared order of channels."""
    from PIL import Image

    if isinstance(value, Image.Image):
        modes = {"GRAYSCALE": "L", "GRAYSCALE_FLOAT16": "F"}
        value = np.asarray(value.convert(modes.get(feature.colour, "RGB")))
    array, bands = np.asarray(value), BANDS[feature.colour]
    if feature.colour != "GRAYSCALE_FLOAT16":
        _check_bytes(feature, array)
    if array.ndim == 2 and bands == 1:
        return array[None, None].astype(np.float32)
    if array.ndim != 3 or array.shape[2] != bands:
        raise ProgramError(f"wanted a picture of {bands} channels for {feature.name}, got {array.shape}")
    array = array[..., ::-1] if feature.colour == "BGR" else array
    return array.transpose(2, 0, 1)[None].astype(np.float32)


def _check_bytes(feature: Feature, array: np.ndarray[Any, Any]) -> None:
    """Refuse what no picture of 8 bits can hold."""
    if array.dtype.kind not in "buif":
        raise ProgramError(f"wanted a picture for {feature.name}, got elements of {array.dtype}")
    odd = array[~((array >= 0) & (array <= 255) & (array == np.rint(array)))]
    if odd.size:
        raise ProgramError(
            f"wanted whole numbers from 0 to 255 as pixels of {feature.name}, got {odd[0]}; "
            "round and bound them first"
        )


def write_output(feature: Feature | None, value: Any, halves: bool) -> Any:
    """Turn one output into an array, a picture, or the class and probabilities of a classifier.

    Args:
        feature: what the model declares for it.
        value: what the program computed.
        halves: give fp16 outputs as float16; otherwise they come as float32.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    array: np.ndarray[Any, Any] = value.detach().contiguous().numpy()
    if feature is not None and feature.kind == "image":
        return _picture(feature, array)
    if array.ndim == 0:
        array = array.reshape(1)
    if feature is not None and feature.kind == "array" and (halves or feature.dtype != "float16"):
        return array.astype(feature.dtype)
    return array.copy()


def _picture(feature: Feature, array: np.ndarray[Any, Any]) -> Any:
    from PIL import Image

    planes = array.reshape(-1, *array.shape[-2:])
    if feature.colour == "GRAYSCALE_FLOAT16":
        return Image.fromarray(planes[0].astype(np.float32))
    pixels = np.clip(np.rint(planes), 0, 255).astype(np.uint8)
    if feature.colour == "GRAYSCALE":
        return Image.fromarray(pixels[0])
    return Image.fromarray(
        np.ascontiguousarray(pixels[:: -1 if feature.colour == "BGR" else 1].transpose(1, 2, 0))
    )
