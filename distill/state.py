"""The state of a training: modules, optimizers, averaged weights, step; one safetensors file, no pickle.

It is saved whole, whatever the number of processes and however the weights are sharded among them, so that a
run may be resumed with another number of processes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flashbulb.distill.precision import LossScale
from flashbulb.distill.sharding import like, load_whole, local, whole

if TYPE_CHECKING:
    import torch


TALLY = "tally/"
"""Prefix of a tally's names in the file."""


class State:
    """Everything that a resumed run needs: modules, optimizers, EMA weights and the step."""

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        *,
        averaged: tuple[str, ...] = (),
    ) -> None:
        self.step = 0
        self.skipped = 0
        self.tally: Counter[str] = Counter()
        """What a trainer counts in its steps, those before a resume included."""
        self.scale = LossScale(enabled=False)
        self.modules = dict(modules)
        self.optimizers = dict(optimizers)
        self.ema = {
            name: {k: v.detach().clone() for k, v in modules[name].state_dict().items()} for name in averaged
        }

    def update_ema(self, decay: float) -> None:
        """Move the averaged weights towards the present ones; young averages move faster."""
        import torch

        rate = 1 - min(decay, (1 + self.step) / (10 + self.step))
        for name, average in self.ema.items():
            present = self.modules[name].state_dict()
            moving = [k for k, v in average.items() if v.dtype.is_floating_point]
            torch._foreach_lerp_(
                [local(average[k]) for k in moving], [local(present[k].detach()) for k in moving], rate
            )
            for key in average.keys() - set(moving):
                average[key].copy_(present[key])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors under the names that they have in the file."""
        found: dict[str, torch.Tensor] = {}
        for name, module in self.modules.items():
            found |= {f"module/{name}/{k}": v for k, v in module.state_dict().items()}
        for name, average in self.ema.items():
            found |= {f"ema/{name}/{k}": v for k, v in average.items()}
        for name, optimizer in self.optimizers.items():
            found |= _optimizer_tensors(f"optimizer/{name}", optimizer)
        return found

    def save(self, folder: Path, *, write: bool = True) -> None:
        """Write the state into ``folder`` as one safetensors file, renamed in when it is whole.

        All processes call this; the one with ``write`` writes.
        """
        from safetensors.torch import save_file

        tensors = gathered(self.tensors(), keep=write)
        if not write:
            return
        folder.mkdir(parents=True, exist_ok=True)
        numbers: dict[str, float] = {f"{TALLY}{name}": count for name, count in self.tally.items()} | {
            "step": self.step,
            "skipped": self.skipped,
            "loss_scale": self.scale.scale,
            "loss_scale_good": self.scale.good,
        }
        partial = folder / ".state.partial"
        save_file(tensors, partial, {name: str(number) for name, number in numbers.items()})
        os.replace(partial, folder / "state.safetensors")

    def load(self, folder: Path) -> bool:
        """Restore the state of ``folder``; return whether there was one."""
        from safetensors import safe_open

        file = folder / "state.safetensors"
        if not file.is_file():
            return False
        with safe_open(file, "pt") as opened:
            meta = opened.metadata()
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        for name, module in self.modules.items():
            load_whole(module, _under(tensors, f"module/{name}/"))
        for name, average in self.ema.items():
            for key, value in _under(tensors, f"ema/{name}/").items():
                average[key].copy_(like(value, average[key]))
        for name, optimizer in self.optimizers.items():
            _restore_optimizer(optimizer, _under(tensors, f"optimizer/{name}/"))
        self.step, self.skipped = int(meta["step"]), int(meta["skipped"])
        self.tally = Counter({k.removeprefix(TALLY): int(v) for k, v in meta.items() if k.startswith(TALLY)})
        if self.scale.enabled and "loss_scale" in meta:
            self.scale.scale, self.scale.good = float(meta["loss_scale"]), int(meta["loss_scale_good"])
        return True

    def use_ema(self) -> None:
        """Put the averaged weights into the modules."""
        for name, average in self.ema.items():
            self.modules[name].load_state_dict(average)


def gathered(tensors: Mapping[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
    """Gather dealt-out tensors, one at a time; return copies on the CPU for the process that keeps them.

    All processes call this together. Beside its own share, a device holds one whole tensor at a time.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        one = whole(tensor.detach())
        if keep:
            found[name] = one.to("cpu", copy=True).contiguous()
        del one  # before the next is gathered
    return found


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    import torch

    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}/{index}/{key}": torch.as_tensor(value)
        for index, entry in state.items()
        for key, value in entry.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for name, value in tensors.items():
        index, key = name.split("/")
        weight = weights[int(index)]
        state.setdefault(int(index), {})[key] = like(value, weight) if value.shape == weight.shape else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
