"""Captioned pictures in every shape: sample i is one colour all over, and its caption says which sample."""

import csv
import io
import json

import pytest


def colour(index):
    return 40 * (index % 6), 8 * (index // 6 % 32), 200


def encoded(index, size=(20, 12), kind="PNG"):
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", size, colour(index)).save(out, kind)
    return out.getvalue()


def caption(index):
    return f"sample {index}"


@pytest.fixture
def matches():
    """Whether pictures (n, 3, h, w) are those that their captions say."""
    import torch

    def check(pictures, captions):
        for picture, said in zip(pictures, captions, strict=True):
            wanted = torch.tensor(colour(int(said.split()[1]))).view(3, 1, 1).expand_as(picture)
            torch.testing.assert_close((picture + 1) * 127.5, wanted.float(), atol=2, rtol=0)

    return check


@pytest.fixture
def folder(tmp_path):
    """Write a folder of ``count`` pictures and their captions, in one of three shapes."""

    def write(count=10, shape="metadata.jsonl", name="pictures", columns=("file_name", "text")):
        root = tmp_path / name
        (root / "sub").mkdir(parents=True)
        rows = []
        for i in range(count):
            file = root / ("sub" if i % 2 else ".") / f"p{i:03d}.png"
            file.write_bytes(encoded(i))
            if shape == "txt":
                file.with_suffix(".txt").write_text(caption(i) + "\n")
            rows.append((str(file.relative_to(root)), caption(i)))
        if shape == "metadata.jsonl":
            lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
            (root / shape).write_text("\n".join(lines) + "\n")
        elif shape == "metadata.csv":
            with (root / shape).open("w", newline="") as handle:
                csv.writer(handle).writerows([columns, *rows])
        return root

    return write


@pytest.fixture
def shards(tmp_path):
    """Write shards with webdataset's own writer: ``counts`` samples each."""

    def write(counts=(4, 3, 5), name="shards", text="txt"):
        wds = pytest.importorskip("webdataset")
        root = tmp_path / name
        root.mkdir()
        number = 0
        for shard, count in enumerate(counts):
            with wds.TarWriter(str(root / f"shards-{shard:03d}.tar")) as writer:
                for _ in range(count):
                    said = {"caption": caption(number)} if text == "json" else caption(number)
                    writer.write({"__key__": f"{number:06d}", "png": encoded(number), text: said})
                    number += 1
        return root

    return write


@pytest.fixture
def tables(tmp_path):
    """Write Parquet files as the Hub has them: a struct of bytes and path, small row groups."""

    def write(counts=(5, 6), name="tables", group=2, names="data/train-{:05d}.parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        root, number = tmp_path / name, 0
        for file, count in enumerate(counts):
            numbers = range(number, number + count)
            number += count
            table = pa.table(
                {
                    "image": pa.array([{"bytes": encoded(i), "path": f"{i}.png"} for i in numbers]),
                    "text": [caption(i) for i in numbers],
                    "aesthetic": [0.5 for _ in numbers],
                }
            )
            (root / names.format(file)).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, root / names.format(file), row_group_size=group)
        return root

    return write
