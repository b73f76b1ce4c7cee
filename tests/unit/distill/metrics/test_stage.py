"""``flashbulb eval`` from a checkpoint to its record, with a tiny checkpoint of no use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flashbulb.apps.cli import main
from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.metrics.evaluation import Evaluation, Examiner, evaluate
from flashbulb.distill.metrics.stage import EvalConfig, describe, open_prompts, run, run_all


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six captions with pictures."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{i}.png")
        rows.append({"text": f"a fox number {i}", "file_name": f"{i}.png"})
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def options(world: Path, tiny: Path, out: Path, **more) -> EvalConfig:
    settings = {"prompts": str(world / "prompts.jsonl"), "per_caption": 2, "resamples": 50} | more
    return EvalConfig(checkpoint=str(tiny), out=str(out), **settings)


def test_a_checkpoint_of_ones_own_is_judged(world: Path, tiny_sd: Path, tmp_path: Path):
    first = run(options(world, tiny_sd, tmp_path / "a", seeds=2))
    assert list(first.figures) == [
        "sharpness",
        "high_frequency",
        "frechet",
        "precision",
        "recall",
        "diversity",
    ]
    assert (first.pictures, first.real_pictures, first.seeds) == (6, 6, (0, 2))
    assert first.figures["sharpness"].real > 1  # noise
    assert first.figures["sharpness"].spread > 0
    assert first.notes[0] == "retrieval, style and background: only in the sticker world"
    written = {"eval.json", "eval.npz", "grid.png", "grid.txt", "pictures"}
    assert {p.name for p in (tmp_path / "a").iterdir()} == written
    assert json.loads((tmp_path / "a/eval.json").read_text())["figures"]["frechet"]["value"] > 0
    second = run(
        options(world, tiny_sd, tmp_path / "b", seeds=2, against=str(tmp_path / "a"), require=("frechet<=0",))
    )
    assert second.failures[0].startswith("wanted frechet <= 0, got ")
    assert {d.value for d in second.differences.values()} == {0.0}  # the same checkpoint, prompts and seeds


def test_measurements_can_be_redone_without_drawing(world: Path, tiny_sd: Path, tmp_path: Path):
    config = options(world, tiny_sd, tmp_path)
    checkpoint = Checkpoint.open(tiny_sd)
    examiner = Examiner({"judge": lambda p: p.flatten(1)[:, ::512].numpy()})
    drawn = []
    found = evaluate(checkpoint, config, examiner, on_pictures=drawn.append)
    assert found.features["judge"][0] == pytest.approx(drawn[0].flatten(1)[:, ::512].numpy())
    prompts = open_prompts(config, None, checkpoint.image_size)
    assert describe(config, checkpoint, prompts, found).figures["diversity"].value > 0
    assert isinstance(found, Evaluation)


def test_in_the_sticker_world_real_stickers_stand_beside(tiny_sticker: Path, tmp_path: Path, monkeypatch):
    """Two checkpoints share judge and real pictures; the judge's eyes are pixels here, to cost nothing."""
    looked = []

    class Eyes:
        def __init__(self, device):
            assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")

        def __call__(self, pictures):
            looked.append(len(pictures))
            return pictures[:, :, ::8, ::8].flatten(1).numpy()

    monkeypatch.setattr("flashbulb.distill.metrics.judge.Eyes", Eyes)
    settings = {"pictures": 6, "per_caption": 2, "resamples": 50, "checkpoint": str(tiny_sticker)}
    configs = [EvalConfig(out=str(tmp_path / name), **settings) for name in "ab"]
    first, second = run_all(configs)
    assert first.figures == second.figures
    assert looked[1:] == [6, 6] + 2 * [
        6,
        12,
    ]  # all stickers; real ones and their floor once; twice drawn ones
    assert list(first.figures)[:4] == ["retrieval_at_1", "retrieval_at_10", "style", "background"]
    assert first.figures["background"].real == 1.0
    assert first.figures["frechet"].real > 0
    assert first.figures["retrieval_at_1"].value < first.figures["retrieval_at_10"].real
    assert first.notes == ("clip_score: no --clip", "fid: no --inception")


def test_figures_do_not_depend_on_how_many_pictures_are_kept(world, tiny_sd, tmp_path, monkeypatch):
    """Drawn in twos and looked at in threes, all are the same; what is saved is the first seed's."""
    whole = run(options(world, tiny_sd, tmp_path / "a", seeds=2, real=str(world)))
    monkeypatch.setattr("flashbulb.distill.metrics.evaluation.LOOKED_AT", 3)
    monkeypatch.setattr("flashbulb.distill.metrics.stage.DRAWN_TOGETHER", 2)
    again = run(options(world, tiny_sd, tmp_path / "b", seeds=2, real=str(world)))
    for name, figure in whole.figures.items():
        assert again.figures[name].value == pytest.approx(figure.value, rel=1e-4), name
        assert again.figures[name].real == (figure.real and pytest.approx(figure.real, rel=1e-4))
    first, second = (sorted((tmp_path / name / "pictures").glob("*.png")) for name in "ab")
    assert len(first) == len(second) == 6
    assert [f.read_bytes() for f in first] == [f.read_bytes() for f in second]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompts", "absent.txt"], "wanted a file with one caption a line"),
        (["--prompts", "{world}/prompts.jsonl", "--inception", "absent.pth"], "FID's Inception weights"),
        (["--device", "gpu"], "wanted a device such as cpu, cuda or cuda:1, got 'gpu'"),
        (["--require", "frechet<4"], "such as frechet<=450"),
        (["--prompts", "{world}/prompts.jsonl", "--against", "absent"], "folder of an earlier eval"),
    ],
)
def test_the_users_mistakes_give_two(world, tiny_sd, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    words = [w.replace("{world}", str(world)) for w in words]
    assert main(["eval", str(tiny_sd), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
