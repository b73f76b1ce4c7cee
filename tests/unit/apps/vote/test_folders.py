"""Folders that match, and what is said of those that do not."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from flashbulb.apps.vote.folders import distinct_names, natural, open_folders, read_prompts
from flashbulb.distill.metrics.pictures import save_pictures


def draw(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (4, 4), "red").save(folder / name)
    return folder


def test_pictures_are_matched_by_name_whatever_their_format(tmp_path: Path):
    a = draw(tmp_path / "a", "2.png", "10.png", "1.png")
    b = draw(tmp_path / "b", "1.jpg", "2.webp", "10.JPEG")
    first, second = open_folders([a, b])
    assert list(first.pictures) == list(second.pictures) == ["1", "2", "10"]
    kinds = [p.media_type for p in second.pictures.values()]
    assert kinds == ["image/jpeg", "image/webp", "image/jpeg"]


def test_what_eval_writes_is_a_folder_with_its_prompts(tmp_path: Path):
    pictures = torch.linspace(-1, 1, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    for name in ("one", "two"):
        draw(tmp_path / name, "grid.png")
        save_pictures(torch.zeros(5, 3, 4, 4), ["old"] * 5, tmp_path / name / "pictures")
        save_pictures(pictures, ["a cat", "a dog"], tmp_path / name / "pictures")
    folders = open_folders([tmp_path / "one", tmp_path / "two" / "pictures"])
    assert [folder.model for folder in folders] == ["one", "two"]
    assert read_prompts(None, folders) == {"00000": "a cat", "00001": "a dog"}
    pixels = torch.tensor(list(Image.open(folders[0].pictures["00001"].file).getdata())).T.reshape(3, 4, 4)
    assert (pixels / 127.5 - 1 - pictures[1]).abs().max() < 0.5 / 127
    with pytest.raises(ValueError, match="wanted one caption a picture, got 1 for 2"):
        save_pictures(pictures, ["a cat"], tmp_path / "three")


def test_names_sort_as_people_count():
    assert sorted(["b10", "b9", "a", "10", "9"], key=natural) == ["9", "10", "a", "b9", "b10"]


def test_models_of_one_name_are_told_apart():
    assert distinct_names([Path("/x/one/eval"), Path("/x/two/eval")]) == ["one/eval", "two/eval"]
    assert distinct_names([Path("/x/one"), Path("/x/two")]) == ["one", "two"]
    assert distinct_names([Path("/eval"), Path("/x/eval")]) == ["//eval", "x/eval"]


def test_folders_that_do_not_match_are_explained(tmp_path: Path):
    a = draw(tmp_path / "a", "1.png", "2.png")
    with pytest.raises(ValueError, match="at least two folders of pictures to compare, got 1"):
        open_folders([a])
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=r"wanted different folders, got .*/a twice"):
        open_folders([a, tmp_path / "b" / ".." / "a"])
    with pytest.raises(FileNotFoundError, match=r"no folder .*none"):
        open_folders([a, tmp_path / "none"])
    with pytest.raises(ValueError, match=r"/b holds no pictures: wanted files ending in \.png"):
        open_folders([a, tmp_path / "b"])
    draw(tmp_path / "b", "1.png", "3.png", "4.png")
    with pytest.raises(ValueError, match=r"/b lacks 1 that .*/a has \(2\)"):
        open_folders([a, tmp_path / "b"])
    shutil.copy(a / "2.png", tmp_path / "b")
    with pytest.raises(ValueError, match=r"/a lacks 2 that .*/b has \(3, 4\)"):
        open_folders([a, tmp_path / "b"])
    draw(a, "1.jpg")
    with pytest.raises(ValueError, match="two pictures named '1'"):
        open_folders([a, tmp_path / "b"])


def test_a_file_that_only_looks_like_a_picture_is_refused(tmp_path: Path):
    a, b = draw(tmp_path / "a", "1.png"), draw(tmp_path / "b", "1.png")
    (b / "1.png").write_bytes(b"<svg onload=alert(1)>")
    with pytest.raises(ValueError, match=r"1\.png is no picture: wanted PNG, JPEG or WebP"):
        open_folders([a, b])
    (b / "1.png").unlink()
    (b / "1.png").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="is no picture"):
        open_folders([a, b])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "a cat\na dog\n\n"),
        ("p.json", '{"1": "a cat", "2.png": "a dog", "3": "more"}'),
        (
            "p.jsonl",
            '{"file_name": "1.png", "text": "a cat"}\n{"file_name": "2.jpg", "text": "a dog", "x": 1}\n',
        ),
    ],
)
def test_prompts_come_in_three_formats(tmp_path: Path, name: str, content: str):
    folders = open_folders([draw(tmp_path / f, "1.png", "2.png") for f in "ab"])
    (tmp_path / name).write_text(content)
    assert read_prompts(tmp_path / name, folders) == {"1": "a cat", "2": "a dog"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "a cat\n", r"p\.txt: wanted a line for each of 2 pictures, got 1 lines"),
        ("p.json", '{"1": "a cat"}', r"p\.json lacks the prompt of 1 pictures \(2\)"),
        ("p.json", "[1]", r'p\.json: .*wanted \{"NAME": "prompt"'),
        ("p.jsonl", "{}\n", r'p\.jsonl: .*wanted \{"file_name"'),
    ],
)
def test_prompts_that_lack_are_explained(tmp_path: Path, name: str, content: str, message: str):
    folders = open_folders([draw(tmp_path / f, "1.png", "2.png") for f in "ab"])
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name, folders)


def test_without_a_file_the_folders_must_say_the_same(tmp_path: Path):
    folders = open_folders([draw(tmp_path / f, "1.png") for f in "ab"])
    with pytest.raises(FileNotFoundError, match=r"no prompts 'none\.txt'"):
        read_prompts(Path("none.txt"), folders)
    with pytest.raises(ValueError, match=r"/a has no metadata\.jsonl with its prompts: say --prompts FILE"):
        read_prompts(None, folders)
    for name, text in (("a", "cat"), ("b", "dog")):
        (tmp_path / name / "metadata.jsonl").write_text(f'{{"file_name": "1.png", "text": "{text}"}}\n')
    with pytest.raises(ValueError, match=r"same prompts in every folder: for '1', .*'cat' .*'dog'"):
        read_prompts(None, folders)
