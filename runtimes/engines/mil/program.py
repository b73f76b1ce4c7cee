"""A saved Core ML program that runs here: `Program.load(path).predict({...})`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flashbulb.distill.errors import MissingExtra
from flashbulb.runtimes.engines.mil.budget import MAX_TURNS, Budget, explained, spending
from flashbulb.runtimes.engines.mil.contract import agreed
from flashbulb.runtimes.engines.mil.description import Interface
from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.features import default_input, read_input, write_output
from flashbulb.runtimes.engines.mil.opsets import check_version
from flashbulb.runtimes.engines.mil.package import Package, read_package
from flashbulb.runtimes.engines.mil.spec import Named

if TYPE_CHECKING:
    import torch

    from flashbulb.runtimes.engines.mil.plan import Plan, Step
    from flashbulb.runtimes.engines.mil.table import State

Mode = Literal["fp32", "fp16"]
Watch = Callable[[str, str, "torch.Tensor"], None]
"""Called as ``watch(operation, name, value)`` with every tensor that is computed, by its own name."""


class Program:
    """One function of an `.mlpackage`, compiled for this machine's processor.

    In mode `fp32` every float is a float32 and nothing is rounded: it shows whether the graph is right.
    In mode `fp16` each operation computes in float32 and rounds its result once where it is declared as fp16.
    """

    def __init__(self, package: Package, function: str, mode: Mode, plan: Plan, budget: Budget) -> None:
        self.package, self.function, self.mode, self._plan = package, function, mode, plan
        check_version(package.version, package.functions[function].opset)
        self.interface: Interface = agreed(package.description, package.functions[function], function)
        self.budget = budget
        self._features = {f.name: f for f in self.interface.inputs}
        self._outputs = {f.name: f for f in self.interface.outputs}

    @classmethod
    def load(
        cls,
        path: str | Path | Package,
        mode: Mode = "fp32",
        *,
        function: str | None = None,
        low_memory: bool = False,
        max_bytes: int | None = None,
        max_turns: int = MAX_TURNS,
    ) -> Program:
        """Read and compile a package.

        Args:
            path: the `.mlpackage` folder, or what `read_package` made of it.
            mode: `fp32` or `fp16`.
            function: which function of it; by default the one that the model names, or `main`.
            low_memory: keep weights in their file and decompress each when it is used, which is slower.
            max_bytes: of all constants in memory, and of all values that a prediction needs at one time; by
                default two gibibytes and 64 times the bytes of its weight files.
            max_turns: of all loops of a prediction together.

        Raises:
            ProgramError: when it is damaged, or needs anything that is not supported; all of that is named.
            MissingExtra: without torch.
        """
        if importlib.util.find_spec("torch") is None:
            raise MissingExtra("running Core ML programs needs torch", "coreml")
        from flashbulb.runtimes.engines.mil.plan import compile_function

        if mode not in ("fp32", "fp16"):
            raise ProgramError(f"wanted the mode fp32 or fp16, got {mode!r}")
        package = path if isinstance(path, Package) else read_package(Path(path))
        name = function or package.description.default or "main"
        if name not in package.functions:
            raise ProgramError(f"wanted the function {name!r}, the package has {sorted(package.functions)}")
        bytes_ = explained(package.weights) if max_bytes is None else max_bytes
        with spending(Budget(bytes_, max_turns)) as budget:
            plan = compile_function(package.functions[name], package.weights, mode=mode, keep=not low_memory)
        return cls(package, name, mode, plan, budget)

    @property
    def inputs(self) -> tuple[Named, ...]:
        """The tensors to give, with their types."""
        return tuple(n for n in self._plan.inputs if n.type.kind == "tensor")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what comes back, in order."""
        return self._plan.outputs

    @property
    def operations(self) -> Mapping[str, int]:
        """Operations by name, with how often each is there; constants are not counted."""
        from flashbulb.runtimes.engines.mil.plan import operations

        return operations(self._plan.block)

    def make_state(self) -> dict[str, State]:
        """Make a fresh state, all zeros, to hand to `predict` again and again."""
        import torch

        from flashbulb.runtimes.engines.mil.dtypes import held_dtype
        from flashbulb.runtimes.engines.mil.table import State, bounded

        found = {}
        self.budget.begin()
        with spending(self.budget):
            for index, named in enumerate(self._plan.inputs):
                if named.type.kind == "state" and named.type.dtype is not None:
                    shape = bounded([s or 1 for s in named.type.shape or ()])
                    value = torch.zeros(shape, dtype=held_dtype(named.type.dtype))
                    self.budget.hold(index, value)
                    found[named.name] = State(value)
        return found

    def predict(
        self,
        inputs: Mapping[str, Any],
        state: Mapping[str, State] | None = None,
        *,
        watch: Watch | None = None,
    ) -> dict[str, Any]:
        """Run the program once.

        Args:
            inputs: arrays by name; pictures (PIL or h w c) for image inputs.
            state: from `make_state`; without one, a stateful program starts from zeros.
            watch: sees every tensor on its way.

        Returns:
            arrays by name; pictures for image outputs; label and probabilities of a classifier.

        Raises:
            ProgramError: when an input does not fit, or an operation cannot run.
        """
        import torch

        from flashbulb.runtimes.engines.mil.plan import execute

        arguments = self._arguments(inputs, self.make_state() if state is None else state)
        self.budget.begin()
        with torch.inference_mode(), spending(self.budget):
            slots: list[Any] = [None] * self._plan.slots
            found = execute(self._plan.block, slots, arguments, _watcher(watch))
        halves = self.mode == "fp16"
        pairs = zip(self._plan.outputs, found, strict=True)
        return {n: write_output(self._outputs.get(n), v, halves) for n, v in pairs}

    def _arguments(self, inputs: Mapping[str, Any], state: Mapping[str, State]) -> list[Any]:
        """Match what was given with what the function takes."""
        names = [n.name for n in self.inputs]
        if extra := sorted(set(inputs) - set(names)):
            raise ProgramError(f"wanted the inputs {names}, got {extra} as well")
        found: list[Any] = []
        for named in self._plan.inputs:
            if named.type.kind == "state":
                if named.name not in state:
                    raise ProgramError(f"wanted the state {named.name!r}, got {sorted(state)}")
                found.append(state[named.name])
            else:
                found.append(self._argument(named, inputs))
        return found

    def _argument(self, named: Named, inputs: Mapping[str, Any]) -> torch.Tensor:
        from flashbulb.runtimes.engines.mil.table import half

        feature = self._features.get(named.name)
        value = inputs.get(named.name)
        value = default_input(named, feature) if value is None else value
        if value is None:
            raise ProgramError(f"wanted the input {named.name!r}, got {sorted(inputs)}")
        tensor = read_input(named, feature, value)
        rounds = self.mode == "fp16" and named.type.dtype is not None and named.type.dtype.name == "fp16"
        return half(tensor) if rounds else tensor


def _watcher(watch: Watch | None) -> Callable[[Step, list[Any]], None] | None:
    if watch is None:
        return None

    def see(step: Step, values: list[Any]) -> None:
        import torch

        for name, value in zip(step.names, values, strict=True):
            if isinstance(value, torch.Tensor):
                watch(step.op.name, name, value)

    return see
