"""Open a program with other constants than those it stores: what would it compute without their rounding?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from flashbulb.export.anatomy.listing import Array, Listing
from flashbulb.runtimes.engines.mil.budget import Budget, explained, spending
from flashbulb.runtimes.engines.mil.package import read_package
from flashbulb.runtimes.engines.mil.plan import compile_function
from flashbulb.runtimes.engines.mil.program import Program
from flashbulb.runtimes.engines.mil.spec import Operation, Value

Exact = Callable[[str, Array], Array | None]
"""Given a constant's name and values, returns better ones, or None to leave it."""


def exact_program(path: Path, listing: Listing, exact: Exact) -> Program:
    """Compile a package for fp32 with some of its constants replaced; codes are replaced as a whole.

    Raises:
        ProgramError: when it is damaged, or not supported.
    """
    package = read_package(path)
    name = package.description.default or "main"
    function = package.functions[name]
    operations = tuple(_replaced(o, listing, exact) for o in function.block.operations)
    changed = replace(function, block=replace(function.block, operations=operations))
    budget = Budget(explained(package.weights))
    with spending(budget):
        plan = compile_function(changed, package.weights, mode="fp32")
    return Program(package, name, "fp32", plan, budget)


def _replaced(operation: Operation, listing: Listing, exact: Exact) -> Operation:
    if operation.op != "const" and not operation.op.startswith("constexpr_"):
        return operation
    name = operation.outputs[0].name if len(operation.outputs) == 1 else ""
    constant = listing.constants.get(name)
    values = None if constant is None else constant.load()
    better = exact(name, values) if values is not None and values.dtype.kind == "f" else None
    if better is None:
        return operation
    value = Value(operation.outputs[0].type, array=better)
    return Operation("const", {}, operation.outputs, (), {"val": value})
