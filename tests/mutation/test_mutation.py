"""A short sample of the mutation suite, and of its own workings.

The whole run is ``python tests/mutation/run.py --bundle BUNDLE``.
"""

from __future__ import annotations

import os
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from clean import failures, recipes
from mutants.catalogue import catalogue
from mutants.delegates import axes_faults, flag_faults
from mutants.fault import Fault, Planter, Refused
from mutants.files import check_donors
from mutants.judge import Judge, Verdict
from mutants.overlay import Overlay
from mutants.small import ENCODINGS, compressed, write_least
from mutants.table import markdown, summary
from mutants.view import Node, View
from mutants.worker import Task, Worker, died, judge_all

from flashbulb.export.bundle import read_bundle
from flashbulb.export.verify import check_files
from flashbulb.runtimes import program_gates

pytest.importorskip("onnxruntime")
pytest.importorskip("coremltools")

SAMPLE = (
    "onnx/unet/weight-bit/3", "onnx/unet/eps/0", "onnx/vae_decoder/channel-order/0",
    "onnx/unet/condition-cut/1", "onnx/unet/gelu-mode/0", "ort/unet/qk-swapped/0",
    "ort/vae_decoder/picture-range/0",
    "ort/text_encoder/code-bit/0", "ort/unet/truncated/0", "ort/unet/truncated/1", "mlpackage/unet/lut-bit/2",
    "mlpackage/unet/code-bit/0",
    "mlpackage/text_encoder/scale-bit/2", "mlpackage/unet/eps/0", "mlpackage/unet/gelu-mode/0",
    "mlpackage/vae_decoder/pads/0", "mlpackage/unet/offsets-swapped/0", "tokenizer/merges/3",
    "golden/golden-vector/2", "manifest/sigma/0", "manifest/latent-scale/1", "manifest/thresholds/0",
    "manifest/floors/0", "manifest/source/0", "manifest/contract/1", "onnx/unet/reordered/0",
    "optimum/weight-bit/0", "optimum/constants/0", "optimum/constants/1",
)  # fmt: skip
"""Faults that must be caught, one of each kind."""
UNRECORDED = (
    "onnx/unet/gelu-mode/0",
    "ort/unet/gelu-mode/0",
    "onnx/vae_decoder/eps/0",
    "ort/vae_decoder/eps/0",
)
"""Faults that only the structure gate catches, or small ones, where it knows the program from before."""
SAME = ("onnx/unet/same-program/0", "mlpackage/unet/same-program/0", "tokenizer/same-program/0")
"""Changes that are none."""
METHODS = (
    "weight-bit/3",
    "eps/0",
    "gelu-mode/0",
    "pads/0",
    "op-replaced/0",
    "bias-dropped/0",
    "condition-cut/0",
)
"""Faults of the methods of a `.pte`."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compressed(write_least(tmp_path_factory.mktemp("mutation") / "checkpoint"), "mixed")


def exported(checkpoint: Path, name: str, *backends: Any) -> Path:
    from flashbulb.export.stage import ExportConfig, run

    out = checkpoint.with_name(name)
    return run(ExportConfig(checkpoint=str(checkpoint), out=str(out), backends=backends))


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    from flashbulb.export.backends import Coreml, Ort

    return exported(checkpoint, "bundle", Ort(generator=False), Coreml(generator=False))


@pytest.fixture(scope="module")
def faults(bundle: Path) -> dict[str, Fault]:
    return {f.name: f for f in catalogue(bundle, {})}


@pytest.fixture(scope="module")
def judge(bundle: Path) -> Judge:
    found = Judge(bundle, bundle.with_name("overlay"))
    assert found.sound() == []
    return found


@pytest.mark.parametrize("name", SAMPLE)
def test_a_fault_is_caught_by_a_gate_and_without_a_new_signature_by_its_hash(
    judge: Judge, faults: dict[str, Fault], name: str
) -> None:
    verdict = judge.judge(faults[name])
    assert verdict.caught, verdict
    assert "died" not in verdict.gates
    assert not verdict.equivalent
    assert not verdict.unrecorded
    assert verdict.hashes is (None if name.startswith("manifest") else True)


@pytest.mark.parametrize("name", UNRECORDED)
def test_a_fault_is_caught_where_the_exporter_recorded_it_too(
    judge: Judge, faults: dict[str, Fault], name: str
) -> None:
    verdict = judge.judge(faults[name])
    assert "structure" in verdict.gates
    assert verdict.recorded
    assert "structure" not in verdict.recorded
    assert not verdict.unrecorded


def test_the_record_is_made_anew_from_the_changed_program(bundle: Path, faults: dict[str, Fault]) -> None:
    from flashbulb.runtimes.program_gates import program_gates

    def failed() -> set[str]:
        found = program_gates(read_bundle(overlay.root), backends=("ort",))
        return {r.gate for r in found if r.verdict == "fail"}

    overlay = Overlay(bundle, bundle.with_name("recorded"))
    faults["onnx/vae_decoder/pads/0"].plant(overlay.root)
    overlay.sign()
    assert failed() == {"structure.vae_decoder.onnx"}
    overlay.record()
    overlay.sign()
    check_files(read_bundle(overlay.root))
    assert failed() == set()
    overlay.restore()
    assert overlay.changed() == []


@pytest.fixture(scope="module")
def stale(bundle: Path) -> Path:
    """A bundle of another student with the same shapes."""
    from flashbulb.export.backends import Ort

    checkpoint = compressed(write_least(bundle.with_name("other"), seed=1), "mixed")
    return exported(checkpoint, "stale", Ort(generator=False, optimum=False))


def test_a_stale_artifact_of_another_student_is_caught(bundle: Path, judge: Judge, stale: Path) -> None:
    check_donors(bundle, {"stale": stale})
    found = [f for f in catalogue(bundle, {"stale": stale}) if f.kind == "stale"]
    assert {f.name for f in found} == {
        f"{fmt}/{part}/stale/0" for fmt in ("onnx", "ort") for part in ("text_encoder", "unet", "vae_decoder")
    }
    for verdict in map(judge.judge, found):
        assert any(gate.startswith("parity") for gate in verdict.gates), verdict
        assert "weights" in verdict.gates
        assert verdict.hashes
        assert not verdict.unrecorded


def test_a_donor_that_gives_nothing_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"stale=.*nowhere is no bundle"):
        next(judge_all(Task(bundle, tmp_path / "work", {"stale": tmp_path / "nowhere"}, 0, None), ()))
    with pytest.raises(Refused, match=r"wanted other programs .* got none"):
        check_donors(bundle, {"stale": bundle})


@pytest.mark.parametrize("name", SAME)
def test_a_program_that_is_the_same_is_known_as_such(
    judge: Judge, faults: dict[str, Fault], name: str
) -> None:
    verdict = judge.judge(faults[name])
    assert verdict.equivalent, verdict
    assert not verdict.survived


def test_a_wrong_description_differs_from_its_record_and_does_not_load(
    judge: Judge, faults: dict[str, Fault]
) -> None:
    named = [f for name, f in faults.items() if name.startswith("mlpackage/unet/description/")]
    assert len(named) == 6
    for fault in named:
        verdict = judge.judge(fault)
        assert {"structure", "load"} <= set(verdict.gates), verdict
        assert not verdict.equivalent


def test_a_fault_that_no_gate_asks_about_survives(
    judge: Judge, faults: dict[str, Fault], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_gates, "program_gates", lambda *_: iter(()))
    verdict = judge.judge(faults["onnx/unet/weight-bit/3"])
    assert verdict.survived, verdict


def test_every_kind_of_the_issue_is_planted(faults: dict[str, Fault]) -> None:
    kinds = {f.kind for f in faults.values()}
    assert kinds >= {
        "weight-bit", "weight-value", "lut-bit", "scale-bit", "code-bit", "eps", "gelu-mode", "pads", "axis",
        "transpose-flag", "channels-swapped", "qk-swapped", "heads-swapped", "bias-dropped", "condition-cut",
        "merges", "vocabulary", "timestep", "sigma", "latent-scale", "picture-range", "truncated",
        "reordered", "thresholds", "contract", "description",
    }  # fmt: skip
    assert len(faults) > 200
    assert len({f.name for f in faults.values()}) == len(faults)


def test_places_are_those_of_the_seed(bundle: Path, faults: dict[str, Fault]) -> None:
    assert [f.about for f in catalogue(bundle, {})] == [f.about for f in faults.values()]
    assert [f.about for f in catalogue(bundle, {}, seed=1)] != [f.about for f in faults.values()]


def test_a_bundle_is_mended_after_each_fault_and_never_written_to(bundle: Path, judge: Judge) -> None:
    check_files(read_bundle(bundle))
    check_files(read_bundle(judge.overlay.root))


def test_a_bundle_is_signed_anew_for_what_changed(bundle: Path, tmp_path: Path) -> None:
    overlay = Overlay(bundle, bundle.with_name("signed"))
    path = overlay.root / "onnx/unet.ort"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data + b"x")
    assert overlay.changed() == ["onnx/unet.ort"]
    with pytest.raises(ValueError, match=r"unet\.ort"):
        check_files(read_bundle(overlay.root))
    overlay.sign()
    check_files(read_bundle(overlay.root))
    overlay.restore()
    assert overlay.changed() == []


def test_a_clean_bundle_fails_no_gate_and_a_broken_one_does(bundle: Path, faults: dict[str, Fault]) -> None:
    assert failures(bundle) == []
    overlay = Overlay(bundle, bundle.with_name("broken"))
    faults["onnx/unet/weight-bit/3"].plant(overlay.root)
    (sentence,) = failures(overlay.root)
    assert "unet.onnx" in sentence


def test_clean_bundles_are_of_every_encoding_prediction_and_kind() -> None:
    made = list(recipes((0, 1, 2), every=False))
    assert len({r.name for r in made}) == len(made) == 21
    assert {r.encoding for r in made} == set(ENCODINGS)
    assert {r.prediction for r in made} == {"v_prediction", "epsilon", "sample"}
    assert Counter(r.kind for r in made) == {"sd": 15, "guided": 3, "sdxl": 3}
    every = {(r.encoding, r.prediction, r.kind) for r in recipes((0,), every=True)}
    assert len(every) == 5 * 3 + 2 * 5


@pytest.mark.slow
def test_faults_of_executorch_programs_are_caught(programs: Path, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    judge = Judge(programs, tmp_path / "overlay")
    assert judge.sound() == []
    known = {f.name: f for f in catalogue(programs, {})}
    names = [n for n in known if n.startswith("pte/unet/") and n.endswith(METHODS)]
    assert len(names) == len(METHODS)
    verdicts = [judge.judge(known[n]) for n in (*names, "pte/unet/offsets-swapped/0")]
    assert [v.name for v in verdicts if v.survived or v.equivalent or "died" in v.gates] == []
    same = [judge.judge(f) for n, f in known.items() if "/same-program/" in n and f.format == "pte"]
    assert same
    assert all(v.equivalent for v in same)


class Fields:
    """A table of a flatbuffer: what is zero is not stored."""

    def __init__(self, **stored: int) -> None:
        self.stored = {int(name[1:]): value for name, value in stored.items()}

    def number(self, field: int) -> int:
        return self.stored.get(field, 0)

    def put(self, field: int, kind: str, value: int) -> bool:
        assert field in self.stored
        self.stored[field] = value
        return True


@pytest.mark.parametrize(
    ("op", "stored", "field", "wanted"),
    [
        ("Concatenate2", {"f0": 3}, 0, 2), ("Concatenate3", {"f0": 1}, 0, 2), ("Concatenate2", {}, 0, None),
        ("FullyConnected", {"f4": 1}, 4, 0), ("FullyConnected", {"f4": 3}, 4, 2),
        ("FullyConnected", {}, 4, None),
    ],
)  # fmt: skip
def test_axes_and_transpose_flags_of_a_delegate_are_turned_where_they_are_stored(
    tmp_path: Path, op: str, stored: dict[str, int], field: int, wanted: int | None
) -> None:
    fields, view, planter = Fields(**stored), View(), Planter("pte", "unet", 0)
    view.nodes.append(Node(op, ("a", "b"), ("y",), (None, fields)))
    view.save = lambda: None  # type: ignore[method-assign]
    (axes_faults if field == 0 else flag_faults)(planter, lambda root: view, view)  # type: ignore[arg-type]
    assert len(planter.faults) == (wanted is not None)
    for fault in planter.faults:
        assert fault.kind == ("axis" if field == 0 else "transpose-flag")
        fault.plant(tmp_path)
        assert fields.number(field) == wanted


FAULTS = [
    ("a/0", "a", "onnx", "unet", "one"),
    ("b/0", "b", "pte", "", "two"),
    ("c/0", "c", "ort", "", "three"),
]


def dying(task: Task, pipe: Connection) -> None:
    pipe.send(FAULTS)
    pipe.send([])
    while (number := pipe.recv()) is not None:
        if number == 1:
            os.kill(os.getpid(), 9)
        pipe.send(msgspec.json.encode(died(FAULTS[number], "judged", 0.0)))


def test_a_process_that_dies_is_a_verdict_and_the_next_fault_is_judged(tmp_path: Path) -> None:
    worker = Worker(Task(tmp_path, tmp_path, {}, 0, None), dying, "fork")
    try:
        verdicts = [worker.judge(i) for i in range(3)]
    finally:
        worker.stop()
    assert [v.gates["died"].partition(" (")[0] for v in verdicts] == [
        "judged",
        "the process died with -9",
        "judged",
    ]


def verdict(name: str, **fields: Any) -> Verdict:
    fmt, kind, _ = name.split("/")
    return Verdict(name=name, kind=kind, format=fmt, component="", about="it", **fields)


def test_the_table_counts_and_names_the_only_gate() -> None:
    found = [
        verdict("onnx/eps/0", gates={"weights": "w", "load": "l"}, hashes=True),
        verdict("onnx/eps/1", gates={"weights": "w"}, hashes=True),
        verdict("ort/pads/0", hashes=False),
        verdict("ort/same/0", equivalent=True, identical=True, hashes=True, recorded={}),
        verdict("ort/eps/0", gates={"structure": "s"}, hashes=True, recorded={}),
    ]
    total = summary(found)
    assert (total["planted"], total["caught"], total["equivalent"]) == (5, 3, 1)
    assert (total["recorded"], total["recorded_missed"]) == (1, ["ort/eps/0"])
    assert total["survived"] == ["ort/pads/0"]
    assert (total["unsigned"], total["unsigned_caught_by_hashes"]) == (5, 4)
    assert total["gates"] == {
        "weights": {"caught": 2, "alone": 1},
        "load": {"caught": 1, "alone": 0},
        "structure": {"caught": 1, "alone": 1},
    }
    text = markdown(found, {"bundle": "b"})
    assert "| `onnx/eps/1` | x |  | X |  |  | caught |" in text
    assert "| `ort/pads/0` | **missed** |  |  |  |  | survived |" in text
    assert "| `ort/eps/0` | x | **missed** |  |  | X | caught |" in text
    assert "**1** of 1 faults in programs go through" in text


def test_decoded_values_are_what_counts_and_not_their_codes() -> None:
    from mutants.equivalence import decoded
    from mutants.view import Const, Store

    def table(codes: list[int], lut: list[float]) -> Const:
        stores = [Store(lambda x=x: np.array(x), lambda a: None) for x in (codes, lut)]
        return Const("w", stores[0], (len(codes),), lut=stores[1])

    assert decoded(table([0, 1, 1], [2.0, 3.0, 9.0])) == decoded(table([1, 0, 0], [3.0, 2.0, 7.0]))
    assert decoded(table([0, 1, 1], [2.0, 3.0])) != decoded(table([0, 1, 0], [2.0, 3.0]))
