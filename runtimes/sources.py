"""The tensors that an exported program must hold, taken from the checkpoint and under its names."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from flashbulb.export.anatomy.listing import Array

if TYPE_CHECKING:
    from torch import nn

    from flashbulb.distill.checkpoint import Checkpoint
    from flashbulb.distill.schedule import OneStep

FOLDED = ("conv1.bias", "add_embedding.linear_1.bias", "add_embedding.linear_2.bias")
"""Ends of the names of biases into which the timestep is folded: computed, so equal only up to rounding."""
ORDERS = {2: ((0, 1), (1, 0)), 4: ((0, 1, 2, 3), (0, 2, 3, 1), (2, 3, 1, 0))}
"""Orders of axes in which formats keep weights, by rank: transposed products, and channels last."""
TANH = "gelu by tanh"
"""The trait of an activation that is not the exact one."""
Key = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One tensor of the checkpoint, as the rewritten modules use it."""

    name: str
    """`component/path`; the parts of a weight that is cut in two have names of their own."""
    values: Array
    """Its float32 values."""
    folded: bool = False
    """Computed from other weights, hence equal only up to float32 rounding."""
    required: bool = True
    """A parameter; buffers need not be in a program."""
    factor: float | None = None
    """What a converter may multiply it with: the affine that follows the last convolution of a component."""

    @property
    def component(self) -> str:
        """Which component it belongs to."""
        return self.name.split("/", 1)[0]

    @property
    def trivial(self) -> bool:
        """Tell a tensor of zeros or ones, whose use any converter may drop."""
        flat = self.values.ravel()
        return flat.size > 0 and flat[0] in (0.0, 1.0) and bool((flat == flat[0]).all())

    def forms(self) -> Iterator[Array]:
        """Yield it in every order of axes that a format may keep it in, also multiplied by its factor."""
        yield from self._ordered(self.values)
        if self.factor is not None:
            yield from self._ordered(self.values * np.float32(self.factor))

    def _ordered(self, values: Array) -> Iterator[Array]:
        for order in ORDERS.get(values.ndim, (tuple(range(values.ndim)),)):
            yield np.ascontiguousarray(values.transpose(order))


@dataclass(slots=True)
class Sources:
    """All wanted tensors, found by their values in any float type and order."""

    wanted: Mapping[str, Wanted]
    traits: Mapping[str, Counter[str]] = field(default_factory=dict)
    """Component -> how many of its modules have each trait, as `traits` counts them."""
    _index: dict[str, dict[bytes, list[str]]] = field(default_factory=dict)

    def of(self, component: str) -> list[Wanted]:
        """Return the tensors of a component; the generator has those of all."""
        return [w for w in self.wanted.values() if component in ("generator", w.component)]

    def traits_of(self, component: str) -> Counter[str] | None:
        """Return the traits of a component; the generator has those of all, an unknown one None."""
        if component == "generator" and self.traits:
            return sum(self.traits.values(), Counter[str]())
        return self.traits.get(component)

    def named(self, values: Array) -> list[str]:
        """Return the names of those tensors that are exactly these values, rounded to their type."""
        kind = values.dtype.str
        if kind not in self._index:
            self._index[kind] = self._build(values.dtype)
        return self._index[kind].get(fingerprint(values), [])

    def _build(self, kind: np.dtype[np.generic]) -> dict[bytes, list[str]]:
        found: dict[bytes, list[str]] = {}
        for wanted in self.wanted.values():
            for form in wanted.forms():
                with np.errstate(over="ignore"):
                    names = found.setdefault(fingerprint(form.astype(kind)), [])
                if wanted.name not in names:
                    names.append(wanted.name)
        return found


def fingerprint(values: Array) -> bytes:
    """Return a digest of the values in their order, whatever their shape; -0 is 0."""
    return hashlib.blake2b(np.ascontiguousarray(values + values.dtype.type(0)).data, digest_size=16).digest()


def sources(checkpoint: Checkpoint, step: OneStep, components: Iterable[str]) -> Sources:
    """Load the checkpoint and rewrite it as an export does."""
    from flashbulb.export.graph import module
    from flashbulb.export.rewrites import Rewrite

    found: dict[str, Wanted] = {}
    counted: dict[str, Counter[str]] = {}
    for component in components:
        part = module(checkpoint, component, step, Rewrite())
        found |= {wanted.name: wanted for wanted in _component(part, step, component)}
        counted[component] = traits(part)
    return Sources(found, counted)


def traits(part: nn.Module) -> Counter[str]:
    """Count what no tensor says of a component: each epsilon of a normalisation, and each gelu by tanh."""
    modules = list(part.modules())
    told = (getattr(m, "eps", None) for m in modules)
    found = Counter(epsilon_trait(e) for e in told if isinstance(e, float))
    by_tanh = [
        m for m in modules if getattr(m, "approximate", "") == "tanh" or type(m).__name__ == "GELUTanh"
    ]
    return found + Counter({TANH: len(by_tanh)})


def epsilon_trait(epsilon: float) -> str:
    """Name what a normalisation adds under its root, in the digits that its root has in float16."""
    return f"epsilon {epsilon:.2g}"


def _component(part: nn.Module, step: OneStep, component: str) -> Iterator[Wanted]:
    last, factor = _last_convolution(part), _factor(component, step)
    for wanted in tensors(component, part):
        path = wanted.name.removeprefix(f"{component}/")
        yield replace(
            wanted,
            name=f"{component}/{path.removeprefix('unet.')}" if component == "unet" else wanted.name,
            folded=component == "unet" and path.endswith(FOLDED),
            factor=factor if path.rpartition(".")[0] == last else None,
        )


def tensors(component: str, part: nn.Module) -> Iterator[Wanted]:
    """Yield the tensors of a module as they stand, under the name of a component."""
    parameters = dict(part.named_parameters())
    for path, tensor in (*parameters.items(), *part.named_buffers()):
        values = tensor.detach().float().numpy()
        yield Wanted(name=f"{component}/{path}", values=values, required=path in parameters)


def _last_convolution(part: nn.Module) -> str:
    """Name the module behind which a component's output lies."""
    import torch

    names = [n for n, m in part.named_modules() if isinstance(m, torch.nn.Conv2d)]
    return next((n for n in names if n.endswith("conv_out")), names[-1] if names else "")


def _factor(component: str, step: OneStep) -> float | None:
    """Return the factor of the affine behind a component: [-1, 1] to [0, 1], and the one step."""
    if component == "vae_decoder":
        return 0.5
    return step.coefficients()[1] / step.latent_scale if component == "unet" else None
