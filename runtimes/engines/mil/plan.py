"""Compile a function into a flat list of steps: constants bound once, values freed after their last use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from flashbulb.runtimes.engines.mil.budget import Budget, current
from flashbulb.runtimes.engines.mil.constants import Constant, Weights, constant
from flashbulb.runtimes.engines.mil.dtypes import held_dtype
from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.ops import OPS
from flashbulb.runtimes.engines.mil.opsets import OPSETS, check_age
from flashbulb.runtimes.engines.mil.spec import Block, Function, Named, Operation, Type, Value
from flashbulb.runtimes.engines.mil.table import At, Op, bounded, convert, half

Source = int | Constant
"""A slot, or a value known at load."""
Scope = dict[str, Source]
FAULTS = (RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError, OverflowError, MemoryError)
"""What operations raise on values that they cannot take."""
CONVERTING = ("reduce_l2_norm", "reduce_log_sum", "reduce_log_sum_exp", "reduce_mean")
"""Operations that compute whole numbers in floats, and drop the fraction."""


@dataclass(slots=True)
class Step:
    """One operation, ready to run."""

    op: Op
    names: tuple[str, ...]
    """Names of its outputs."""
    static: dict[str, Any]
    """Arguments known at load."""
    lazy: list[tuple[str, Any, list[Constant]]]
    """Arguments known at load that are read anew each time, to save memory."""
    direct: list[tuple[str, int]]
    """Arguments that are one slot's tensor."""
    mixed: list[tuple[str, Any, list[Source]]]
    """Arguments made of several slots, or converted from one."""
    outputs: list[int]
    types: tuple[Type, ...]
    held: list[torch.dtype | None]
    rounded: bool
    """Round what comes out to fp16."""
    blocks: list[BlockPlan] = field(default_factory=list)
    free: list[int] = field(default_factory=list)
    """Slots whose values nobody needs after this."""

    @property
    def name(self) -> str:
        """Name of its first output, by which it is told from others."""
        return self.names[0] if self.names else self.op.name

    def uses(self) -> set[int]:
        """Return the slots that it reads, also inside its blocks."""
        own = {slot for _, slot in self.direct}
        own |= {s for _, _, sources in self.mixed for s in sources if isinstance(s, int)}
        return own.union(*(b.uses() for b in self.blocks))


@dataclass(slots=True)
class BlockPlan:
    """Steps with what goes in and comes out."""

    inputs: list[int]
    steps: list[Step]
    outputs: list[Source]

    def uses(self) -> set[int]:
        """Return the slots that it or its steps read."""
        return set().union(*(s.uses() for s in self.steps)) | {s for s in self.outputs if isinstance(s, int)}


@dataclass(slots=True)
class Plan:
    """A compiled function."""

    inputs: tuple[Named, ...]
    outputs: tuple[str, ...]
    block: BlockPlan
    slots: int


def compile_function(function: Function, weights: Weights, *, mode: str = "fp32", keep: bool = True) -> Plan:
    """Compile a function.

    Args:
        function: what the package holds.
        weights: its weight files.
        mode: `fp32`, or `fp16` to round what is declared so.
        keep: keep weights in memory; otherwise they are read each time they are used.

    Raises:
        ProgramError: naming everything that is not supported, at once.
    """
    if function.opset not in OPSETS:
        raise ProgramError(f"wanted an opset of {list(OPSETS)}, got {function.opset!r}")
    planner = _Planner(weights, OPSETS[function.opset], mode == "fp16", keep)
    scope: Scope = {}
    inputs = [planner.bind(scope, named) for named in function.inputs]
    block = planner.block(function.block, scope, inputs)
    planner.refuse()
    return Plan(function.inputs, function.block.outputs, block, planner.slots)


class _Planner:
    def __init__(self, weights: Weights, opset: int, fp16: bool, keep: bool) -> None:
        self.weights, self.opset, self.fp16, self.keep = weights, opset, fp16, keep
        self.slots = 0
        self.problems: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def bind(self, scope: Scope, named: Named) -> int:
        """Give a name its slot."""
        scope[named.name] = self.slots
        self.slots += 1
        return self.slots - 1

    def block(self, block: Block, scope: Scope, inputs: list[int]) -> BlockPlan:
        """Compile the operations of a block; names of outer blocks are seen, own ones stay inside."""
        before = self.slots
        steps = [s for operation in block.operations if (s := self.operation(operation, scope)) is not None]
        outputs = [self.source(name, scope, "the outputs") for name in block.outputs]
        plan = BlockPlan(inputs, steps, outputs)
        _free(plan, {*inputs, *range(before, self.slots)})
        return plan

    def operation(self, operation: Operation, scope: Scope) -> Step | None:
        """Compile one operation, or note why not."""
        name = operation.outputs[0].name if operation.outputs else operation.op
        try:
            for named in operation.outputs:
                _check_type(named.type)
            if operation.op == "const":
                self._const(operation, scope)
            elif operation.op not in OPS:
                raise ProgramError(f"the operation {operation.op}")
            else:
                check_age(operation.op, self.opset)
                if not operation.op.startswith("constexpr_"):
                    return self._step(OPS[operation.op], operation, scope)
                self._constexpr(OPS[operation.op], operation, scope)
        except ProgramError as error:
            problem = str(error) if operation.op not in OPS else f"{operation.op}: {error}"
            self.problems[problem] += 1
            self.first.setdefault(problem, name)
            for named in operation.outputs:
                self.bind(scope, named)
        return None

    def refuse(self) -> None:
        """Raise everything that was noted.

        Raises:
            ProgramError: with counts and the first place of each.
        """
        if self.problems:
            words = [f"{p} ({n} times, first {self.first[p]!r})" for p, n in self.problems.most_common()]
            raise ProgramError(f"the program needs what is not supported here: {'; '.join(words)}")

    def source(self, name: str | Value, scope: Scope, where: str) -> Source:
        """Return what a name stands for; a value given in place is a constant."""
        if isinstance(name, Value):
            return constant(name, self.weights, self.keep)
        if name not in scope:
            raise ProgramError(f"wanted a value that was computed before for {where}, got {name!r}")
        return scope[name]

    def _const(self, operation: Operation, scope: Scope) -> None:
        if "val" not in operation.attributes or len(operation.outputs) != 1:
            raise ProgramError("wanted a constant with a value and one output, got another")
        declared, value = operation.outputs[0], operation.attributes["val"]
        if declared.type != value.type:
            raise ProgramError(
                f"wanted a constant of the declared type {_words(declared.type)}, got {_words(value.type)}"
            )
        scope[declared.name] = constant(value, self.weights, self.keep)

    def _sources(self, op: Op, operation: Operation, scope: Scope) -> dict[str, list[Source]]:
        """Match an operation's inputs with the parameters of its function."""
        given: dict[str, tuple[str | Value, ...]] = dict(operation.inputs)
        given |= {n: (v,) for n, v in operation.attributes.items() if n in op.parameters}
        extra = [
            *(set(operation.attributes) - set(op.parameters) - {"name"}),
            *(set(given) - set(op.parameters)),
        ]
        absent = [n for n, p in op.parameters.items() if p.required and n not in given]
        if extra or absent:
            raise ProgramError(f"unknown inputs {sorted(extra)}, missing {absent}")
        return {n: [self.source(v, scope, operation.op) for v in values] for n, values in given.items()}

    def _constexpr(self, op: Op, operation: Operation, scope: Scope) -> None:
        """Decompress when asked for: it is a constant whose parts are constants."""
        sources = self._sources(op, operation, scope)
        parts: dict[str, list[Constant]] = {}
        for name, values in sources.items():
            parts[name] = [v for v in values if isinstance(v, Constant)]
            if len(parts[name]) != len(values):
                raise ProgramError(f"wanted a constant for {name}, got a computed value")
        if not operation.outputs:
            raise ProgramError("wanted an output of a compressed constant, got none")
        types = tuple(o.type for o in operation.outputs)
        at = At(operation.outputs[0].name, self.opset, types)

        def decompress() -> tuple[Any, ...]:
            static = {n: convert(op.parameters[n].kind, [c.get() for c in cs]) for n, cs in parts.items()}
            try:
                found = op.function(**static, **({"at": at} if op.at else {}))
            except FAULTS as error:
                known = isinstance(error, ProgramError)
                raise error if known else ProgramError(f"{at.name} cannot be opened: {error}") from error
            both = found if isinstance(found, tuple) else (found,)
            if len(both) != len(types):
                raise ProgramError(f"wanted {len(both)} outputs of {at.name}, got {len(types)}")
            return tuple(self._rounded(v, t) for v, t in zip(both, types, strict=True))

        whole = Constant(types[0], decompress, keep=False)
        for index, named in enumerate(operation.outputs):
            scope[named.name] = Constant(named.type, _item(whole, index, named), self.keep)

    def _rounded(self, value: Any, kind: Type) -> Any:
        return half(value) if self.fp16 and kind.dtype and kind.dtype.name == "fp16" else value

    def _step(self, op: Op, operation: Operation, scope: Scope) -> Step:
        types = tuple(o.type for o in operation.outputs)
        rounded = self.fp16 and not op.exact and any(t.dtype and t.dtype.name == "fp16" for t in types)
        names = tuple(o.name for o in operation.outputs)
        held = [
            held_dtype(t.dtype) if t.kind == "tensor" and t.dtype and t.dtype.held else None for t in types
        ]
        step = Step(op, names, {}, [], [], [], [], types, held, rounded)
        if op.at:
            step.static["at"] = At(step.name, self.opset, types)
        for parameter, sources in self._sources(op, operation, scope).items():
            self._argument(step, parameter, op.parameters[parameter].kind, sources)
        for nested in operation.blocks:
            inner = dict(scope)
            step.blocks.append(self.block(nested, inner, [self.bind(inner, n) for n in nested.inputs]))
        step.outputs = [self.bind(scope, named) for named in operation.outputs]
        return step

    def _argument(self, step: Step, name: str, kind: Any, sources: list[Source]) -> None:
        constants = [s for s in sources if isinstance(s, Constant)]
        if len(constants) == len(sources):
            if all(c.kept for c in constants):
                step.static[name] = convert(kind, [c.get() for c in constants])
            else:
                step.lazy.append((name, kind, constants))
        elif len(sources) == 1 and isinstance(sources[0], int) and _passes(kind):
            step.direct.append((name, sources[0]))
        else:
            step.mixed.append((name, kind, sources))


def _passes(kind: Any) -> bool:
    """Tell the kinds that a slot's value has already."""
    from flashbulb.runtimes.engines.mil.table import State

    return kind in (torch.Tensor, State, list, list[Any])


def _item(whole: Constant, index: int, named: Named) -> Callable[[], Any]:
    """Take one output of a decompression, of the shape that is declared."""

    def make() -> Any:
        value = whole.get()[index]
        if tuple(value.shape) != named.type.shape:
            raise ProgramError(f"wanted {named.name} of shape {named.type.shape}, got {tuple(value.shape)}")
        if named.type.dtype is not None:
            _check_kind(value, held_dtype(named.type.dtype))
        return value

    return make


def _check_type(kind: Type) -> None:
    if kind.shape is not None:
        bounded([s for s in kind.shape if s is not None])


def _free(plan: BlockPlan, own: set[int]) -> None:
    """Note after each step which of the block's own values are not needed any more."""
    live = {s for s in plan.outputs if isinstance(s, int)}
    for step in reversed(plan.steps):
        used = step.uses()
        step.free = sorted(((used | set(step.outputs)) & own) - live)
        live |= used


def execute(
    plan: BlockPlan, slots: list[Any], arguments: list[Any], watch: Callable[..., None] | None
) -> list[Any]:
    """Run a compiled block and return its outputs."""
    budget = current()
    for slot, value in zip(plan.inputs, arguments, strict=True):
        slots[slot] = value
        budget.hold(slot, value)
    for step in plan.steps:
        _run(step, slots, watch, budget)
    return [s.get() if isinstance(s, Constant) else slots[s] for s in plan.outputs]


def _run(step: Step, slots: list[Any], watch: Callable[..., None] | None, budget: Budget) -> None:
    arguments = step.static.copy()
    for name, slot in step.direct:
        arguments[name] = slots[slot]
    for name, kind, sources in step.mixed:
        arguments[name] = convert(kind, [s.get() if isinstance(s, Constant) else slots[s] for s in sources])
    for name, kind, constants in step.lazy:
        arguments[name] = convert(kind, [c.get() for c in constants])
    if step.blocks:
        arguments["blocks"] = tuple(_block(b, slots, watch) for b in step.blocks)
    try:
        found = step.op.function(**arguments)
        _store(step, found if isinstance(found, tuple) else (found,), slots)
        for slot in step.outputs:
            budget.hold(slot, slots[slot])
    except ProgramError as error:
        raise ProgramError(f"{step.op.name} {step.name!r}: {error}") from error
    except FAULTS as error:
        raise ProgramError(f"{step.op.name} {step.name!r} could not run: {error}") from error
    if watch is not None:
        watch(step, [slots[s] for s in step.outputs])
    for slot in step.free:
        slots[slot] = None
        budget.release(slot)


def _block(plan: BlockPlan, slots: list[Any], watch: Callable[..., None] | None) -> Callable[..., list[Any]]:
    return lambda *values: execute(plan, slots, list(values), watch)


def _store(step: Step, found: tuple[Any, ...], slots: list[Any]) -> None:
    """Put the outputs into their slots in the declared type, rounded where they are declared as fp16."""
    if not step.outputs:
        return
    if len(found) != len(step.outputs):
        raise ProgramError(f"wanted {len(step.outputs)} outputs, got {len(found)}")
    for value, slot, dtype, kind in zip(found, step.outputs, step.held, step.types, strict=True):
        if dtype is not None:
            if value.dtype is not dtype:
                if step.op.name not in CONVERTING:
                    _check_kind(value, dtype)
                value = value.to(dtype)
            if step.rounded and kind.dtype is not None and kind.dtype.name == "fp16":
                value = half(value)
            _check_shape(value, kind)
        slots[slot] = value


def _check_kind(value: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse to turn floats, whole numbers and truth values into one another: a cast does that."""
    if _number(value.dtype) != _number(dtype):
        raise ProgramError(f"wanted the declared {_number(dtype)}, computed {_number(value.dtype)}")


def _number(dtype: torch.dtype) -> str:
    if dtype is torch.bool:
        return "truth values"
    return "floats" if dtype.is_floating_point else "whole numbers"


def _words(kind: Type) -> str:
    return f"{kind.kind} {kind.dtype.name if kind.dtype else ''}{list(kind.shape or ())}"


def _check_shape(value: torch.Tensor, kind: Type) -> None:
    shape = kind.shape
    if shape is None or value.shape == shape:
        return
    if len(shape) != value.ndim or any(w not in (None, g) for w, g in zip(shape, value.shape, strict=True)):
        raise ProgramError(f"wanted the declared shape {list(shape)}, computed {list(value.shape)}")


def operations(plan: BlockPlan) -> Mapping[str, int]:
    """Count the operations of a plan by name, nested ones included."""
    found: Counter[str] = Counter()
    for step in plan.steps:
        found[step.op.name] += 1
        for block in step.blocks:
            found.update(operations(block))
    return found
