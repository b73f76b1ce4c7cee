"""Prompts from files, real pictures from folders, and what the embedded floor holds."""

from __future__ import annotations

import json
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flashbulb.distill.data.stickers import Stickers
from flashbulb.distill.metrics.evaluation import parts
from flashbulb.distill.metrics.prompts import floor_stickers, read_prompts, read_real
from flashbulb.distill.metrics.stage import EvalConfig, choose_prompts, open_prompts


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (40, 30)) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(np.full((*size[::-1], 3), 10 * i, np.uint8)).save(folder / f"{i:02d}.png")
    return [f"{i:02d}.png" for i in range(count)]


def test_lines_are_captions(tmp_path: Path):
    file = tmp_path / "captions.txt"
    file.write_text("a fox\n\n two owls \na cat\n")
    assert read_prompts(file, count=10, size=8).captions == ("a fox", "two owls", "a cat")
    found = read_prompts(file, count=2, size=8)
    assert found.captions == ("a fox", "two owls")
    assert (found.real, found.paired) == (None, False)


def test_json_lines_may_name_pictures(tmp_path: Path):
    names = write_pictures(tmp_path / "p", 3)
    rows = [{"text": f"shade {i}", "file_name": f"p/{name}"} for i, name in enumerate(names)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_prompts(tmp_path / "a.jsonl", count=9, size=16)
    assert found.paired
    assert found.real.shape == (3, 3, 16, 16)
    (numbers,) = parts(found.real)
    assert numbers.mean((1, 2, 3)) * 127.5 + 127.5 == pytest.approx([0, 10, 20], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "only one", "two captions or more"),
        ("a.jsonl", "a fox\na cat", "wanted a JSON object on every line, got 'a fox'"),
        ("a.jsonl", '{"caption": "x"}\n{"text": "y"}', 'wanted {"text": ...} on every line'),
        (
            "a.jsonl",
            '{"text": "x", "file_name": "x.png"}\n{"text": "y"}',
            "on every line or none, got 1 of 2",
        ),
        ("a.jsonl", '{"text": "x", "file_name": "x.png"}\n' * 2, "cannot be read as a picture"),
    ],
)
def test_what_is_no_prompt_file_is_refused(tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name, count=9, size=8)
    with pytest.raises(ValueError, match="which is none"):
        read_prompts(tmp_path / "absent.txt", count=9, size=8)


def test_a_folder_gives_real_pictures_and_a_floor_of_others_where_it_holds_enough(tmp_path: Path):
    write_pictures(tmp_path, 9)
    real, floor = read_real(tmp_path, count=4, size=8, seed=0)
    assert real.shape == floor.shape == (4, 3, 8, 8)
    shades = torch.cat([*parts(real), *parts(floor)]).mean((1, 2, 3))
    assert len(shades.unique()) == 8
    real, floor = read_real(tmp_path, count=5, size=8, seed=0)
    assert len(real) == 5
    assert floor is None
    with pytest.raises(ValueError, match="two pictures"):
        read_real(tmp_path / "nothing", count=5, size=8, seed=0)


def test_a_real_picture_that_would_start_a_program_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a program was started"))
    write_pictures(tmp_path, 2)
    Image.new("RGB", (8, 8)).save(tmp_path / "00.png", "EPS")
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        read_real(tmp_path, count=2, size=8, seed=0)


def test_a_part_of_a_picture_gets_no_memory_for_what_it_says_it_is_long(tmp_path: Path):
    write_pictures(tmp_path, 2)
    file = tmp_path / "00.png"
    sound = file.read_bytes()
    begin = sound.index(b"IDAT") - 4
    file.write_bytes(sound[:begin] + struct.pack(">I", 2**31 - 1) + sound[begin + 4 :])
    tracemalloc.start()
    try:
        with suppress(ValueError):
            read_real(tmp_path, count=2, size=8, seed=0)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("split", "count"), [("train", 100), ("combination", 60)])
def test_the_floor_is_other_real_stickers_of_the_same_number(split: str, count: int):
    data = Stickers()
    asked, _ = choose_prompts(data, EvalConfig(split=split, pictures=count))
    floor, grounds = floor_stickers(data, asked, 0)
    assert len(floor) == len(grounds) == count
    assert not {s.index for s in asked} & {s.index for s in floor}
    assert len({s.index for s in floor}) == count
    own = {s.index for s in data.select(split, iconic=True)} - {s.index for s in asked}
    assert sum(s.index in own for s in floor) == min(count, len(own))


def test_a_real_folder_takes_the_place_of_the_captions_own_pictures(tmp_path: Path):
    write_pictures(tmp_path / "real", 4)
    (tmp_path / "captions.txt").write_text("a\nb\nc\n")
    config = EvalConfig(prompts=str(tmp_path / "captions.txt"), real=str(tmp_path / "real"))
    found = open_prompts(config, None, 8)
    assert (len(found.captions), len(found.real), found.paired, found.floor) == (3, 3, False, None)
