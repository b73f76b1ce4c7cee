"""What a program declares must hold: types, ages of operations, words that are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flashbulb.runtimes.engines.mil import Program, ProgramError
from flashbulb.runtimes.engines.mil.ops import OPS
from flashbulb.runtimes.engines.mil.opsets import LATER, SINCE, VERSIONS

pytest.importorskip("coremltools")
Edit = Callable[[Any], None]


def build(x: Any) -> list[Any]:
    """Build one of each: on iOS 18, a constant, an addition, and operations that take words."""
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools spells it

    y = mb.add(x=x, y=np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4), name="sum")
    y = mb.pad(x=mb.gelu(x=y, mode="EXACT"), pad=[1, 1, 1, 1], mode="reflect")
    y = mb.resize(x=y, shape=[8, 8], resized_dims=np.uint32(2), interpolation_mode="LINEAR")
    y = mb.scaled_dot_product_attention(query=y, key=y, value=y)
    return [mb.cast(x=mb.cast(x=y, dtype="int32"), dtype="fp32")]


@pytest.fixture(scope="module")
def package(tools: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("load") / "p.mlpackage"
    saved: Path = tools.save_program(build, {"x": np.zeros((1, 1, 4, 4), np.float32)}, path, target="iOS18")
    return saved


@pytest.fixture
def refused(package: Path, tmp_path: Path) -> Callable[[Edit], str]:
    """Edit a copy, and return what is said of it when it is opened and run."""
    import shutil

    from coremltools.proto import Model_pb2

    def edit(change: Edit) -> str:
        copy = Path(shutil.copytree(package, tmp_path / "copy.mlpackage"))
        path = copy / "Data/com.apple.CoreML/model.mlmodel"
        model = Model_pb2.Model.FromString(path.read_bytes())
        change(model)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ProgramError) as found:
            Program.load(copy)
        return str(found.value)

    return edit


def block(model: Any) -> Any:
    function = model.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def operation(model: Any, kind: str) -> Any:
    return next(o for o in block(model).operations if o.type == kind)


def test_a_constant_is_of_the_type_that_is_declared(refused: Callable[[Edit], str]) -> None:
    def change(model: Any) -> None:
        name = operation(model, "add").inputs["y"].arguments[0].name
        made = next(o for o in block(model).operations if o.outputs[0].name == name)
        made.outputs[0].type.tensorType.dataType = 10
        made.outputs[0].type.tensorType.dimensions[3].constant.size = 99

    words = refused(change)
    assert "of the declared type tensor fp16[1, 1, 4, 99], got tensor fp32[1, 1, 4, 4]" in words


def test_every_unknown_word_is_named_at_load(refused: Callable[[Edit], str]) -> None:
    words = {"gelu": "mode", "pad": "mode", "resize": "interpolation_mode", "cast": "dtype"}

    def change(model: Any) -> None:
        for kind, parameter in words.items():
            name = operation(model, kind).inputs[parameter].arguments[0].name
            made = next(o for o in block(model).operations if o.outputs[0].name == name)
            made.attributes["val"].immediateValue.tensor.strings.values[:] = [f"odd {kind}"]

    found = refused(change)
    for kind in words:
        assert f"{kind}: wanted one of" in found
        assert f"got 'odd {kind}'" in found


@pytest.mark.parametrize(("opset", "version"), [("CoreML6", 7), ("CoreML7", 8)])
def test_an_operation_of_a_later_opset_is_refused(
    refused: Callable[[Edit], str], opset: str, version: int
) -> None:
    def change(model: Any) -> None:
        function, model.specificationVersion = model.mlProgram.functions["main"], version
        function.block_specializations[opset].CopyFrom(function.block_specializations["CoreML8"])
        del function.block_specializations["CoreML8"]
        function.opset = opset

    words = refused(change)
    held = VERSIONS[version]
    assert f"wanted an operation of the opset of iOS {held}, it came with iOS 18" in words
    assert ("resize: wanted an operation" in words) is (held < 17)


@pytest.mark.parametrize("version", [0, 5, 6, 7, 8])
def test_an_opset_is_not_later_than_the_model(refused: Callable[[Edit], str], version: int) -> None:
    def change(model: Any) -> None:
        model.specificationVersion = version

    assert f"in a model of version {version}, got CoreML8; export it again" in refused(change)


def test_a_package_that_is_read_once_runs_in_both_modes(package: Path) -> None:
    from flashbulb.runtimes.engines.mil.package import read_package

    read, given = read_package(package), {"x": np.full((1, 1, 4, 4), 0.3, np.float32)}
    for mode in ("fp32", "fp16"):
        got, wanted = Program.load(read, mode).predict(given), Program.load(package, mode).predict(given)
        assert got.keys() == wanted.keys()
        for name in wanted:
            np.testing.assert_array_equal(got[name], wanted[name])
    with pytest.raises(ProgramError, match="wanted the mode fp32 or fp16, got 'fp64'"):
        Program.load(read, "fp64")  # type: ignore[arg-type]


def test_a_result_is_of_the_kind_that_is_declared(package: Path, tools: SimpleNamespace) -> None:
    import dataclasses

    from flashbulb.runtimes.engines.mil.budget import Budget
    from flashbulb.runtimes.engines.mil.dtypes import BY_NAME
    from flashbulb.runtimes.engines.mil.package import read_package
    from flashbulb.runtimes.engines.mil.plan import compile_function

    read = read_package(package)
    function, given = read.functions["main"], {"x": np.full((1, 1, 4, 4), 0.5, np.float32)}
    for kind, wanted in (("int32", "whole numbers"), ("bool", "truth values")):
        operations = []
        for o in function.block.operations:
            if o.op == "add":
                output = o.outputs[0]
                typed = dataclasses.replace(output.type, dtype=BY_NAME[kind])
                o = dataclasses.replace(o, outputs=(dataclasses.replace(output, type=typed),))
            operations.append(o)
        changed = dataclasses.replace(
            function, block=dataclasses.replace(function.block, operations=tuple(operations))
        )
        plan = compile_function(changed, read.weights)
        program = Program(
            dataclasses.replace(read, functions={"main": changed}), "main", "fp32", plan, Budget()
        )
        with pytest.raises(ProgramError, match=f"add 'sum': wanted the declared {wanted}, computed floats"):
            program.predict(given)
    Program.load(package).predict(given)


def test_ages_of_operations_are_those_of_coremltools() -> None:
    import coremltools.converters.mil.mil.ops.defs  # noqa: F401 - this fills the registry
    from coremltools.converters.mil._deployment_compatibility import AvailableTarget
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    assert {v: int(AvailableTarget(v).name.removeprefix("iOS")) for v in VERSIONS} == VERSIONS
    ours = {**dict.fromkeys(OPS, 15), **SINCE}
    theirs = {
        op: VERSIONS[max(min(VERSIONS), min(target.value for target in versions))]
        for op, versions in SSAOpRegistry.core_ops.items()
    }
    unknown = {"write_state"}  # a name of the file's; its writer there is `coreml_update_state`
    assert set(ours) - set(theirs) == unknown
    assert {op: since for op, since in ours.items() if op in theirs} == {
        op: theirs[op] for op in ours if op in theirs
    }
    assert set(SINCE) == {op for ops in LATER.values() for op in ops} <= set(OPS)
