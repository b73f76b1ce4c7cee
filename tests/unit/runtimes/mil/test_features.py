"""Pictures in and out, free sizes, several functions, state, optional inputs and classifiers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flashbulb.runtimes.engines.mil import Program, ProgramError

pytest.importorskip("coremltools")


def convert(
    tools: SimpleNamespace, module: nn.Module, example: torch.Tensor, path: Path, **options: Any
) -> Path:
    import coremltools as ct

    traced = torch.jit.trace(module.eval(), example, check_trace=False)
    saved: Path = tools.save_converted(traced, path, pass_pipeline=ct.PassPipeline(), **options)
    return saved


class Swap(nn.Module):
    """Darken the first channel: it shows an order of channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.tensor([0.5, 1.0, 1.0]).reshape(1, 3, 1, 1)


@pytest.mark.parametrize("layout", ["RGB", "BGR"])
def test_pictures_keep_their_channels_and_their_scale(
    layout: str, tools: SimpleNamespace, tmp_path: Path
) -> None:
    import coremltools as ct
    from PIL import Image

    colour = getattr(ct.colorlayout, layout)
    path = convert(
        tools, Swap(), torch.zeros(1, 3, 4, 6), tmp_path / "p.mlpackage",
        inputs=[ct.ImageType(name="x", shape=(1, 3, 4, 6), color_layout=colour)],
        outputs=[ct.ImageType(name="y", color_layout=colour)],
    )  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 128, (4, 6, 3)).astype(np.uint8) * 2
    found = Program.load(path).predict({"x": Image.fromarray(pixels)})["y"]
    wanted = pixels.copy()
    wanted[..., 0 if layout == "RGB" else 2] //= 2  # the first channel of the tensor
    np.testing.assert_array_equal(np.asarray(found), wanted)
    with pytest.raises(ProgramError, match="wanted x in shape"):
        Program.load(path).predict({"x": pixels[:3]})
    with pytest.raises(ProgramError, match="wanted a picture of 3 channels"):
        Program.load(path).predict({"x": pixels[..., 0]})
    for odd in (0.5, -700.0, 256.0, np.nan):
        floats = pixels.astype(np.float32)
        np.testing.assert_array_equal(np.asarray(Program.load(path).predict({"x": floats})["y"]), wanted)
        floats[1, 2, 0] = odd
        with pytest.raises(ProgramError, match=f"wanted whole numbers from 0 to 255 .* got {odd}"):
            Program.load(path).predict({"x": floats})
    with pytest.raises(ProgramError, match="wanted a picture for x, got elements of <U1"):
        Program.load(path).predict({"x": np.full((4, 6, 3), "a")})


def test_scale_and_bias_of_a_grey_picture_are_part_of_the_program(
    tools: SimpleNamespace, tmp_path: Path
) -> None:
    import coremltools as ct

    grey = ct.ImageType(
        name="x", shape=(1, 1, 4, 4), color_layout=ct.colorlayout.GRAYSCALE, scale=1 / 127.5, bias=-1.0
    )
    outputs = [ct.TensorType(name="y", dtype=np.float32)]
    module, zeros = nn.Sequential(nn.Identity(), nn.ReLU()), torch.zeros(1, 1, 4, 4)
    path = convert(tools, module, zeros, tmp_path / "g.mlpackage", inputs=[grey], outputs=outputs)
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
    found = Program.load(path).predict({"x": pixels})["y"]
    np.testing.assert_allclose(found[0, 0], np.maximum(pixels / 127.5 - 1, 0), atol=1e-6)


class Flatten(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x.reshape(x.shape[0], -1), -1)


def test_free_sizes_are_bounded_as_declared(tools: SimpleNamespace, tmp_path: Path) -> None:
    import coremltools as ct

    free = ct.Shape(shape=(1, 3, ct.RangeDim(2, 8, default=4), 5))
    path = convert(
        tools, Flatten(), torch.zeros(1, 3, 4, 5), tmp_path / "r.mlpackage",
        inputs=[ct.TensorType(name="x", shape=free)], outputs=[ct.TensorType(name="y")],
    )  # fmt: skip
    program = Program.load(path)
    for size in (2, 3, 8):
        x = np.random.default_rng(size).standard_normal((1, 3, size, 5)).astype(np.float32)
        wanted = torch.softmax(torch.from_numpy(x).reshape(1, -1), -1).numpy()
        np.testing.assert_allclose(program.predict({"x": x})["y"], wanted, atol=1e-6)
    with pytest.raises(ProgramError, match=r"got \[1, 3, 9, 5\]"):
        program.predict({"x": np.zeros((1, 3, 9, 5))})


def test_enumerated_sizes_admit_no_other(tools: SimpleNamespace, tmp_path: Path) -> None:
    import coremltools as ct

    shapes = ct.EnumeratedShapes(shapes=[(1, 3, 4, 5), (1, 3, 2, 5)])
    path = convert(
        tools, Flatten(), torch.zeros(1, 3, 4, 5), tmp_path / "e.mlpackage",
        inputs=[ct.TensorType(name="x", shape=shapes)], outputs=[ct.TensorType(name="y")],
    )  # fmt: skip
    program = Program.load(path)
    assert program.predict({"x": np.zeros((1, 3, 2, 5))})["y"].shape == (1, 30)
    with pytest.raises(ProgramError, match=r"sizes .*got \[1, 3, 3, 5\]"):
        program.predict({"x": np.zeros((1, 3, 3, 5))})


class Accumulate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x)
        return self.total * 2


def test_state_outlives_a_prediction_and_starts_anew(tools: SimpleNamespace, tmp_path: Path) -> None:
    import coremltools as ct

    path = convert(
        tools, Accumulate(), torch.zeros(3), tmp_path / "s.mlpackage", target="iOS18",
        inputs=[ct.TensorType(name="x", shape=(3,))], outputs=[ct.TensorType(name="y", dtype=np.float32)],
        states=[ct.StateType(wrapped_type=ct.TensorType(shape=(3,), dtype=np.float16), name="total")],
        compute_precision=ct.precision.FLOAT16,
    )  # fmt: skip
    program = Program.load(path, "fp16")
    x = np.array([1.0, 2.0, 0.5], np.float32)
    state = program.make_state()
    assert [program.predict({"x": x}, state)["y"][1] for _ in range(3)] == [4.0, 8.0, 12.0]
    assert program.predict({"x": x}, program.make_state())["y"][1] == 4.0
    assert program.predict({"x": x})["y"][1] == 4.0
    with pytest.raises(ProgramError, match="wanted the state 'total'"):
        program.predict({"x": x}, {})


def test_each_function_of_a_package_runs(tools: SimpleNamespace, tmp_path: Path) -> None:
    import coremltools as ct

    both = ct.utils.MultiFunctionDescriptor()
    for name, factor in (("twice", 2.0), ("thrice", 3.0)):
        module = nn.Linear(16, 16, bias=False)
        nn.init.eye_(module.weight).data.mul_(factor)
        source = convert(
            tools, module, torch.zeros(1, 16), tmp_path / f"{name}.mlpackage", target="iOS18",
            inputs=[ct.TensorType(name="x", shape=(1, 16))], outputs=[ct.TensorType(name="y")],
        )  # fmt: skip
        both.add_function(str(source), src_function_name="main", target_function_name=name)
    both.default_function_name = "thrice"
    path = tmp_path / "both.mlpackage"
    ct.utils.save_multifunction(both, str(path))
    x = np.ones((1, 16), np.float32)
    for function, wanted in ((None, 3.0), ("twice", 2.0), ("thrice", 3.0)):
        assert Program.load(path, function=function).predict({"x": x})["y"][0, 0] == wanted


def test_a_classifier_gives_its_class_and_all_probabilities(tools: SimpleNamespace, tmp_path: Path) -> None:
    import coremltools as ct

    path = convert(
        tools, nn.Softmax(-1), torch.zeros(1, 3), tmp_path / "c.mlpackage",
        inputs=[ct.TensorType(name="x", shape=(1, 3))],
        classifier_config=ct.ClassifierConfig(["cat", "dog", "京"]),
    )  # fmt: skip
    found = Program.load(path).predict({"x": np.log(np.array([[0.2, 0.5, 0.3]]))})
    assert found["classLabel"] == "dog"
    probabilities = next(v for v in found.values() if isinstance(v, dict))
    assert {k: round(v, 5) for k, v in probabilities.items()} == {"cat": 0.2, "dog": 0.5, "京": 0.3}


def test_an_optional_input_takes_its_default(tools: SimpleNamespace, tmp_path: Path) -> None:
    import coremltools as ct

    path = convert(
        tools, nn.ReLU(), torch.zeros(1, 4), tmp_path / "o.mlpackage",
        inputs=[ct.TensorType(name="x", shape=(1, 4), default_value=np.full((1, 4), 2.5, np.float32))],
        outputs=[ct.TensorType(name="y")],
    )  # fmt: skip
    program = Program.load(path)
    assert program.predict({})["y"].tolist() == [[2.5] * 4]
    assert program.predict({"x": np.ones((1, 4))})["y"].tolist() == [[1.0] * 4]


def test_loops_and_branches_turn_as_often_as_they_say(tools: SimpleNamespace, tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools spells it

    def build(x: Any) -> Any:
        count = mb.reduce_sum(x=x, axes=[0], keep_dims=False)
        start = mb.fill(shape=[2], value=np.float32(1.0))
        _, total = mb.while_loop(
            _cond=lambda i, total: mb.greater(x=i, y=np.float32(0.0)),
            _body=lambda i, total: (mb.sub(x=i, y=np.float32(1.0)), mb.mul(x=total, y=np.float32(2.0))),
            loop_vars=(count, start),
        )
        large = mb.greater(x=mb.reduce_max(x=total, keep_dims=False), y=np.float32(10.0))
        return mb.cond(
            pred=large, _true_fn=lambda: mb.sub(x=total, y=x), _false_fn=lambda: mb.add(x=total, y=x)
        )

    path = tools.save_program(build, {"x": np.zeros(2, np.float32)}, tmp_path / "w.mlpackage")
    program = Program.load(path)
    name = program.outputs[0]
    assert program.predict({"x": np.array([1.0, 1.0])})[name].tolist() == [5.0, 5.0]
    assert program.predict({"x": np.array([2.0, 2.0])})[name].tolist() == [14.0, 14.0]
