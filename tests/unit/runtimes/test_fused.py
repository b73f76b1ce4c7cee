"""The fused program is the file that apps ship: its twin and its operations are held to PyTorch too."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashbulb.export.bundle import Bundle, read_bundle
from flashbulb.runtimes.records import SanityRecord

pytest.importorskip("coremltools")
pytestmark = pytest.mark.slow
Edit = Callable[[list[Any]], str]


@pytest.fixture(scope="module")
def exported(tiny_sticker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flashbulb.export import stage
    from flashbulb.export.backends import Coreml

    out = tmp_path_factory.mktemp("fused") / "bundle"
    return stage.run(stage.ExportConfig(checkpoint=str(tiny_sticker), out=str(out), backends=(Coreml(),)))


def judged(bundle: Bundle) -> dict[str, SanityRecord]:
    """Ask for the twin and the operations of the fused program alone, as `check` does."""
    from msgspec.structs import replace

    from flashbulb.runtimes.bisect.stage import bisect
    from flashbulb.runtimes.program_gates import program_gates

    fused = tuple(a for a in bundle.manifest.artifacts if a.component == "generator")
    alone = replace(bundle, manifest=replace(bundle.manifest, artifacts=fused))
    records = [*program_gates(alone, backends=["coreml"]), *bisect(alone, None, ["coreml"])]
    return {f"{r.engine} {r.gate}": r for r in records if r.gate in ("twin.generator", "bisect.generator")}


def silu_to_relu(operations: list[Any]) -> str:
    planted = [o for o in operations if o.type == "silu"][6]
    planted.type = "relu"
    return str(planted.outputs[0].name)


def gelu_by_tanh(operations: list[Any]) -> str:
    """The approximation of one activation: the outputs lose little."""
    planted = next(o for o in operations if o.type == "gelu")
    mode = planted.inputs["mode"].arguments[0].name
    held = next(o for o in operations if o.type == "const" and o.outputs[0].name == mode)
    held.attributes["val"].immediateValue.tensor.strings.values[0] = "TANH_APPROXIMATION"
    return str(planted.outputs[0].name)


def larger_epsilon(operations: list[Any]) -> str:
    """Ten times the epsilon under the roots of all guarded norms, hence its own root under a square."""
    roots = {o.inputs["value"].arguments[0].name for o in operations if o.type == "fill_like"}
    found = [o for o in operations if o.type == "const" and o.outputs[0].name in roots]
    assert found
    for constant in found:
        held = constant.attributes["val"].immediateValue.tensor
        if held.bytes.values:
            larger = np.frombuffer(held.bytes.values, "<f2") * np.float16(10**0.5)
            held.bytes.values = larger.tobytes()
        else:
            held.floats.values[0] *= 10**0.5
    return ""


@pytest.fixture
def planted(exported: Path, tmp_path: Path, resign: Callable[[Path], Bundle]) -> Callable[[Edit], Any]:
    """Edit an operation of a copy's fused program, and return its name and the records."""

    def make(edit: Edit) -> tuple[str, dict[str, SanityRecord]]:
        from coremltools.proto import Model_pb2

        root = Path(shutil.copytree(exported, tmp_path / "bundle"))
        path = root / "coreml/generator.mlpackage/Data/com.apple.CoreML/model.mlmodel"
        model = Model_pb2.Model.FromString(path.read_bytes())
        function = model.mlProgram.functions["main"]
        name = edit(function.block_specializations[function.opset].operations)
        path.write_bytes(model.SerializeToString())
        return name, judged(resign(root))

    return make


def test_a_sound_fused_program_agrees_in_every_operation(exported: Path) -> None:
    records = judged(read_bundle(exported))
    assert [r.sentence for r in records.values() if r.verdict != "pass"] == []
    assert set(records) == {"mil twin.generator", "mil bisect.generator", "mil-fp16 bisect.generator"}
    twin = records["mil twin.generator"]
    assert twin.value is not None
    assert twin.threshold == 110.0
    assert twin.value > 103.0


def test_a_wrong_activation_of_the_fused_program_fails_and_is_named(planted: Callable[[Edit], Any]) -> None:
    name, records = planted(silu_to_relu)
    assert records["mil twin.generator"].verdict == "fail"
    assert f"departs is {name!r} (relu)" in records["mil bisect.generator"].sentence
    assert records["mil bisect.generator"].verdict == "fail"


def test_a_fault_of_which_the_output_shows_little_is_named_too(planted: Callable[[Edit], Any]) -> None:
    name, records = planted(gelu_by_tanh)
    assert records["mil twin.generator"].verdict == "fail"
    assert (records["mil twin.generator"].value or 0.0) > 85.0
    assert f"departs is {name!r} (gelu)" in records["mil bisect.generator"].sentence


def test_a_larger_epsilon_fails_twin_and_bisection_alike(planted: Callable[[Edit], Any]) -> None:
    _, records = planted(larger_epsilon)
    told = {gate: r.verdict for gate, r in records.items() if "mil " in gate}
    assert told == {"mil twin.generator": "fail", "mil bisect.generator": "fail"}
    assert "the first operation that departs is" in records["mil bisect.generator"].sentence


def test_a_number_that_no_operator_of_pytorch_has_is_strange():
    """An attention's scale that is 2 % off can change a picture by less than float32 rounds."""
    from flashbulb.runtimes.sources import Sources
    from flashbulb.runtimes.twin import Numbers

    numbers = Numbers(Sources({}), "unet", frozenset({0.1767766952966369}))
    found = numbers.exact("scale", np.asarray(0.1767766952966369, np.float16))
    assert found is not None and found.dtype == np.float32 and found == np.float32(0.1767766952966369)
    for plain in (0.0, 1.0, -1.0, 2.0**-24):
        numbers.exact("plain", np.asarray(plain, np.float16))
    assert numbers.strange == []
    assert numbers.exact("other", np.asarray(0.18018, np.float16)) is None
    assert numbers.strange == ["other = 0.1802"]
