"""What PyTorch computes inside a component: every tensor of every operator, with the module that it is in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from flashbulb.export.anatomy.listing import Array

if TYPE_CHECKING:
    from torch import nn

    from flashbulb.distill.checkpoint import Checkpoint
    from flashbulb.distill.schedule import OneStep
    from flashbulb.export.rewrites import Rewrite

ORDERS = {
    2: ((1, 0),),
    3: ((0, 2, 1), (1, 0, 2)),
    4: ((0, 2, 3, 1), (0, 3, 1, 2), (0, 2, 1, 3), (0, 1, 3, 2)),
}
"""Other orders of axes in which a runtime may hold an activation: channels last, heads apart, transposed."""


@dataclass(frozen=True, slots=True)
class Activation:
    """One tensor on its way."""

    place: str
    """Path of the module, as in the checkpoint."""
    op: str
    """Operator, such as `aten.convolution`."""
    values: Array

    def __str__(self) -> str:
        return f"{self.place or 'the component'} ({self.op})"


@dataclass(slots=True)
class Reference:
    """All activations of one run, in order."""

    activations: list[Activation] = field(default_factory=list)
    scalars: set[float] = field(default_factory=set)
    """Every number that an operator was given: what a program stores rounded."""
    _by_size: dict[int, list[tuple[int, float, float]]] = field(default_factory=dict)

    def like(self, values: Array, floor_db: float) -> int:
        """Return the first activation that some values are, in any order of axes; -1 where there is none.

        Sums and powers do not depend on the order and sort out nearly all that differ.
        """
        flat = values.astype(np.float64).ravel()
        mean, rms = _moments(flat)
        slack = 2.0 * 10.0 ** (-floor_db / 20.0) * rms + 1e-30
        for index, other_mean, other_rms in self._of_size(flat.size):
            if abs(mean - other_mean) <= slack and abs(rms - other_rms) <= slack:
                values_of = self.activations[index].values
                if any(snr_db(form, flat) >= floor_db for form in forms(values_of)):
                    return index
        return -1

    def nearest(self, values: Array) -> tuple[int, float]:
        """Return the activation that is most like some values, and how like in dB; slow.

        Returns:
            its number, or -1 where none has as many values, and the signal-to-noise ratio.
        """
        best, most, flat = -1, -np.inf, values.astype(np.float64).ravel()
        for index, _, _ in self._of_size(flat.size):
            found = max(snr_db(form, flat) for form in forms(self.activations[index].values))
            if found > most:
                best, most = index, found
        return best, most

    def _of_size(self, size: int) -> list[tuple[int, float, float]]:
        """Return number, mean and root mean square of all activations of a size."""
        if not self._by_size:
            for index, activation in enumerate(self.activations):
                moments = _moments(activation.values.astype(np.float64))
                self._by_size.setdefault(activation.values.size, []).append((index, *moments))
        return self._by_size.get(size, [])


def _moments(values: Array) -> tuple[float, float]:
    return float(values.mean()), float(np.sqrt(np.mean(values * values)))


def forms(values: Array) -> Iterator[Array]:
    """Yield the values of an activation in every order that a runtime may hold them in, flat."""
    yield values.ravel()
    for order in ORDERS.get(values.ndim, ()):
        yield values.transpose(order).ravel()


def snr_db(wanted: Array, got: Array) -> float:
    """Return 10 log10(power of the reference / power of the error); infinite when equal, -inf for NaN."""
    error = float(np.mean((wanted.astype(np.float64) - got) ** 2))
    power = float(np.mean(wanted.astype(np.float64) ** 2))
    if not np.isfinite(error):
        return -np.inf
    if error == 0.0:
        return np.inf
    return 10.0 * float(np.log10(power / error)) if power > 0.0 else -np.inf


def trace(
    checkpoint: Checkpoint,
    step: OneStep,
    component: str,
    rewrite: Rewrite,
    inputs: Sequence[Array],
    *,
    keep: bool = True,
) -> Reference:
    """Run a component in the form in which it was lowered, and keep every activation.

    Args:
        checkpoint: the source.
        step: its one step.
        component: which part of it.
        rewrite: the forms that the backend asked for.
        inputs: golden inputs, in call order.
        keep: keep the activations; otherwise only the numbers that operators were given.
    """
    import torch

    from flashbulb.export.graph import module

    part = module(checkpoint, component, step, rewrite).eval()
    recorder = _recorder(part, keep)
    given = [np.asarray(a) for a in inputs if a.dtype.kind == "f"]
    recorder.reference.activations += [Activation("", "input", a) for a in given]
    with torch.no_grad(), recorder:
        part(*(torch.from_numpy(np.ascontiguousarray(a)) for a in inputs))
    found: Reference = recorder.reference
    told = (getattr(m, "eps", None) for m in part.modules())
    found.scalars |= {e for e in told if isinstance(e, float)}
    return found


def _recorder(part: nn.Module, keep: bool) -> Any:
    """Make a mode under which every operator's result is kept."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    stack: list[str] = []

    class Recorder(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.reference = Reference()

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            found = func(*args, **(kwargs or {}))
            self.reference.scalars.update(float(a) for a in args if isinstance(a, float))
            for value in (found if isinstance(found, tuple | list) else (found,)) if keep else ():
                if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 1:
                    name = str(func).rpartition(".")[0]
                    kept = value.detach().float().clone().numpy()
                    place = stack[-1] if stack else ""
                    self.reference.activations.append(Activation(place, name, kept))
            return found

    for name, child in part.named_modules():
        path = name.removeprefix("unet.") if name != "unet" else ""
        child.register_forward_pre_hook(lambda *_, path=path: stack.append(path))
        child.register_forward_hook(lambda *_: _drop(stack))
    return Recorder()


def _drop(stack: list[str]) -> None:
    """Leave a module; a hook that returned something would replace its result."""
    stack.pop()
