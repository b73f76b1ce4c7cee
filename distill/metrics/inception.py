"""The Inception network of FID proper (arXiv 1706.08500), for weights that the user has on disk.

It is the network of the original TensorFlow graph of 2015 and not the one of later libraries: average pools
leave their padding out, the last block pools by maximum, and pictures are scaled as TensorFlow 1 did. Weights
are read from the converted file that torch-fidelity and pytorch-fid share, or from the same tensors as
safetensors; nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

INPUT_SIZE = 299
WIDTH = 2048
EPS = 1e-3
"""Of the batch normalisation."""


class Conv(NamedTuple):
    """One convolution with its normalisation and ReLU; padding keeps the size where the stride is one."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    pad: bool = True


class Block(NamedTuple):
    """Branches side by side: chains of convolutions, then a pool (with a convolution behind it, or none).

    A chain that ends in two convolutions named ``a`` and ``b`` forks there.
    """

    chains: tuple[tuple[Conv, ...], ...]
    pool: str = "average"
    pooled: int = 0


STEM = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, pad=False),
    Conv("Conv2d_2a_3x3", 32, (3, 3), pad=False),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    "pool",
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), pad=False),
    "pool",
)


def _first(pooled: int) -> Block:
    small = (
        Conv("branch3x3dbl_1", 64),
        Conv("branch3x3dbl_2", 96, (3, 3)),
        Conv("branch3x3dbl_3", 96, (3, 3)),
    )
    large = (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5)))
    return Block(((Conv("branch1x1", 64),), large, small), pooled=pooled)


def _middle(width: int) -> Block:
    row, column = (1, 7), (7, 1)
    single = (
        Conv("branch7x7_1", width),
        Conv("branch7x7_2", width, row),
        Conv("branch7x7_3", 192, column),
    )
    double = (
        Conv("branch7x7dbl_1", width),
        Conv("branch7x7dbl_2", width, column),
        Conv("branch7x7dbl_3", width, row),
        Conv("branch7x7dbl_4", width, column),
        Conv("branch7x7dbl_5", 192, row),
    )
    return Block(((Conv("branch1x1", 192),), single, double), pooled=192)


def _last(pool: str) -> Block:
    single = (
        Conv("branch3x3_1", 384),
        Conv("branch3x3_2a", 384, (1, 3)),
        Conv("branch3x3_2b", 384, (3, 1)),
    )
    double = (
        Conv("branch3x3dbl_1", 448),
        Conv("branch3x3dbl_2", 384, (3, 3)),
        Conv("branch3x3dbl_3a", 384, (1, 3)),
        Conv("branch3x3dbl_3b", 384, (3, 1)),
    )
    return Block(((Conv("branch1x1", 320),), single, double), pool, pooled=192)


BLOCKS = {
    "Mixed_5b": _first(32),
    "Mixed_5c": _first(64),
    "Mixed_5d": _first(64),
    "Mixed_6a": Block(
        (
            (Conv("branch3x3", 384, (3, 3), 2, pad=False),),
            (
                Conv("branch3x3dbl_1", 64),
                Conv("branch3x3dbl_2", 96, (3, 3)),
                Conv("branch3x3dbl_3", 96, (3, 3), 2, pad=False),
            ),
        ),
        "halve",
    ),
    "Mixed_6b": _middle(128),
    "Mixed_6c": _middle(160),
    "Mixed_6d": _middle(160),
    "Mixed_6e": _middle(192),
    "Mixed_7a": Block(
        (
            (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2, pad=False)),
            (
                Conv("branch7x7x3_1", 192),
                Conv("branch7x7x3_2", 192, (1, 7)),
                Conv("branch7x7x3_3", 192, (7, 1)),
                Conv("branch7x7x3_4", 192, (3, 3), 2, pad=False),
            ),
        ),
        "halve",
    ),
    "Mixed_7b": _last("average"),
    "Mixed_7c": _last("maximum"),
}


class Inception:
    """FID's Inception: pictures in, 2048 features out."""

    def __init__(self, weights: dict[str, torch.Tensor], device: torch.device | str = "cpu") -> None:
        self.weights = {name: tensor.float().to(device) for name, tensor in weights.items()}
        self.device = device

    @classmethod
    def open(cls, file: str | Path, device: torch.device | str = "cpu") -> Inception:
        """Read the weights from a ``.pth`` or ``.safetensors`` file, onto a device.

        Raises:
            ValueError: when there is no such file, or it holds other weights.
        """
        return cls(_read(Path(file)), device)

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return features (n, 2048) of pictures (n, 3, h, w) in [-1, 1], rounded to bytes first."""
        import torch

        with torch.inference_mode():
            parts = [self._features(to_bytes(part).to(self.device)).cpu() for part in pictures.split(16)]
        return torch.cat(parts)

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        x = (resize(x.float(), INPUT_SIZE) - 128) / 128
        for part in STEM:
            x = self._convolve("", part, x) if isinstance(part, Conv) else functional.max_pool2d(x, 3, 2)
        for name, block in BLOCKS.items():
            x = self._block(name, block, x)
        return x.mean((2, 3))

    def _block(self, name: str, block: Block, x: torch.Tensor) -> torch.Tensor:
        import torch

        found = [self._chain(name, chain, x) for chain in block.chains]
        pooled = _pool(block.pool, x)
        if block.pooled:
            pooled = self._convolve(name, Conv("branch_pool", block.pooled), pooled)
        return torch.cat([*found, pooled], 1)

    def _chain(self, name: str, chain: tuple[Conv, ...], x: torch.Tensor) -> torch.Tensor:
        import torch

        fork = [part for part in chain if part.name.endswith(("a", "b"))]
        for part in chain[: len(chain) - len(fork)]:
            x = self._convolve(name, part, x)
        return torch.cat([self._convolve(name, part, x) for part in fork], 1) if fork else x

    def _convolve(self, block: str, part: Conv, x: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        name = f"{block}.{part.name}" if block else part.name
        padding = (part.kernel[0] // 2, part.kernel[1] // 2) if part.pad else (0, 0)
        x = functional.conv2d(x, self.weights[f"{name}.conv.weight"], stride=part.stride, padding=padding)
        mean, variance = (self.weights[f"{name}.bn.running_{k}"] for k in ("mean", "var"))
        scale, shift = (self.weights[f"{name}.bn.{k}"] for k in ("weight", "bias"))
        return functional.relu(functional.batch_norm(x, mean, variance, scale, shift, eps=EPS))


def to_bytes(pictures: torch.Tensor) -> torch.Tensor:
    """Round pictures in [-1, 1] to uint8, as a saved file holds them; bytes stay as they are."""
    import torch

    if pictures.dtype == torch.uint8:
        return pictures
    return ((pictures.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def resize(x: torch.Tensor, size: int) -> torch.Tensor:
    """Scale (n, c, h, w) to ``size`` as TensorFlow 1 did: bilinear, corners at 0, no antialiasing."""
    rows, columns = (_interpolation(old, size).to(x) for old in x.shape[-2:])
    return rows @ x @ columns.T


def _interpolation(old: int, new: int) -> torch.Tensor:
    """Return the matrix (new, old) whose row i mixes the two neighbours of position ``i * old / new``."""
    import torch

    position = torch.arange(new) * (old / new)
    low = position.floor().long()
    high, share = (low + 1).clamp_max(old - 1), position - low
    matrix = torch.zeros(new, old)
    matrix[torch.arange(new), low] += 1 - share
    matrix[torch.arange(new), high] += share
    return matrix


def _pool(kind: str, x: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    if kind == "halve":
        return functional.max_pool2d(x, 3, 2)
    if kind == "maximum":
        return functional.max_pool2d(x, 3, 1, 1)
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the weights that the network needs."""
    found: dict[str, tuple[int, ...]] = {}
    width = 3
    for part in STEM:
        if isinstance(part, Conv):
            found |= _shapes("", part, width)
            width = part.width
    for name, block in BLOCKS.items():
        width, made = _block_shapes(name, block, width)
        found |= made
    return found


def _block_shapes(name: str, block: Block, width: int) -> tuple[int, dict[str, tuple[int, ...]]]:
    made: dict[str, tuple[int, ...]] = {}
    out = block.pooled or width
    for chain in block.chains:
        now = width
        fork = [part for part in chain if part.name.endswith(("a", "b"))]
        for part in chain:
            made |= _shapes(name, part, now)
            now = now if part in fork else part.width
        out += sum(part.width for part in fork) if fork else now
    if block.pooled:
        made |= _shapes(name, Conv("branch_pool", block.pooled), width)
    return out, made


def _shapes(block: str, part: Conv, width: int) -> dict[str, tuple[int, ...]]:
    name = f"{block}.{part.name}" if block else part.name
    norm = {f"{name}.bn.{k}": (part.width,) for k in ("weight", "bias", "running_mean", "running_var")}
    return {f"{name}.conv.weight": (part.width, width, *part.kernel), **norm}


def _read(file: Path) -> dict[str, torch.Tensor]:
    from pickle import UnpicklingError

    import torch

    if not file.is_file():
        raise ValueError(f"wanted a file with FID's Inception weights, got {str(file)!r}, which is none")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError) as error:
        raise ValueError(f"{file} cannot be read as weights: {error}") from error
    return _checked(found, file)


def _checked(found: dict[str, torch.Tensor], file: Path) -> dict[str, torch.Tensor]:
    wanted = shapes()
    got = {name: tuple(tensor.shape) for name, tensor in found.items()}
    wrong = [name for name, shape in wanted.items() if got.get(name) != shape]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{file} does not hold FID's Inception (2015-12-05): wanted {name} of shape {wanted[name]}, "
            f"got {got.get(name, 'nothing')}; {len(wrong)} of {len(wanted)} tensors differ"
        )
    return {name: found[name] for name in wanted}
