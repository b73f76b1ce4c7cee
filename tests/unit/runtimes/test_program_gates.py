"""Programs are held to what was exported and to the checkpoint: planted faults are named, sound ones pass."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashbulb.export.bundle import Bundle, read_bundle
from flashbulb.export.structure import differences
from flashbulb.runtimes.program_gates import program_gates, source_gate
from flashbulb.runtimes.source_gates import vocabulary_gate

pytest.importorskip("onnxruntime")
pytest.importorskip("executorch")
pytest.importorskip("coremltools")
pytestmark = pytest.mark.slow
Failed = Callable[[Path], dict[str, str]]
WEIGHT = "down_blocks.0.resnets.0.conv2.weight"
OF_CHECKPOINT = ["weights", "schedule", "lineage", "codes", "tokenizer.tokenizer", "optimum", "twin"]
"""Gates that nothing can be held to where the checkpoint is not at hand."""


@pytest.fixture
def copied(programs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(programs, tmp_path / "bundle"))


@pytest.fixture
def failed(resign: Callable[[Path], Bundle]) -> Callable[[Path], dict[str, str]]:
    """Gate -> sentence of what fails once the hashes are right again."""
    return lambda root: {r.gate: r.sentence for r in program_gates(resign(root)) if r.verdict == "fail"}


def unet_weight(root: Path, name: str = WEIGHT) -> np.ndarray[Any, Any]:
    from safetensors.numpy import load_file

    source = Path(read_bundle(root).manifest.source.checkpoint)
    return load_file(next((source / "unet").glob("*.safetensors")))[name]


def replace_bytes(path: Path, old: bytes, change: Callable[[bytearray], None]) -> None:
    """Change the bytes of one tensor where they stand in a file."""
    data = path.read_bytes()
    assert data.count(old) >= 1
    new = bytearray(old)
    change(new)
    path.write_bytes(data.replace(old, bytes(new)))


def test_sound_programs_pass_both_gates(programs: Path) -> None:
    found = list(program_gates(read_bundle(programs)))
    assert [r.sentence for r in found if r.verdict != "pass"] == []
    files = 3 * 4 + 3  # of the formats, and of optimum
    assert len(found) == 2 * files + 10 + 3  # structure and weights of each file, the rest, and twins
    unet = next(r for r in found if r.gate == "weights.unet.mlpackage")
    assert unet.value == 0.0
    assert unet.threshold == 0.0


def test_both_readers_of_core_ml_packages_agree(programs: Path) -> None:
    from flashbulb.export.anatomy.coreml import package_lines
    from flashbulb.runtimes.engines.mil.listing import read_package_listing

    for name in ("text_encoder", "unet", "vae_decoder"):
        path = programs / f"coreml/{name}.mlpackage"
        assert dict(read_package_listing(path).lines) == package_lines(path)


def test_one_wrong_weight_of_a_pte_is_named(copied: Path, failed: Failed) -> None:
    weight = np.ascontiguousarray(unet_weight(copied).transpose(0, 2, 3, 1))
    replace_bytes(copied / "executorch/model.pte", weight.tobytes(), lambda b: b.__setitem__(43, b[43] ^ 1))
    found = failed(copied)
    assert set(found) == {"structure.unet.pte", "weights.unet.pte"}
    assert f"1 of {weight.size} values of unet/{WEIGHT} are not the checkpoint's" in found["weights.unet.pte"]
    assert "first number 10: stored" in found["weights.unet.pte"]


def test_one_wrong_weight_of_the_layout_for_optimum_is_named(copied: Path, failed: Failed) -> None:
    from flashbulb.export.anatomy import read

    path, name = copied / "optimum/vae_decoder/model.onnx", "decoder.conv_in.weight"
    stored = read(path, "onnx").constants[name].load()
    replace_bytes(path, stored.tobytes(), lambda b: b.__setitem__(3, b[3] ^ 128))
    found = failed(copied)
    assert set(found) == {"structure.optimum.vae_decoder.onnx", "weights.optimum.vae_decoder.onnx"}
    assert f"1 of {stored.size} values of vae_decoder/{name}" in found["weights.optimum.vae_decoder.onnx"]


def test_another_setting_and_a_damaged_program_for_optimum_are_named(copied: Path, failed: Failed) -> None:
    config = copied / "optimum/vae_decoder/config.json"
    config.write_text(config.read_text().replace('"scaling_factor": ', '"scaling_factor": 2'))
    (copied / "optimum/unet/model.onnx").write_bytes(b"\x08\x07no program")
    found = failed(copied)
    assert set(found) == {"optimum", "structure.optimum.unet.onnx"}
    assert "optimum/vae_decoder/config.json is not the checkpoint's" in found["optimum"]


def test_one_wrong_weight_of_an_ort_file_is_named(copied: Path, failed: Failed) -> None:
    name = "decoder.conv_in.weight"
    from safetensors.numpy import load_file

    source = Path(read_bundle(copied).manifest.source.checkpoint)
    weight = load_file(next((source / "vae").glob("*.safetensors")))[name]
    replace_bytes(copied / "onnx/vae_decoder.ort", weight.tobytes(), lambda b: b.__setitem__(3, b[3] ^ 128))
    found = failed(copied)
    assert set(found) == {"structure.vae_decoder.ort", "weights.vae_decoder.ort"}
    assert f"1 of {weight.size} values of vae_decoder/{name}" in found["weights.vae_decoder.ort"]


def test_one_wrong_weight_of_a_core_ml_package_is_named(copied: Path, failed: Failed) -> None:
    weight = unet_weight(copied, "conv_in.weight").astype(np.float16)
    path = copied / "coreml/unet.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    replace_bytes(path, weight.tobytes(), lambda b: b.__setitem__(2, b[2] ^ 1))
    found = failed(copied)
    assert {"structure.unet.mlpackage", "weights.unet.mlpackage"} <= set(found)
    assert (
        "values of unet/conv_in.weight are not the checkpoint's, first number 1"
        in found["weights.unet.mlpackage"]
    )


def onnx_edit(path: Path, change: Callable[[Any], None]) -> None:
    import onnx

    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def test_codes_and_scales_of_an_encoded_weight_are_judged(copied: Path, failed: Failed) -> None:
    from onnx import numpy_helper

    def other_code(model: Any) -> None:
        codes = next(t for t in model.graph.initializer if t.name.endswith(".codes"))
        values = numpy_helper.to_array(codes).copy()
        values.flat[7] ^= 1
        codes.CopyFrom(numpy_helper.from_array(values, codes.name))

    def other_scale(model: Any) -> None:
        scale = next(t for t in model.graph.initializer if t.name.endswith(".scale"))
        values = numpy_helper.to_array(scale).copy()
        values.flat[0] *= np.float32(1.5)
        scale.CopyFrom(numpy_helper.from_array(values, scale.name))

    onnx_edit(copied / "onnx/text_encoder.onnx", other_code)
    onnx_edit(copied / "onnx/unet.onnx", other_scale)
    found = failed(copied)
    assert "1 of " in found["weights.text_encoder.onnx"]
    assert "text_encoder/text_model." in found["weights.text_encoder.onnx"]
    assert "unet/" in found["weights.unet.onnx"]


def test_codes_beyond_their_table_are_a_failure_and_no_crash(copied: Path, failed: Failed) -> None:
    def beyond(model: Any) -> None:
        from onnx import numpy_helper

        codes = next(t for t in model.graph.initializer if t.name.endswith(".codes"))
        values = numpy_helper.to_array(codes).copy()
        values.flat[7] = 255
        codes.CopyFrom(numpy_helper.from_array(values, codes.name))

    onnx_edit(copied / "onnx/text_encoder.onnx", beyond)
    found = failed(copied)
    assert "wanted codes under 64, got up to 255" in found["weights.text_encoder.onnx"]


def test_inputs_in_another_order_are_told_and_not_run(copied: Path, failed: Failed) -> None:
    from flashbulb.runtimes.bisect.stage import bisect

    def reverse(manifest: dict[str, Any]) -> None:
        chosen = [a for a in manifest["artifacts"] if (a["component"], a["backend"]) == ("unet", "coreml")]
        chosen[0]["inputs"].reverse()

    manifest_edit(copied, reverse)
    found = failed(copied)
    assert "the manifest's 'inputs' was" in found["structure.unet.mlpackage"]
    words = "wanted the inputs ['sample', 'hidden'] of unet.mlpackage, the manifest has ['hidden', 'sample']"
    assert words in found["twin.unet"]
    bisected = [r.sentence for r in bisect(read_bundle(copied), None, ["coreml"]) if r.verdict == "fail"]
    assert any(words in sentence for sentence in bisected)


def test_pytorch_refuses_inputs_in_another_order_with_a_sentence(copied: Path) -> None:
    from flashbulb.runtimes.engines import Eager
    from flashbulb.runtimes.gates import engine_gates

    manifest_edit(
        copied, lambda m: [a["inputs"].reverse() for a in m["artifacts"] if a["component"] == "unet"]
    )
    found = [r for r in engine_gates(read_bundle(copied), Eager(), 1) if r.verdict == "fail"]
    assert "PyTorch refuses ['hidden', 'sample'] as inputs of unet" in found[-1].sentence


def test_an_attribute_is_named_with_what_it_was(copied: Path, failed: Failed) -> None:
    def other_epsilon(model: Any) -> None:
        node = next(n for n in model.graph.node if n.op_type == "LayerNormalization")
        next(a for a in node.attribute if a.name == "epsilon").f = 1e-4

    onnx_edit(copied / "onnx/text_encoder.onnx", other_epsilon)
    found = failed(copied)
    assert set(found) == {f"{gate}.text_encoder.onnx" for gate in ("structure", "weights")}
    assert "epsilon=" in found["structure.text_encoder.onnx"]
    assert "in 1 of" in found["structure.text_encoder.onnx"]


def test_an_attribute_of_a_core_ml_operation_is_named(copied: Path, failed: Failed) -> None:
    from coremltools.proto import Model_pb2

    path = copied / "coreml/text_encoder.mlpackage/Data/com.apple.CoreML/model.mlmodel"
    model = Model_pb2.Model()
    model.ParseFromString(path.read_bytes())
    function = model.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    axis = next(o for o in block.operations if o.type == "softmax").inputs["axis"].arguments[0].name
    const = next(o for o in block.operations if o.outputs[0].name == axis)
    const.attributes["val"].immediateValue.tensor.ints.values[0] = 1
    path.write_bytes(model.SerializeToString())
    found = failed(copied)
    assert set(found) == {"structure.text_encoder.mlpackage", "twin.text_encoder"}
    assert repr(f"main.{axis}") in found["structure.text_encoder.mlpackage"]


def test_swapped_inputs_of_a_product_are_wiring(copied: Path, failed: Failed) -> None:
    def swap(model: Any) -> None:
        node = next(n for n in model.graph.node if n.op_type == "Softmax")
        users = [n for n in model.graph.node if node.output[0] in n.input and n.op_type == "MatMul"]
        users[0].input[0], users[0].input[1] = users[0].input[1], users[0].input[0]

    onnx_edit(copied / "onnx/text_encoder.onnx", swap)
    assert set(failed(copied)) == {"structure.text_encoder.onnx"}


def test_a_stale_artifact_of_another_checkpoint_is_found(copied: Path, failed: Failed) -> None:
    def other(model: Any) -> None:
        from onnx import numpy_helper

        for tensor in model.graph.initializer:
            if tensor.name.endswith("bias"):
                values = numpy_helper.to_array(tensor) + np.float32(0.25)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    onnx_edit(copied / "onnx/vae_decoder.onnx", other)
    found = failed(copied)
    assert "more" in found["weights.vae_decoder.onnx"]


def test_an_edited_contract_is_the_manifests_fault(copied: Path, failed: Failed) -> None:
    import json

    path = copied / "manifest.json"
    value = json.loads(path.read_text())
    value["artifacts"][0]["precision"] = "float16"
    path.write_text(json.dumps(value))
    found = failed(copied)
    assert set(found) == {"structure.text_encoder.onnx", "rule"}
    assert "the manifest's 'precision' was" in found["structure.text_encoder.onnx"]


@pytest.mark.parametrize("name", ["onnx/unet.onnx", "onnx/unet.ort", "executorch/model.pte"])
def test_a_damaged_file_fails_and_says_why(copied: Path, name: str, failed: Failed) -> None:
    path = copied / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    assert any("cannot be taken apart" in s for s in failed(copied).values())


def test_without_the_checkpoint_weights_cannot_be_judged(copied: Path) -> None:
    import json

    path = copied / "manifest.json"
    value = json.loads(path.read_text())
    value["source"]["checkpoint"] = "nowhere/at-all"
    path.write_text(json.dumps(value))
    found = [r for r in program_gates(read_bundle(copied)) if r.verdict == "skip"]
    assert [r.gate for r in found] == OF_CHECKPOINT
    assert all("not judged: no " in r.sentence and "is not on this machine" in r.sentence for r in found)


def test_another_digest_of_the_checkpoint_is_not_what_the_programs_came_from(
    copied: Path, failed: Failed
) -> None:
    told = read_bundle(copied).manifest.source.sha256
    manifest_edit(copied, lambda m: m["source"].update(sha256="0" * 64))
    found = failed(copied)
    assert set(found) == {"source"}
    assert "names the checkpoint 000000000000, text_encoder.onnx was exported from " in found["source"]
    assert told[:12] in found["source"]
    record = source_gate(read_bundle(copied))
    assert record.value == len(read_bundle(copied).manifest.artifacts)
    assert record.threshold == 0.0


def test_records_that_name_no_checkpoint_are_told(copied: Path, resign: Callable[[Path], Bundle]) -> None:
    import json

    for path in (copied / "structure").iterdir():
        value = json.loads(path.read_text())
        del value["source"]
        path.write_text(json.dumps(value))
    found = next(r for r in program_gates(resign(copied)) if r.gate == "source")
    assert found.verdict == "skip"
    assert "nothing in the bundle says" in found.sentence


def test_a_named_checkpoint_must_be_the_bundles(programs: Path, tiny_sd: Path) -> None:
    found = [r for r in program_gates(read_bundle(programs), str(tiny_sd)) if r.verdict == "fail"]
    assert [r.gate for r in found] == OF_CHECKPOINT
    assert "that the bundle was exported from" in found[0].sentence


def test_only_the_programs_of_some_backends_are_judged(programs: Path) -> None:
    found = program_gates(read_bundle(programs), None, ["executorch"])
    assert {r.gate.rpartition(".")[2] for r in found if r.gate.startswith("weights")} == {"pte"}


@pytest.mark.parametrize(("name", "method"), [("onnx/unet.ort", None), ("executorch/model.pte", "unet")])
def test_damaged_bytes_of_a_program_end_in_an_error_of_ours(
    programs: Path, tmp_path: Path, name: str, method: str | None
) -> None:
    from flashbulb.export.anatomy import AnatomyError, read

    data, random = (programs / name).read_bytes(), np.random.default_rng(0)
    path, refused = tmp_path / Path(name).name, 0
    for _ in range(60):
        damaged = bytearray(data)
        for place in random.integers(0, min(len(data), 200_000), 8):
            damaged[place] = int(random.integers(256))
        path.write_bytes(damaged)
        try:
            read(path, path.suffix[1:], method)
        except AnatomyError:
            refused += 1
    assert refused > 0


def test_a_bundle_without_records_fails(copied: Path) -> None:
    import json

    path = copied / "manifest.json"
    value = json.loads(path.read_text())
    value["files"] = [f for f in value["files"] if not f["path"].startswith("structure/")]
    path.write_text(json.dumps(value))
    shutil.rmtree(copied / "structure")
    found = [r for r in program_gates(read_bundle(copied)) if r.gate.startswith("structure")]
    assert {r.verdict for r in found} == {"fail"}
    assert all("export it again" in r.sentence for r in found)


def test_differences_name_what_is_gone_new_and_other() -> None:
    found = list(differences({"a": "1", "b": "2"}, {"b": "3", "c": "4"}))
    assert found == ["'a' is gone, it was `1`", "'b' was `2`, is `3`", "'c' is new: `4`"]


def manifest_edit(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    import json

    path = root / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_lowered_threshold_is_not_the_rule(copied: Path, failed: Failed) -> None:
    def lower(manifest: dict[str, Any]) -> None:
        next(g for g in manifest["gates"] if g["quantity"] == "unet")["minimum_db"] = 1.0

    manifest_edit(copied, lower)
    assert "the manifest has 1.0 dB" in failed(copied)["rule"]


def test_a_step_that_the_scheduler_does_not_give_is_found(copied: Path, failed: Failed) -> None:
    def other(manifest: dict[str, Any]) -> None:
        manifest["sampling"]["one_step"]["latent_scale"] = 0.25

    manifest_edit(copied, other)
    assert "latent_scale 0.25, the checkpoint's scheduler gives 0.5" in failed(copied)["schedule"]


def test_a_lineage_of_another_checkpoint_is_found(copied: Path) -> None:
    manifest_edit(copied, lambda m: m["lineage"].update(entries=[]))
    record = next(r for r in program_gates(read_bundle(copied)) if r.gate == "lineage")
    assert (record.verdict, record.value, record.threshold, record.unit) == ("fail", 1.0, 0.0, "stages")


def test_a_tokenizer_that_differs_beyond_the_golden_prompts_is_found(copied: Path, failed: Failed) -> None:
    import json

    path = copied / "tokenizer/tokenizer.json"
    value = json.loads(path.read_text())
    merges = value["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]
    path.write_text(json.dumps(value))
    found = failed(copied)
    assert f"merge {len(merges) - 2} of {len(merges)} is the first" in found["tokenizer.tokenizer"]
    assert "vocabulary.tokenizer" in found


def test_other_merges_for_apps_that_read_them_are_found(copied: Path, failed: Failed) -> None:
    path = copied / "tokenizer/merges.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:]]) + "\n")
    assert set(failed(copied)) == {"vocabulary.tokenizer"}
    record = vocabulary_gate(copied / "tokenizer")
    assert (record.value, record.threshold, record.unit) == (2.0, 0.0, "entries")


def test_a_golden_picture_of_something_else_is_found(copied: Path, failed: Failed) -> None:
    shutil.copyfile(copied / "golden/0.png", copied / "golden/1.png")
    assert set(failed(copied)) == {"pictures"}


def test_a_lowered_floor_of_sensitivity_is_found() -> None:
    from flashbulb.runtimes.gates import sanity
    from flashbulb.runtimes.source_gates import floor_gate

    def found(threshold: float) -> Any:
        return floor_gate(
            [sanity("prompt_sensitivity.pipeline", "eager", True, "", value=0.2, threshold=threshold)]
        )

    assert found(0.1).verdict == "pass"
    assert found(0.001).verdict == "fail"
    assert floor_gate([]) is None
