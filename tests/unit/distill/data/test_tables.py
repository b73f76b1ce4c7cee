"""Parquet files and data sets of the Hub."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flashbulb.distill.data import hub
from flashbulb.distill.data.base import DataOptions
from flashbulb.distill.data.captioned import open_source

RNG = random.Random


@pytest.fixture
def picture(folder):
    return (folder(1, name="one") / "p000.png").read_bytes()


def table_of(file, **columns):
    pq.write_table(pa.table(columns), file)
    return str(file)


def test_rows_of_several_files_and_row_groups(tables, matches):
    source = open_source(str(tables((5, 6), group=2)), 16)
    assert source.rows.sizes == (2, 2, 1, 2, 2, 2)
    pictures, captions = source.draw(60, RNG(0))
    assert len(set(captions)) == 11
    matches(pictures, captions)
    assert source.rows.name(4).endswith("train-00000.parquet, row 0 of row group 2")


def test_only_so_many_row_groups_are_held(tables):
    source = open_source(str(tables((40,), group=1)), 8, DataOptions(mix=2))
    source.draw(100, RNG(0))
    assert len(source.rows.held) <= 6


def test_splits_by_the_names_of_files(tables, tmp_path):
    root = tables((3,))
    tables((4,), names="data/validation-{:05d}-of-00001.parquet")
    assert open_source(str(root), 8).order.total == 3
    assert open_source(str(root), 8, DataOptions(split="validation")).order.total == 4
    with pytest.raises(ValueError, match=r"got train, validation; set data_options\.split"):
        open_source(str(root), 8, DataOptions(split="test"))
    assert open_source(str(root / "data" / "train-00000.parquet"), 8).order.total == 3


def test_plain_bytes_lists_of_captions_and_named_columns(tmp_path, picture):
    file = table_of(tmp_path / "a.parquet", bild=[picture], worte=[["one", "two"]])
    with pytest.raises(ValueError, match=r"wanted a column named .* got 'bild', 'worte'"):
        open_source(file, 8)
    options = DataOptions(picture="bild", caption="worte")
    assert set(open_source(file, 8, options).draw(20, RNG(0))[1]) == {"one", "two"}


def test_a_picture_may_be_a_file_beside_the_table_and_nowhere_else(tmp_path, picture):
    (tmp_path / "p.png").write_bytes(picture)

    def draw(path):
        image = pa.array(
            [{"bytes": None, "path": path}], pa.struct({"bytes": pa.binary(), "path": pa.string()})
        )
        return open_source(table_of(tmp_path / "a.parquet", image=image, text=["a"]), 8).draw(1, RNG(0))

    assert draw("p.png")[1] == ["a"]
    for path in ("../p.png", str(tmp_path / "p.png")):
        with pytest.raises(ValueError, match="refused the file name"):
            draw(path)
    (tmp_path / "link.png").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="link that leads out"):
        draw("link.png")
    with pytest.raises(ValueError, match="cannot be read"):
        draw("missing.png")


def test_other_types_are_bad_samples_by_name(tmp_path, picture):
    file = table_of(tmp_path / "a.parquet", image=["text"], text=["a"])
    with pytest.raises(
        ValueError, match=r"a.parquet, row 0 of row group 0: wanted the bytes of a picture in image"
    ):
        open_source(file, 8).draw(1, RNG(0))
    file = table_of(tmp_path / "a.parquet", image=[picture], text=pa.array([None], pa.string()))
    with pytest.raises(ValueError, match="wanted a text"):
        open_source(file, 8).draw(1, RNG(0))


def test_broken_and_uneven_files(tmp_path, tables, picture):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(ValueError, match=r"a.parquet: wanted a Parquet file"):
        open_source(str(tmp_path / "a.parquet"), 8)
    root = tables((3,))
    table_of(root / "data" / "train-00001.parquet", image=[picture], other=["a"])
    with pytest.raises(ValueError, match=r"train-00001.parquet: wanted the columns image and text"):
        open_source(str(root), 8)
    whole = (root / "data" / "train-00000.parquet").read_bytes()
    (root / "data" / "train-00001.parquet").unlink()
    (root / "data" / "train-00000.parquet").write_bytes(whole[:4] + b"\xff" * 200 + whole[204:])
    with pytest.raises(ValueError, match=r"train-00000"):
        open_source(str(root), 8).draw(20, RNG(0))


def test_offline_the_hub_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("hub:nobody/none", "hub:nobody/none@main", "hub:not a name"):
        with pytest.raises(ValueError, match=r"no data set '[^@]*': .*give its folder as data"):
            open_source(name, 8)


def test_offline_a_local_folder_serves(folder, tmp_path, monkeypatch, caplog, matches):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    folder(4).rename(tmp_path / "owner" / "name")
    matches(*open_source("hub:owner/name", 8).draw(8, RNG(0)))
    assert "taking the folder owner/name" in caplog.text


def test_a_downloaded_data_set_is_read_through_its_cache(tables, tmp_path, monkeypatch, matches):
    """The Hub's cache holds links from snapshots into blobs; they are its own, others are not."""
    import huggingface_hub

    asked = {}
    root = tmp_path / "datasets--owner--name"
    snapshot = root / "snapshots" / "abc"
    (root / "blobs").mkdir(parents=True)
    (snapshot / "data").mkdir(parents=True)
    (tables((3,)) / "data" / "train-00000.parquet").rename(root / "blobs" / "f00")
    (snapshot / "data" / "train-00000.parquet").symlink_to("../../../blobs/f00")

    def download(name, **keywords):
        asked.update(keywords, name=name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    matches(*open_source("hub:owner/name@v1", 8).draw(8, RNG(0)))
    assert (asked["name"], asked["repo_type"], asked["revision"]) == ("owner/name", "dataset", "v1")
    assert not any(pattern.endswith((".py", ".pkl", ".pt", ".bin")) for pattern in hub.PATTERNS)
    (root / "blobs" / "f00").rename(tmp_path / "outside")
    (root / "blobs" / "f00").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="link that leads out"):
        open_source("hub:owner/name", 8)
