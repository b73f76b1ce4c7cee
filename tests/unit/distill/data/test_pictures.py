"""One picture: against Pillow's own operations, and against bytes that mean harm."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from flashbulb.distill.data import pictures
from flashbulb.distill.data.base import BadSample
from flashbulb.distill.data.pictures import prepare, square


def noise(size=(40, 25), mode="RGB", seed=0):
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.fromarray(values.squeeze(-1) if channels == 1 else values, mode)


def data_of(picture, kind="PNG", **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def centred(data, size=16):
    return prepare(data, size, crop="centre", flip=False, rng=random.Random(0))


@pytest.mark.parametrize("size", [(40, 25), (25, 40), (16, 16), (7, 90)])
def test_the_centre_is_what_pillow_fits(size):
    picture = noise(size)
    ours, theirs = centred(data_of(picture)), ImageOps.fit(picture, (16, 16))
    assert np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).max() <= 1
    assert ours.shape == (16, 16, 3)


def test_what_is_transparent_lies_on_white():
    for mode in ("RGBA", "LA"):
        clear = Image.new(mode, (8, 8), 0)
        assert (centred(data_of(clear)) == 255).all()
    half = Image.new("RGBA", (8, 8), (200, 0, 0, 128))
    red = 200 * 128 / 255 + 255 * 127 / 255
    assert np.abs(centred(data_of(half))[0, 0] - [red, 127, 127]).max() <= 1
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    assert (centred(data_of(palette, transparency=0)) == 255).all()
    assert (centred(data_of(palette))[0, 0] == [10, 20, 30]).all()


def test_other_depths_and_colours():
    deep = Image.fromarray(np.full((8, 8), 0x8001, np.uint16))
    assert (centred(data_of(deep)) == 0x80).all()
    assert (centred(data_of(Image.new("L", (8, 8), 77))) == 77).all()
    assert (centred(data_of(Image.new("1", (8, 8), 1))) == 255).all()
    cmyk = centred(data_of(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert cmyk[0, 0, 0] > 240
    assert cmyk[0, 0, 1] < 15


def test_a_camera_s_turn_is_followed():
    picture = Image.new("RGB", (30, 10), "black")
    picture.paste("white", (20, 0, 30, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter: the right end comes down
    turned = prepare(
        data_of(picture, "JPEG", exif=exif, quality=95), 10, crop="random", flip=False, rng=Fixed(1.0)
    )
    assert turned.mean() > 200


class Fixed(random.Random):
    """Draws one number for ever."""

    def __init__(self, number):
        super().__init__(0)
        self.number = number

    def random(self):
        return self.number


def test_a_large_photograph_is_decoded_small_and_looks_the_same():
    photo = noise((8, 6)).resize((1600, 1200), Image.Resampling.BICUBIC)
    ours = centred(data_of(photo, "JPEG", quality=95), 32)
    theirs = np.asarray(ImageOps.fit(photo, (32, 32)))
    assert np.abs(ours.astype(int) - theirs.astype(int)).mean() < 3


def test_a_random_crop_takes_both_ends_and_a_flip_every_second():
    wide = Image.new("RGB", (40, 10), "black")
    wide.paste("white", (30, 0, 40, 10))
    data = data_of(wide)
    means = [
        prepare(data, 10, crop="random", flip=False, rng=random.Random(seed)).mean() for seed in range(60)
    ]
    assert min(means) == 0
    assert max(means) > 200
    half = data_of(noise((10, 10)))
    plain = prepare(half, 10, crop="centre", flip=False, rng=random.Random(0))
    flipped = [prepare(half, 10, crop="centre", flip=True, rng=random.Random(seed)) for seed in range(200)]
    mirrored = sum(np.array_equal(f, plain[:, ::-1]) for f in flipped)
    assert 70 < mirrored < 130
    assert mirrored + sum(np.array_equal(f, plain) for f in flipped) == 200
    assert square((40, 10), 1.0) == (30, 0, 40, 10)


def test_a_long_strip_does_not_become_a_large_picture():
    assert centred(data_of(Image.new("RGB", (60_000, 1), (9, 9, 9))), 64).shape == (64, 64, 3)


def bomb(width, height):
    """Return a PNG of a few bytes that claims so many pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_600, 20_000, 60_000])
def test_decompression_bombs_are_errors_where_pillow_only_warns(side):
    with pytest.raises(BadSample, match="bomb"):
        centred(bomb(side, side))


def test_pillow_s_limit_is_ours():
    assert Image.MAX_IMAGE_PIXELS == pictures.MAX_PIXELS


def test_large_files_are_not_decoded(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_BYTES", 10)
    with pytest.raises(BadSample, match="at most 10 bytes"):
        centred(data_of(noise()))


@pytest.mark.parametrize("kind", ["TIFF", "PDF", "ICNS", "PPM", "EPS"])
def test_formats_with_many_doors_are_not_opened(kind):
    with pytest.raises(BadSample, match="no picture"):
        centred(data_of(noise((32, 32)), kind))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    st.floats(0, 1),
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_files_are_bad_samples_or_pictures_and_nothing_else(kind, changes, kept):
    data = bytearray(data_of(noise((20, 20)), kind))
    for where, value in changes:
        data[int(where * (len(data) - 1))] = value
    try:
        assert centred(bytes(data[: 1 + int(kept * len(data))])).shape == (16, 16, 3)
    except BadSample as error:
        assert "no picture" in str(error)
