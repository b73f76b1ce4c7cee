"""A pytest plugin: Apple's own operator tests, out of the coremltools wheel, predict with our interpreter.

The tests convert a small program and call `MLModel.predict`, which needs macOS.  Here `predict` and
`make_state` run the saved package by `flashbulb.runtimes.engines.mil`; converting and comparing stay theirs.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MACOS = (15, 4)
"""What the tests are told of the system, so that none is left out for its age."""

EXPLAINED = {
    "iOS16/test_image_resizing.py::TestCropResize::test_builder_to_backend_ios16": 1.1e-3,
    "iOS17/test_recurrent.py::TestRNN::": 1e-2,
}
"""Tests whose expectation is off by up to this, absolutely and relatively.

The first has 7.899 written for 1 + 4 * 1.5 + 0.9.  The second computes its reference before it rounds
weights and inputs to fp16: with mode fp32, which rounds nothing further, the difference is the same.
"""
UNDEFINED = ("_invalid_indices", "wanted indices in [")
"""Tests that any result passes but one, because nothing says what it is; here such indices are refused."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("apple")
    group.addoption("--per-test", type=int, default=0, help="cases of each test to run; 0 runs all")
    group.addoption("--fault", default=None, help="a wrong meaning to plant; see FAULTS")
    group.addoption("--record", default=None, help="write outcomes here as JSON")
    group.addoption("--fp32-only", action="store_true", help="leave the loose comparisons of fp16 out")


def pytest_configure(config: pytest.Config) -> None:
    from coremltools.converters.mil import testing_utils
    from coremltools.models import model, utils

    utils._is_macos = testing_utils.coremltoolsutils._is_macos = lambda: True
    utils._macos_version = testing_utils.coremltoolsutils._macos_version = lambda: MACOS
    testing_utils._IS_MACOS = True
    model.MLModel.predict = predict
    model.MLModel.make_state = lambda self: program(self).make_state()
    if name := config.getoption("--fault"):
        plant(name)
    config.pluginmanager.register(Recorder(config), "apple-recorder")


calls: Counter[str] = Counter()
"""Predictions per test."""
halves: set[str] = set()
"""Tests whose programs compute in fp16, whatever tolerance they are held to."""
ROUNDING = 16 * 2.0**-11
"""What sixteen roundings to fp16 may move a value of size 1 by."""
current = ""


def program(model: Any) -> Any:
    """Load the package that a model was converted into; what is declared as fp16 is rounded, no more."""
    from flashbulb.runtimes.engines.mil import Program

    if model.package_path is None:
        pytest.skip("a neural network, which is no ML program")
    if getattr(model, "_flashbulb", None) is None:
        model._flashbulb = Program.load(model.package_path, "fp16", function=model.function_name or None)
    return model._flashbulb


def predict(self: Any, data: Any, state: Any = None) -> Any:
    """Stand in for `MLModel.predict`."""
    calls[current] += 1
    if computes_halves(program(self)):
        halves.add(current)
    one = [data] if isinstance(data, dict) else data
    found = [program(self).predict(d, state) for d in one]
    return found[0] if isinstance(data, dict) else found


def computes_halves(found: Any) -> bool:
    """Tell a program that takes or makes fp16 values."""
    function = found.package.functions[found.function]
    made = [o for operation in function.block.operations for o in operation.outputs]
    return any(n.type.dtype and n.type.dtype.name == "fp16" for n in (*function.inputs, *made))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = [i for i in items if wanted(i, config)]
    if count := config.getoption("--per-test"):
        groups: dict[str, list[pytest.Item]] = defaultdict(list)
        for item in chosen:
            groups[item.nodeid.partition("[")[0]].append(item)
        ordered = (sorted(g, key=lambda i: zlib.crc32(i.nodeid.encode())) for g in groups.values())
        kept = {id(i) for g in ordered for i in g[:count]}
        chosen = [i for i in chosen if id(i) in kept]
    items[:] = chosen


def wanted(item: pytest.Item, config: pytest.Config) -> bool:
    """Leave out other model types, and fp16 when only tight comparisons are wanted."""
    kind, precision = backend_of(item)
    return kind in (None, "mlprogram") and not (config.getoption("--fp32-only") and precision == "fp16")


def backend_of(item: pytest.Item) -> tuple[str | None, str | None]:
    """Return the model type and precision that a case is for, where it says so."""
    backend = getattr(item, "callspec", None) and item.callspec.params.get("backend")
    if isinstance(backend, tuple):
        return backend[:2]
    # Pytest fills in a mark of its own where a test has no case for any of the model types asked for.
    return getattr(backend, "backend", None), getattr(backend, "precision", None)


class Recorder:
    """Notes what became of each test that predicted."""

    def __init__(self, config: pytest.Config) -> None:
        self.path = config.getoption("--record")
        self.found: dict[str, dict[str, Any]] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        global current
        current = item.nodeid
        yield

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            reason = "" if report.outcome == "passed" else last_line(report)
            self.found[report.nodeid] = {
                "outcome": outcome(report, reason),
                "reason": reason,
                "predictions": calls[report.nodeid],
            }

    def pytest_sessionfinish(self) -> None:
        if self.path:
            Path(self.path).write_text(json.dumps(self.found, indent=1))


def outcome(report: pytest.TestReport, reason: str) -> str:
    if report.outcome == "failed" and "not supported here" in reason:
        return "unsupported"
    if report.outcome == "failed" and UNDEFINED[0] in report.nodeid and UNDEFINED[1] in reason:
        return "explained"
    if report.outcome == "failed" and "Mismatched elements" in str(report.longrepr):
        slack = next((v for name, v in EXPLAINED.items() if report.nodeid.startswith(name)), None)
        if slack is not None and close(str(report.longrepr), slack):
            return "explained"
        return "rounding" if report.nodeid in halves and close(str(report.longrepr)) else "mismatch"
    return report.outcome


def close(words: str, most: float = ROUNDING) -> bool:
    """Tell a difference that rounding explains: small, and small against the values too.

    Some tests build a program of fp16 inputs and weights, and hold it with the tolerance of fp32 to a
    reference that was computed from the values before they were rounded.
    """
    found = [float(m) for m in re.findall(r"Max (?:absolute|relative) difference[^:]*: (\S+)", words)]
    return bool(found) and all(m <= most for m in found)


def last_line(report: pytest.TestReport) -> str:
    """Return the line that says what went wrong."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    words = str(crash.message if crash else report.longrepr).strip().splitlines()
    return " ".join(words[:3])[:400] if words else ""


def _wrong_gelu(right: Callable[..., Any]) -> Callable[..., Any]:
    def gelu(x: Any, mode: str = "EXACT") -> Any:
        return right(x, "SIGMOID_APPROXIMATION" if mode == "EXACT" else "EXACT")

    return gelu


def _changed(name: str, change: Callable[[Any], Any]) -> Callable[..., Any]:
    """Change one argument on its way."""

    def wrap(right: Callable[..., Any]) -> Callable[..., Any]:
        def wrong(**arguments: Any) -> Any:
            if name in arguments:
                arguments[name] = change(arguments[name])
            return right(**arguments)

        return wrong

    return wrap


def _next_axis(axis: int) -> int:
    return axis - 1 if axis > 0 else axis + 1 if axis < -1 else 0 if axis == -1 else 1


FAULTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "gelu-mode": ("gelu", _wrong_gelu),
    "conv-pad": ("conv", _changed("pad", lambda pad: tuple(p + 1 for p in pad))),
    "softmax-axis": ("softmax", _changed("axis", _next_axis)),
    "epsilon": ("layer_norm", _changed("epsilon", lambda e: e + 0.1)),
    "transpose": ("matmul", _changed("transpose_y", lambda flag: not flag)),
    "keep-order": ("transpose", _changed("perm", lambda perm: tuple(range(len(perm))))),
    "next-axis": ("gather", _changed("axis", _next_axis)),
    "twice": ("reduce_mean", lambda right: lambda **arguments: right(**arguments) * 2),
}


def plant(name: str) -> None:
    """Give an operation a wrong meaning."""
    import dataclasses

    from flashbulb.runtimes.engines.mil.ops import OPS

    op, wrap = FAULTS[name]
    OPS[op] = dataclasses.replace(OPS[op], function=wrap(OPS[op].function))
