"""Weights, gradients and optimizer states of a network dealt out over the processes (FSDP, arXiv 2304.11277).

torch's ``fully_shard`` in place, the call that accelerate's FSDP2 makes; accelerate itself makes it on GPUs
only, and this also runs on two CPU processes, where it is tested. Each block is gathered while it computes.
State on disk is always whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

Sharding = Literal["none", "fsdp"]
"""``none``: every process has all weights; ``fsdp``: each has its share of the student's."""

BLOCKS = ("down_blocks", "mid_block", "up_blocks")
"""Parts of a UNet that are gathered one by one."""


def shard(module: torch.nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Deal out a network's weights in place, and let fresh optimizers step the shares.

    Raises:
        ValueError: in a single process, or when an optimizer has stepped already.
    """
    import torch
    from torch.distributed.fsdp import fully_shard

    if not torch.distributed.is_initialized():
        raise ValueError("sharding fsdp wants several processes, got one; set sharding to none")
    names = {id(weight): name for name, weight in module.named_parameters()}
    for block in _blocks(module):
        fully_shard(block)
    fully_shard(module)
    shares = dict(module.named_parameters())
    for optimizer in optimizers:
        if optimizer.state:
            raise ValueError("wanted optimizers that have not stepped, got one with state; shard first")
        for group in optimizer.param_groups:
            group["params"] = [shares[names[id(p)]] if id(p) in names else p for p in group["params"]]


def _blocks(module: torch.nn.Module) -> list[torch.nn.Module]:
    import torch

    parts = [getattr(module, name) for name in BLOCKS if getattr(module, name, None) is not None]
    nested = [list(part) if isinstance(part, torch.nn.ModuleList) else [part] for part in parts]
    return [block for blocks in nested for block in blocks]


def is_share(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is one process's share of a dealt-out one."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process has of a tensor, sharing its memory."""
    return cast(Any, tensor).to_local() if is_share(tensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Gather a dealt-out tensor, together with the other processes; return any other one as it is."""
    return cast(Any, tensor).full_tensor() if is_share(tensor) else tensor


def whole_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a module's state dict with gathered tensors; all processes call this together."""
    return {name: whole(tensor.detach()) for name, tensor in module.state_dict().items()}


def copy_whole(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Copy weights that may be dealt out into a module that has them whole, one tensor at a time."""
    shares = source.state_dict()
    for name, tensor in target.state_dict().items():
        tensor.copy_(whole(shares[name].detach()))


def like(tensor: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Deal out a whole tensor as ``wanted`` is, or return it when that is whole."""
    from torch.distributed.tensor import distribute_tensor

    if not is_share(wanted):
        return tensor
    shares = cast(Any, wanted)
    return distribute_tensor(tensor.to(wanted.device), shares.device_mesh, shares.placements)


def load_whole(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load whole tensors into a module whose weights may be dealt out."""
    present = module.state_dict()
    dealt = {name: like(tensor, present.get(name, tensor)) for name, tensor in state.items()}
    module.load_state_dict(dealt)


def plain_copy(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module itself, or a whole copy of it on the CPU when its weights are dealt out."""
    from diffusers import UNet2DConditionModel

    if not any(map(is_share, module.parameters())):
        return module
    made = UNet2DConditionModel.from_config(cast(Any, module).config)
    copy_whole(module, made)
    return cast("torch.nn.Module", made.eval())
