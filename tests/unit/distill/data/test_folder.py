"""Folders of captioned pictures: the usual shapes, and folders that name what is not theirs."""

import json
import logging
import random

import pytest

from flashbulb.distill.data.base import DataOptions
from flashbulb.distill.data.captioned import open_source

RNG = random.Random


def lines(*rows):
    return "\n".join(json.dumps(row) for row in rows) + "\n"


@pytest.mark.parametrize("shape", ["metadata.jsonl", "metadata.csv", "txt"])
def test_pictures_come_with_their_own_captions(shape, folder, matches):
    source = open_source(str(folder(10, shape)), 16)
    pictures, captions = source.draw(40, RNG(0))
    assert pictures.shape == (40, 3, 16, 16)
    assert len(set(captions)) > 5
    matches(pictures, captions)


def test_columns_are_found_by_their_usual_names_or_by_name(folder, matches):
    usual = folder(4, "metadata.csv", "usual", ("image", "caption"))
    matches(*open_source(str(usual), 8).draw(4, RNG(0)))
    own = folder(4, "metadata.csv", "own", ("bild", "titel"))
    with pytest.raises(
        ValueError, match=r"wanted a column named .* got 'bild', 'titel'; .*data_options.picture"
    ):
        open_source(str(own), 8)
    matches(*open_source(str(own), 8, DataOptions(picture="bild", caption="titel")).draw(4, RNG(0)))
    with pytest.raises(ValueError, match="wanted the column 'title'"):
        open_source(str(own), 8, DataOptions(picture="bild", caption="title"))


def test_several_captions_are_chosen_from(folder):
    root = folder(1)
    (root / "metadata.jsonl").write_text(lines({"file_name": "p000.png", "text": ["one", " two \n words "]}))
    assert set(open_source(str(root), 8).draw(30, RNG(0))[1]) == {"one", "two words"}


def test_splits_of_a_folder(folder, tmp_path):
    root = tmp_path / "both"
    root.mkdir()
    for name, count in (("train", 3), ("test", 5)):
        folder(count, name=name).rename(root / name)
    assert open_source(str(root), 8).order.total == 3
    assert open_source(str(root), 8, DataOptions(split="test")).order.total == 5
    with pytest.raises(ValueError, match="wanted the split 'validation', got test, train"):
        open_source(str(root), 8, DataOptions(split="validation"))


def test_a_picture_without_a_caption_is_counted(folder, caplog):
    root = folder(6, "txt")
    (root / "p000.txt").unlink()
    with pytest.raises(ValueError, match=r"p000\.png: it has no p000\.txt .*max_bad = 0"):
        open_source(str(root), 8)
    with caplog.at_level(logging.WARNING):
        assert open_source(str(root), 8, DataOptions(max_bad=1)).order.total == 5
    assert "p000.png" in caplog.text


def test_bad_pictures_are_named_counted_bounded_and_replaced_alike(folder, matches, caplog):
    root = folder(10)
    for name in ("p000.png", "p004.png"):
        (root / name).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"p00[04].png: no picture that can be opened .*max_bad = 0"):
        open_source(str(root), 8).draw(100, RNG(0))
    options = DataOptions(max_bad=2, workers=2)
    with caplog.at_level(logging.WARNING):
        pictures, captions = open_source(str(root), 8, options).draw(200, RNG(0))
    assert len(caplog.records) == 2  # each once, however often it was met
    assert {"sample 0", "sample 4"} & set(captions) == set()
    matches(pictures, captions)
    again = open_source(str(root), 8, DataOptions(max_bad=2)).draw(200, RNG(0))
    assert again[1] == captions
    (root / "p006.png").unlink()
    with pytest.raises(ValueError, match="3 unreadable samples"):
        open_source(str(root), 8, options).draw(200, RNG(0))


def test_captions_that_are_no_text_are_bad_samples(folder):
    root = folder(2)
    (root / "metadata.jsonl").write_text(lines({"file_name": "p000.png", "text": None}))
    with pytest.raises(ValueError, match="wanted a text or a list of texts"):
        open_source(str(root), 8).draw(1, RNG(0))
    shape = folder(2, "txt", "latin")
    (shape / "p000.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match="no UTF-8"):
        open_source(str(shape), 8).draw(20, RNG(0))


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "sub/../../secret.png",
        "/etc/passwd",
        "C:\\x.png",
        "\\\\host\\x.png",
        "..\\x.png",
        "a\0b",
    ],
)
@pytest.mark.parametrize("shape", ["metadata.jsonl", "metadata.csv"])
def test_names_that_lead_elsewhere_are_refused_when_opened(shape, name, folder):
    root = folder(2, shape)
    if shape == "metadata.jsonl":
        (root / shape).write_text(
            lines({"file_name": "p000.png", "text": "a"}, {"file_name": name, "text": "b"})
        )
    else:
        (root / shape).write_text(f"file_name,text\np000.png,a\n{name},b\n", newline="")
    with pytest.raises(ValueError, match=r"metadata\.(jsonl|csv), line \d+: (refused|wanted)"):
        open_source(str(root), 8)


@pytest.mark.parametrize("shape", ["metadata.jsonl", "txt"])
def test_links_out_of_the_folder_are_refused_and_never_skipped(shape, folder, tmp_path):
    root = folder(2, shape)
    secret = tmp_path / "secret.png"
    (root / "p000.png").rename(secret)
    (root / "p000.png").symlink_to(secret)
    with pytest.raises(ValueError, match="link that leads out"):
        open_source(str(root), 8, DataOptions(max_bad=10)).draw(30, RNG(0))


def test_a_link_within_the_folder_is_a_file(folder, matches):
    root = folder(4)
    (root / "p000.png").rename(root / "elsewhere.png")
    (root / "p000.png").symlink_to(root / "elsewhere.png")
    matches(*open_source(str(root), 8).draw(30, RNG(0)))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metadata.jsonl", '{"file_name": "a.png"', "line 1: wanted a JSON object"),
        ("metadata.jsonl", "[1]", "line 1: wanted a JSON object"),
        ("metadata.jsonl", '{"a": 1}', "wanted a column named"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "t"}\n{"text": "t"}', "line 2: wanted the keys"),
        ("metadata.jsonl", '{"file_name": 3, "text": "t"}', "wanted a file's name"),
        ("metadata.csv", "file_name,text\na.png,t,u\n", "line 2: wanted 2 fields"),
        ("metadata.csv", "file_name,text\na.png\n", "line 2: wanted 2 fields"),
        ("metadata.csv", "file_name,text\n" + "x" * 200_000 + ",t\n", "comma-separated"),
        ("metadata.csv", "file_name,text\n", "at least one"),
        ("notes.md", "nothing", "no captioned pictures"),
    ],
)
def test_malformed_folders_say_where_and_what(name, text, said, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        open_source(str(tmp_path), 8)


def test_what_is_no_source_is_answered_with_what_is():
    with pytest.raises(ValueError, match=r"'embedded'; a folder .*hub:owner/name.*got 'nowhere'"):
        open_source("nowhere", 8)
    with pytest.raises(ValueError, match="no data_options with data 'embedded'"):
        open_source("embedded", 8, DataOptions(flip=True))


def test_the_embedded_set_is_drawn_as_before():
    source = open_source("embedded", 32)
    pictures, captions = source.draw(3, RNG(5))
    assert pictures.shape == (3, 3, 32, 32)
    assert source.captions(3, RNG(5)) == captions
    each, said = source.draw_each([RNG(5), RNG(6)])
    assert each[0].equal(source.draw(1, RNG(5))[0][0])
    assert said[1] == source.draw(1, RNG(6))[1][0]
