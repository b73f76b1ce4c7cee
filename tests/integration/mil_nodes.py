"""Hold every node and constant of a package to what coremltools itself infers, reads and decompresses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flashbulb.runtimes.engines.mil import Program
from flashbulb.runtimes.engines.mil.constants import Constant
from flashbulb.runtimes.engines.mil.opsets import OPSETS
from flashbulb.runtimes.engines.mil.plan import _Planner

Arrays = dict[str, np.ndarray]
UNJUDGED = ("const", "cast")
"""What is no node, or rounds there to fp16 and here, in mode fp32, to nothing."""


def run(path: Path, given: Arrays) -> tuple[Arrays, Arrays]:
    """Run a package in mode fp32; return its outputs, and the value of every node and opened code."""
    seen = dict(given)
    program = Program.load(path)
    found = program.predict(given, watch=lambda op, name, value: seen.setdefault(name, value.numpy().copy()))
    operations = program.package.functions["main"].block.operations
    opened = [n.name for o in operations if o.op.startswith("constexpr") for n in o.outputs]
    held = constants(path, halves=False)
    return found, seen | {name: held[name].get().numpy() for name in opened}


def constants(path: Path, halves: bool = True) -> dict[str, Any]:
    """Return what the interpreter reads as constants, by default rounded where they are declared as fp16."""
    package = Program.load(path, low_memory=True).package
    function = package.functions["main"]
    planner, scope = _Planner(package.weights, OPSETS[function.opset], halves, True), dict[str, Any]()
    inputs = [planner.bind(scope, n) for n in function.inputs]
    planner.block(function.block, scope, inputs)
    return scope


def mil_function(model: Any) -> Any:
    """Read a package back by coremltools' own reader."""
    from coremltools.converters.mil.frontend.milproto import load

    spec = model.get_spec()
    program = load.load(spec, spec.specificationVersion, model.weights_dir)
    return next(iter(program.functions.values()))


def judge_nodes(function: Any, seen: Arrays) -> dict[str, float]:
    """Let coremltools infer every node that it can from the inputs that the interpreter had.

    Returns:
        the worst error of each, as a share of its largest magnitude.
    """
    judged: dict[str, float] = {}
    for op in function.operations:
        if op.op_type in UNJUDGED or op.op_type.startswith("constexpr"):
            continue
        for var, wanted in zip(op.outputs, inferred(op, seen, function.opset_version), strict=False):
            if wanted is None:
                continue
            got = seen[var.name]
            assert got.shape == np.shape(wanted), op
            error = np.abs(got.astype(np.float64) - np.asarray(wanted, np.float64)).max()
            judged[var.name] = float(error) / max(1e-6, float(np.abs(wanted).max()))
    return judged


def inferred(op: Any, seen: Arrays, opset: Any) -> list[Any]:
    """Build an operation again from constants; what coremltools infers of each output, None for nothing.

    What is stored as fp16 is computed in float32, as the interpreter's mode fp32 does.
    """
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools spells it
    from coremltools.converters.mil.mil import Function

    def value(var: Any) -> Any:
        if isinstance(var, list | tuple):
            return [value(v) for v in var]
        found = seen.get(var.name, var.val)
        if getattr(found, "dtype", None) == np.float16:
            found = found.astype(np.float32)
        return bool(found) if isinstance(found, np.bool_) else found  # numpy's own functions refuse that

    given = {name: value(var) for name, var in op.inputs.items() if var is not None}
    parts = [g for v in given.values() for g in (v if isinstance(v, list) else [v])]
    if any(p is None for p in parts):
        return []
    with Function({"unused": mb.placeholder(shape=(1,))}, opset_version=opset):
        made = getattr(mb, op.op_type)(**given)
    return [v.val for v in (made if isinstance(made, list | tuple) else [made])]


def compare_constants(function: Any, scope: dict[str, Any]) -> Counter[str]:
    """Hold what the interpreter reads to what coremltools reads; equal in every bit."""
    count: Counter[str] = Counter()
    for op in function.operations:
        kind = op.op_type
        if kind != "const" and not kind.startswith("constexpr"):
            continue
        if kind == "const" and op.outputs[0].name not in scope:
            users = {child.op_type for child in op.outputs[0].child_ops}
            assert users, op.outputs[0].name
            assert all(u.startswith("constexpr") for u in users), op.outputs[0].name  # iOS 16: attributes
            continue
        values = op.materialized_val_inference() if kind != "const" else op.outputs[0].val
        for var, wanted in zip(op.outputs, values if isinstance(values, tuple) else [values], strict=True):
            held = scope[var.name]
            assert isinstance(held, Constant)
            got = held.get()
            same = got == wanted
            if isinstance(got, torch.Tensor):
                same = np.array_equal(got.numpy(), wanted.astype(got.numpy().dtype))
            assert same, (kind, var.name, got, wanted)
            count[kind] += 1
    return count
