"""Programs that coremltools converted from torch run here and agree with torch."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flashbulb.runtimes.engines.mil import Program, ProgramError

pytest.importorskip("coremltools")


class Net(nn.Module):
    """Convolution, group normalisation, attention: what our exports are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 2, 1)
        self.norm = nn.GroupNorm(4, 16)
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = nn.functional.silu(self.norm(self.conv(x)))
        h = nn.functional.interpolate(h, scale_factor=2.0)
        t = h.flatten(2).transpose(1, 2)
        q, k, v = (t @ p.T for p in self.attend.in_proj_weight.chunk(3))
        a = torch.softmax(q @ k.transpose(1, 2) / 4.0, -1) @ v
        return torch.tanh(self.out(t + a)).mean(1)


@pytest.fixture(scope="module")
def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval()


def converted(tools: SimpleNamespace, net: nn.Module, path: Path, target: str, precision: str) -> Path:
    import coremltools as ct

    example = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    traced = torch.jit.trace(net, example, check_trace=False)
    saved: Path = tools.save_converted(
        traced,
        path,
        target=target,
        inputs=[ct.TensorType(name="x", shape=example.shape)],
        outputs=[ct.TensorType(name="y", dtype=np.float32)],
        compute_precision=getattr(ct.precision, precision),
        pass_pipeline=ct.PassPipeline(),
    )
    return saved


@pytest.fixture(scope="module")
def saved(tools: SimpleNamespace, net: Net, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mil")
    return {
        "plain": converted(tools, net, root / "plain.mlpackage", "iOS16", "FLOAT32"),
        "half": converted(tools, net, root / "half.mlpackage", "iOS18", "FLOAT16"),
    }


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((1, 3, 16, 16)).astype(np.float32)


def wanted(net: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return net(torch.from_numpy(x)).numpy()


def test_an_fp32_program_agrees_with_torch_to_rounding(
    tools: SimpleNamespace, net: Net, saved: dict[str, Path], x: np.ndarray
) -> None:
    found = Program.load(saved["plain"]).predict({"x": x})
    assert list(found) == ["y"]
    assert found["y"].dtype == np.float32
    assert tools.snr_db(found["y"], wanted(net, x)) > 110


def test_fp16_loses_only_what_rounding_takes(
    tools: SimpleNamespace, net: Net, saved: dict[str, Path], x: np.ndarray
) -> None:
    exact = wanted(net, x)
    unrounded = tools.snr_db(Program.load(saved["half"]).predict({"x": x})["y"], exact)
    rounded = tools.snr_db(Program.load(saved["half"], "fp16").predict({"x": x})["y"], exact)
    assert 45 < rounded < 85
    assert unrounded > rounded


def test_little_memory_changes_no_bit(saved: dict[str, Path], x: np.ndarray) -> None:
    found = [Program.load(saved["half"], low_memory=low).predict({"x": x})["y"] for low in (False, True)]
    np.testing.assert_array_equal(*found)


def test_values_are_freed_after_their_last_use(saved: dict[str, Path], x: np.ndarray) -> None:
    program = Program.load(saved["plain"])
    from flashbulb.runtimes.engines.mil.plan import execute

    slots: list[Any] = [None] * program._plan.slots
    execute(program._plan.block, slots, [torch.from_numpy(x)], None)
    assert sum(s is not None for s in slots) == 1


def test_a_watcher_sees_every_operation(saved: dict[str, Path], x: np.ndarray) -> None:
    program, seen = Program.load(saved["plain"]), []
    found = program.predict({"x": x}, watch=lambda op, name, value: seen.append((op, name, value.shape)))
    assert sum(program.operations.values()) <= len(seen)
    assert seen[-1][1] == "y"
    assert tuple(seen[-1][2]) == found["y"].shape


class Gated(nn.Module):
    """What splits a tensor: one operation of two outputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * torch.nn.functional.gelu(gate)


def test_a_watcher_sees_every_output_by_its_own_name(
    tools: SimpleNamespace, x: np.ndarray, tmp_path: Path
) -> None:
    program = Program.load(converted(tools, Gated(), tmp_path / "gated.mlpackage", "iOS16", "FLOAT32"))
    seen: list[tuple[str, str, np.ndarray]] = []
    program.predict({"x": x}, watch=lambda op, name, value: seen.append((op, name, value.numpy().copy())))
    (split,) = [o for o in program.package.functions["main"].block.operations if o.op == "split"]
    halves = {name: value for op, name, value in seen if op == "split"}
    assert list(halves) == [n.name for n in split.outputs]
    for got, expected in zip(halves.values(), np.split(x, 2, axis=-1), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"wanted the input 'x', got \[\]"),
        ({"x": np.zeros((1, 3, 16, 15))}, r"wanted x in shape \[1, 3, 16, 16\], got \[1, 3, 16, 15\]"),
        ({"x": np.zeros((1, 3, 16, 16)), "z": np.zeros(1)}, r"got \['z'\] as well"),
        ({"x": "a word"}, "wanted an array for x"),
    ],
)
def test_a_wrong_input_is_refused_with_what_is_declared(
    saved: dict[str, Path], inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ProgramError, match=message):
        Program.load(saved["plain"]).predict(inputs)


def test_everything_unsupported_is_named_at_once(
    saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flashbulb.runtimes.engines.mil.ops import OPS

    for name in ("conv", "softmax"):
        monkeypatch.delitem(OPS, name)
    message = r"the operation conv \(1 times, first .*the operation softmax \(1 times"
    with pytest.raises(ProgramError, match=message):
        Program.load(saved["plain"])


def test_unknown_modes_functions_and_folders_are_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="wanted the mode"):
        Program.load(saved["plain"], "fp8")  # type: ignore[arg-type]
    with pytest.raises(ProgramError, match=r"wanted the function 'other', the package has \['main'\]"):
        Program.load(saved["plain"], function="other")
    with pytest.raises(ProgramError, match=r"wanted an \.mlpackage folder"):
        Program.load(tmp_path)


@pytest.fixture
def copied(saved: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved["plain"], tmp_path / "copy.mlpackage"))


def model_file(package: Path) -> Path:
    return package / "Data/com.apple.CoreML/model.mlmodel"


@pytest.mark.parametrize("cut", [0, 1, 7, 100, 1000, -1])
def test_a_cut_model_file_is_refused(copied: Path, cut: int) -> None:
    path = model_file(copied)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ProgramError, match="wanted"):
        Program.load(copied)


def test_bytes_turned_at_random_end_in_an_error_or_a_program(copied: Path, x: np.ndarray) -> None:
    path, rng = model_file(copied), np.random.default_rng(3)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    refused = 0
    for _ in range(60):
        damaged = data.copy()
        damaged[rng.integers(0, len(data), 3)] ^= rng.integers(1, 256, 3).astype(np.uint8)
        path.write_bytes(damaged.tobytes())
        try:
            Program.load(copied).predict({"x": x})
        except ProgramError:
            refused += 1
    assert refused > 10


def test_a_weight_file_that_is_a_link_is_refused(copied: Path, tmp_path: Path) -> None:
    weights = copied / "Data/com.apple.CoreML/weights/weight.bin"
    weights.rename(tmp_path / "elsewhere.bin")
    weights.symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(ProgramError, match="is a link"):
        Program.load(copied)


def test_a_manifest_that_points_outside_is_refused(copied: Path) -> None:
    path = copied / "Manifest.json"
    path.write_text(path.read_text().replace("com.apple.CoreML/model.mlmodel", "../../plain/model.mlmodel"))
    with pytest.raises(ProgramError, match="inside the package"):
        Program.load(copied)


def test_an_index_outside_is_refused_as_a_device_says_nothing(tools: SimpleNamespace, tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools spells it

    given = {"x": np.arange(6, dtype=np.float32), "i": np.array([0], np.int32)}

    def build(x: Any, i: Any) -> Any:
        return mb.gather(x=x, indices=i, axis=0)

    old = Program.load(tools.save_program(build, given, tmp_path / "16.mlpackage", target="iOS16"))
    new = Program.load(tools.save_program(build, given, tmp_path / "17.mlpackage", target="iOS17"))
    name = old.outputs[0]
    assert old.predict({**given, "i": np.array([-1])})[name] == 5
    for index, program in ((-1, new), (6, new), (6, old), (-7, old)):
        with pytest.raises(ProgramError, match=r"wanted indices in \[0, 6\)"):
            program.predict({**given, "i": np.array([index])})
