"""What a model says of itself is listed by two readers, and held to its function and to the manifest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flashbulb.distill.components import TensorSpec
from flashbulb.export.anatomy.coreml import package_lines
from flashbulb.runtimes.engines.mil import Program, ProgramError
from flashbulb.runtimes.engines.mil.contract import told
from flashbulb.runtimes.engines.mil.listing import read_package_listing

ct = pytest.importorskip("coremltools")
Edit = Callable[[Any], None]
MODEL = "Data/com.apple.CoreML/model.mlmodel"


class Sum(nn.Module):
    """An array of free sizes, a picture, and an array of some shapes."""

    def forward(self, x: torch.Tensor, picture: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x * 2, picture * 0.5, y.sum()


@pytest.fixture(scope="module")
def package(tools: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    free, some = ct.Shape(shape=(1, ct.RangeDim(2, 8, default=4))), ct.EnumeratedShapes([(2, 3), (2, 5)])
    given = (torch.zeros(1, 4), torch.zeros(1, 3, 4, 6), torch.zeros(2, 3))
    saved: Path = tools.save_converted(
        torch.jit.trace(Sum(), given),
        tmp_path_factory.mktemp("description") / "p.mlpackage",
        pass_pipeline=ct.PassPipeline(),
        inputs=[
            ct.TensorType(name="x", shape=free, default_value=np.full((1, 4), 0.1, np.float32)),
            ct.ImageType(name="picture", shape=given[1].shape, color_layout=ct.colorlayout.BGR),
            ct.TensorType(name="y", shape=some),
        ],
        outputs=[
            ct.TensorType(name="twice"),
            ct.ImageType(name="dark", color_layout=ct.colorlayout.BGR),
            ct.TensorType(name="sum"),
        ],
    )
    return saved


def edited(package: Path, into: Path, change: Edit) -> Path:
    from coremltools.proto import Model_pb2

    path = Path(shutil.copytree(package, into / "edited.mlpackage")) / MODEL
    model = Model_pb2.Model.FromString(path.read_bytes())
    change(model)
    path.write_bytes(model.SerializeToString())
    return path.parents[2]


def test_both_readers_list_a_description_alike(package: Path) -> None:
    lines = package_lines(package)
    assert dict(read_package_listing(package).lines) == lines
    assert lines["(input 0)"] == "x: optional array float32 [1, 4] default 0.10000000149011612 " + (
        "from 1 to 1 from 2 to 8"
    )
    assert lines["(input 1)"] == "picture: image BGR [4, 6]"
    assert lines["(input 2)"] == "y: array float32 [2, 3] or [2, 3] or [2, 5]"
    assert lines["(output 0)"] == "twice: array float32 []"


def test_both_readers_list_functions_and_states_alike(tmp_path: Path) -> None:
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model(specificationVersion=9)
    function = model.description.functions.add(name="twice")
    state = function.state.add(name="total").type.stateType.arrayType
    state.shape.extend([3, 4])
    state.dataType = 65552
    function.input.add(name="odd").type.multiArrayType.dataType = 7
    picture = function.output.add(name="free").type.imageType
    picture.imageSizeRange.heightRange.lowerBound, picture.imageSizeRange.heightRange.upperBound = 3, -1
    model.description.defaultFunctionName = "twice"
    program = model.mlProgram
    program.version = 1
    program.functions["twice"].opset = "CoreML8"
    program.functions["twice"].block_specializations["CoreML8"].SetInParent()
    path = tmp_path / "f.mlpackage" / MODEL
    path.parent.mkdir(parents=True)
    path.write_bytes(model.SerializeToString())
    items = '{"a": {"path": "com.apple.CoreML/model.mlmodel"}}'
    (path.parents[2] / "Manifest.json").write_text(
        f'{{"fileFormatVersion": "1.0.0", "itemInfoEntries": {items}, "rootModelIdentifier": "a"}}'
    )
    lines = package_lines(path.parents[2])
    assert dict(read_package_listing(path.parents[2]).lines) == lines
    assert lines["(default function)"] == "twice"
    assert lines["twice(state 0)"] == "total: state float16 [3, 4]"
    assert lines["twice(input 0)"] == "odd: array type 7 []"
    assert lines["twice(output 0)"] == "free: image [0, 0] from 3 to any from 0 to 0"


def array(model: Any, index: int = 0) -> Any:
    return model.description.input[index].type.multiArrayType


def renamed(model: Any) -> None:
    model.description.output[0].name = "other"


def enlarged(model: Any) -> None:
    array(model).shape[1] = 9


def retyped(model: Any) -> None:
    array(model).dataType = 131104


def unknown(model: Any) -> None:
    array(model).dataType = 7


def emptied(model: Any) -> None:
    del model.description.input[:]
    del model.description.output[:]


def halved(model: Any) -> None:
    model.description.output[0].type.multiArrayType.dataType = 65552


def shaped(model: Any) -> None:
    model.description.output[0].type.multiArrayType.shape.extend([2, 8])


def unshaped(model: Any) -> None:
    del array(model).shape[:]


def widened(model: Any) -> None:
    array(model).shapeRange.sizeRanges[0].upperBound = 2


def chosen(model: Any) -> None:
    array(model, 2).enumeratedShapes.shapes[1].shape[0] = 3


def grey(model: Any) -> None:
    model.description.input[1].type.imageType.colorSpace = 10


def broad(model: Any) -> None:
    model.description.input[1].type.imageType.width = 7


def elsewhere(model: Any) -> None:
    model.description.functions.add(name="other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, r"outputs \['twice', 'dark', 'sum'\] described as \['other', 'dark', 'sum'\]"),
        (enlarged, r"input 'x': shape \[1, 'free'\], usually \[1, 9\], described with the sizes"),
        (retyped, "input 'x': fp32 described as int32"),
        (unknown, "input 'x': fp32 described as type 7"),
        (emptied, r"inputs .* described as \[\]; outputs .* described as \[\]"),
        (halved, "output 'twice': fp32 described as float16"),
        (shaped, r"output 'twice': shape \[1, 'free'\] described as \[2, 8\]"),
        (unshaped, r"input 'x': shape \[1, 'free'\] described as \[\]"),
        (widened, r"described with the sizes \(\(1, 2\), \(2, 8\)\)"),
        (chosen, r"described with the choices \(\(2, 3\), \(3, 5\)\)"),
        (grey, r"input 'picture': \[1, 3, 4, 6\] described as a GRAYSCALE picture"),
        (broad, r"input 'picture': shape \[4, 6\] described as \[4, 7\]"),
        (elsewhere, r"wanted a description of the function 'main', got those of \['other'\]"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_description_of_something_else_is_refused(
    package: Path, tmp_path: Path, change: Edit, message: str
) -> None:
    Program.load(package)
    with pytest.raises(ProgramError, match=message):
        Program.load(edited(package, tmp_path, change))


def test_a_description_is_held_to_what_a_manifest_promises(tools: SimpleNamespace, tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools spells it

        return mb.relu(x=x, name="y")

    plain = tools.save_program(build, {"x": np.zeros((2, 3), np.float32)}, tmp_path / "plain.mlpackage")
    x, y = (TensorSpec(name=n, dtype="float32", shape=(2, 3)) for n in "xy")
    interface = Program.load(plain).interface
    assert told(interface, [x], [y]) == []
    assert told(interface, [x, y], [y]) == ["inputs ['y'] are in one of them only"]
    other = TensorSpec(name="x", dtype="int32", shape=(2, 3))
    assert told(interface, [other], [y]) == [
        "input 'x' is `array int32 [2, 3]` in the manifest, `array float32 [2, 3]` in the model"
    ]

    def optional(model: Any) -> None:
        model.description.input[0].type.isOptional = True

    interface = Program.load(edited(plain, tmp_path, optional)).interface
    assert "`optional array float32 [2, 3] default 0.0` in the model" in told(interface, [x], [y])[0]
