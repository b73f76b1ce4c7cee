"""Where Core ML means to run a program: its own compute plan, which macOS 14.4 and later give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

DEVICES = {
    "MLCPUComputeDevice": "CPU",
    "MLGPUComputeDevice": "GPU",
    "MLNeuralEngineComputeDevice": "Neural Engine",
}
"""Core ML's classes -> the words that people use."""


def placement(compiled: str, units: str) -> dict[str, float]:
    """Return which share of a compiled program's estimated cost Core ML places on which device.

    Args:
        compiled: the `.mlmodelc` folder.
        units: name of a `coremltools.ComputeUnit`, as ``CPU_AND_NE``.
    """
    from coremltools import ComputeUnit
    from coremltools.models.compute_plan import MLComputePlan

    return shares(MLComputePlan.load_from_path(compiled, compute_units=ComputeUnit[units]))


def shares(plan: Any) -> dict[str, float]:
    """Sum the costs of a plan's operations by preferred device, as shares of the total; empty without any.

    Operations that Core ML estimates nothing for, as constants, count for nothing.
    """
    costs: dict[str, float] = {}
    for operation in _operations(plan):
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        if usage is None or cost is None:
            continue
        kind = type(usage.preferred_compute_device).__name__
        device = DEVICES.get(kind, kind)
        costs[device] = costs.get(device, 0.0) + cost.weight
    total = sum(costs.values())
    return {device: cost / total for device, cost in sorted(costs.items())} if total > 0 else {}


def _operations(plan: Any) -> Iterator[Any]:
    """Yield the operations of all functions, those of nested blocks included."""
    program = plan.model_structure.program
    blocks = [function.block for function in program.functions.values()] if program else []
    while blocks:
        for operation in blocks.pop().operations:
            yield operation
            blocks += operation.blocks
