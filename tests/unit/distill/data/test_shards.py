"""WebDataset shards: read like webdataset reads them, and hostile archives."""

import io
import json
import os
import pickle
import random
import struct
import tarfile

import pytest

from flashbulb.distill.data import shards as product
from flashbulb.distill.data.base import DataOptions
from flashbulb.distill.data.captioned import open_source
from flashbulb.distill.data.order import Turn
from flashbulb.distill.data.shard_names import expand

RNG = random.Random


@pytest.fixture
def tar(tmp_path):
    """Write one tar of (name, bytes) or ready TarInfos; return its path."""

    def write(*members, name="a.tar", mode="w"):
        with tarfile.open(tmp_path / name, mode) as archive:
            for member in members:
                if isinstance(member, tarfile.TarInfo):
                    archive.addfile(member)
                    continue
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
        return str(tmp_path / name)

    return write


@pytest.fixture
def png(folder):
    return (folder(1, name="one") / "p000.png").read_bytes()


@pytest.mark.parametrize("text", ["txt", "json"])
def test_samples_are_those_that_webdataset_reads(text, shards, matches):
    wds = pytest.importorskip("webdataset")
    root = shards((4, 3, 5), text=text)
    rows = open_source(str(root), 16).rows
    theirs = {
        sample["__key__"]: sample
        for sample in wds.WebDataset(sorted(map(str, root.glob("*.tar"))), shardshuffle=False)
    }
    assert rows.sizes == (4, 3, 5)
    for index, (key, sample) in enumerate(theirs.items()):
        assert rows.name(index).endswith(f"sample {key}")
        assert rows.picture(index) == sample["png"]
        said = sample[text].decode()
        assert rows.captions(index) == (json.loads(said)["caption"] if text == "json" else said,)
    matches(*open_source(str(root), 16).draw(40, RNG(0)))


def test_shards_by_braces_glob_and_folder_are_the_same(shards):
    root = shards((2, 2, 2))
    names = [str(root), str(root / "shards-{000..002}.tar"), str(root / "shards-*.tar")]
    names.append(str(root / "shards-{000,001,002}.tar"))
    turns = [Turn(0, seed=0, step=0) for _ in names]
    drawn = [open_source(name, 8).draw(6, turn)[1] for name, turn in zip(names, turns, strict=True)]
    assert all(captions == drawn[0] for captions in drawn)
    assert open_source(str(root / "shards-001.tar"), 8).rows.sizes == (2,)
    with pytest.raises(ValueError, match=r"wanted the 5 shards .* got no .*shards-003.tar \(and 1 more"):
        open_source(str(root / "shards-{000..004}.tar"), 8)
    with pytest.raises(ValueError, match="got none"):
        open_source(str(root / "other-*.tar"), 8)


def test_braces_expand_as_a_shell_does():
    braceexpand = pytest.importorskip("braceexpand").braceexpand
    for text in ("a-{08..11}.tar", "{a,b}-{0..2}", "plain", "{000..009}", "x{7..7}y{p,,q}"):
        assert expand(text) == list(braceexpand(text))
    for text in ("{9..1}", "{0..999999}", "{0..999}{0..999}", "{a}", "{}"):
        with pytest.raises(ValueError, match="wanted"):
            expand(text)


def test_names_of_shards_are_no_commands(tmp_path):
    mark = tmp_path / "ran"
    for name in (f"pipe:touch {mark}.tar", f"pipe:touch {mark}", f"$(touch {mark}).tar"):
        with pytest.raises(ValueError, match="wanted"):
            open_source(name, 8)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_unpickled(tar, png, tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    harm = pickle.dumps(Harm())
    named = [(f"0.{suffix}", harm) for suffix in ("pkl", "pyd", "pickle", "pth", "npy", "ten")]
    source = open_source(tar(("0.png", png), ("0.txt", b"sample 0"), *named), 8)
    assert source.draw(2, RNG(0))[1] == ["sample 0"] * 2
    with pytest.raises(ValueError, match="no picture"):
        open_source(tar(("0.pkl", harm), ("0.txt", b"a")), 8, DataOptions(picture="pkl")).draw(1, RNG(0))
    with pytest.raises(ValueError, match="UTF-8"):
        open_source(tar(("0.png", png), ("0.pkl", harm)), 8, DataOptions(caption="pkl")).draw(1, RNG(0))
    assert not (tmp_path / "ran").exists()
    pickle.loads(harm)
    assert (tmp_path / "ran").exists()  # it would have


@pytest.mark.parametrize("name", ["../0.png", "a/../../0.png", "/tmp/0.png", "C:/0.png", "..\\0.png"])
def test_members_that_lead_elsewhere_are_refused(name, tar, png):
    with pytest.raises(ValueError, match=r"a\.tar: refused the file name"):
        open_source(tar((name, png), ("0.txt", b"a")), 8, DataOptions(max_bad=10))


@pytest.mark.parametrize("kind", ["SYMTYPE", "LNKTYPE", "FIFOTYPE", "CHRTYPE", "BLKTYPE"])
def test_links_and_devices_are_refused(kind, tar, png):
    info = tarfile.TarInfo("1.png")
    info.type, info.linkname = getattr(tarfile, kind), "/etc/passwd"
    with pytest.raises(ValueError, match=r"refused its member '1.png': it is (a link|neither)"):
        open_source(tar(("0.png", png), ("0.txt", b"a"), info), 8, DataOptions(max_bad=10))


def test_a_link_to_a_shard_outside_of_a_download_is_refused(shards, tmp_path):
    root = shards((2,))
    other = tmp_path / "download" / "snapshot"
    other.mkdir(parents=True)
    (other / "a.tar").symlink_to(root / "shards-000.tar")
    with pytest.raises(ValueError, match="link that leads out"):
        product.ShardRows([other / "a.tar"], DataOptions(), other.parent)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2"])
def test_compressed_shards_are_asked_to_be_decompressed(mode, tar, png):
    with pytest.raises(ValueError, match="decompress it"):
        open_source(tar(("0.png", png), ("0.txt", b"a"), mode=mode), 8)


def header(name, size):
    """Return a tar header whose checksum is right and whose size is what is said."""
    info = tarfile.TarInfo(name)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


@pytest.mark.parametrize(
    "size",
    [
        b"77777777777\0",
        b"\x80" + b"\0" * 3 + struct.pack(">q", 2**62),
        b"\xff" * 12,
        b"\xff" * 10 + b"\xfe\0",
    ],
)
def test_headers_that_lie_about_sizes_are_refused(size, tar, png, tmp_path):
    file = tmp_path / "a.tar"
    whole = open(tar(("0.png", png), ("0.txt", b"a")), "rb").read().rstrip(b"\0")  # noqa: PTH123, SIM115
    whole += b"\0" * (-len(whole) % 512)
    file.write_bytes(whole + header("1.png", size) + b"\0" * 2048)
    with pytest.raises(ValueError, match=r"a\.tar"):
        open_source(str(file), 8, DataOptions(max_bad=10))


def test_truncated_and_foreign_files(tar, png, tmp_path):
    file = tar(("0.png", png), ("0.txt", b"a"), ("1.png", png * 50))
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: 3 * 512 + 700 + 512])
    with pytest.raises(ValueError, match=r"a\.tar"):
        open_source(file, 8)
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ValueError, match="wanted an uncompressed tar"):
        open_source(file, 8)


def test_incomplete_samples_are_counted_and_doubled_ones_refused(tar, png):
    file = tar(("0.png", png), ("1.png", png), ("1.txt", b"sample 1"), ("2.txt", b"a"), ("2.pdf", b"b"))
    with pytest.raises(ValueError, match=r"sample 0: no caption among png; 1 unreadable"):
        open_source(file, 8)
    source = open_source(file, 8, DataOptions(max_bad=2))
    assert source.draw(3, RNG(0))[1] == ["sample 1"] * 3
    with pytest.raises(ValueError, match=r"wanted one 0\.png, got two"):
        open_source(tar(("0.png", png), ("0.png", png)), 8)


def test_large_members_are_not_read(tar, png, monkeypatch):
    monkeypatch.setattr(product, "MAX_TEXT_BYTES", 4)
    with pytest.raises(ValueError, match="at most 4 bytes of txt, got 5"):
        open_source(tar(("0.png", png), ("0.txt", b"words")), 8).draw(1, RNG(0))
    monkeypatch.setattr(product, "MAX_BYTES", 8)
    with pytest.raises(ValueError, match="at most 8 bytes of png"):
        open_source(tar(("0.png", png), ("0.txt", b"a")), 8).draw(1, RNG(0))


def test_captions_in_json(tar, png):
    file = tar(("0.png", png), ("0.json", b'{"titel": "ours", "url": "x"}'))
    with pytest.raises(ValueError, match="wanted a JSON object with text or caption"):
        open_source(file, 8).draw(1, RNG(0))
    assert open_source(file, 8, DataOptions(caption="titel")).draw(1, RNG(0))[1] == ["ours"]
    for broken in (b"{", b"[" * 100_000, b"\xff"):
        with pytest.raises(ValueError, match="its json is no json"):
            open_source(tar(("0.png", png), ("0.json", broken)), 8).draw(1, RNG(0))
