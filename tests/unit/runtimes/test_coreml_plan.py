"""Core ML's compute plan is read rightly: Apple's own record types, filled here, as only macOS does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("coremltools")

from coremltools.models import compute_device as devices
from coremltools.models import compute_plan as plans

from flashbulb.runtimes.coreml_plan import DEVICES, shares
from flashbulb.runtimes.engines.coreml import Coreml, CoremlSession


def operation(name: str, *blocks: Any) -> Any:
    return plans.MLModelStructureProgramOperation(
        inputs={}, operator_name=name, outputs=[], blocks=list(blocks), __proxy__=None
    )


def block(*operations: Any) -> Any:
    return plans.MLModelStructureProgramBlock(inputs=[], operations=list(operations), output_names=[])


class Plan:
    """What `MLComputePlan` answers, without the framework."""

    def __init__(self, program: Any, told: dict[str, tuple[str, float]]) -> None:
        self.model_structure = plans.MLModelStructure(neuralnetwork=None, program=program, pipeline=None)
        self.told = told

    def get_compute_device_usage_for_mlprogram_operation(self, op: Any) -> Any:
        if op.operator_name not in self.told:
            return None
        device = object.__new__(getattr(devices, self.told[op.operator_name][0]))
        return plans.MLComputePlanDeviceUsage(
            preferred_compute_device=device, supported_compute_devices=[device]
        )

    def get_estimated_cost_for_mlprogram_operation(self, op: Any) -> Any:
        return (
            plans.MLComputePlanCost(weight=self.told[op.operator_name][1])
            if op.operator_name in self.told
            else None
        )


def plan(told: dict[str, tuple[str, float]]) -> Plan:
    inner = block(operation("conv"))
    body = block(operation("const"), operation("matmul"), operation("cond", inner), operation("softmax"))
    function = plans.MLModelStructureProgramFunction(inputs=[], block=body)
    return Plan(plans.MLModelStructureProgram(functions={"main": function}), told)


def test_costs_are_shared_out_by_preferred_device_nested_blocks_included() -> None:
    told = {
        "matmul": ("MLNeuralEngineComputeDevice", 0.3),
        "conv": ("MLGPUComputeDevice", 0.1),
        "softmax": ("MLCPUComputeDevice", 0.1),
    }
    assert shares(plan(told)) == pytest.approx({"CPU": 0.2, "GPU": 0.2, "Neural Engine": 0.6})


def test_a_plan_without_estimates_says_nothing() -> None:
    assert shares(plan({})) == {}
    assert shares(Plan(None, {})) == {}


def test_every_device_of_core_ml_has_a_word() -> None:
    known = {k.__name__ for k in devices.MLComputeDevice.__subclasses__()}
    assert known == set(DEVICES)


def test_each_choice_of_compute_units_is_checked_and_timed_under_its_own_label() -> None:
    bundle: Any = SimpleNamespace()
    labels = ["coreml", "coreml-cpu", "coreml-gpu", "coreml-ne"]
    assert [e.label for e in Coreml().variants(bundle)] == labels
    assert [e.label for e in Coreml().timings()] == labels
    assert {e.backend for e in Coreml().timings()} == {"coreml"}


def test_a_system_without_plans_is_a_warning_and_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    def absent() -> str:
        raise RuntimeError("MLComputePlan needs macOS 14.4")

    model = SimpleNamespace(get_compiled_model_path=absent)
    session = CoremlSession(Coreml(), {}, {"unet": model})
    assert session.placement("unet") == {}
    assert "no compute plan of unet" in caplog.text
