"""Broken files for `fuzz.py` of a bundle, a checkpoint and a report."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from breaking import BYTE_CHANGES, CHOICES, JUNK, Target, broken_json, broken_safetensors, change_bytes
from hypothesis import strategies as st
from sound_bundle import manifest_of, write_files

from flashbulb.export.bundle import ImageSpec, Manifest


class RefusedError(ValueError):
    """A gate's verdict, as a reader's error."""


PIXELS = 8
"""Of the sound picture's side."""
SHADES = np.linspace(0, 1, 3 * PIXELS**2, dtype=np.float32).reshape(1, 3, PIXELS, PIXELS)


def small_manifest(root: Path) -> Manifest:
    """Return the sound manifest, for pictures as large as their latents."""
    image = ImageSpec(height=PIXELS, width=PIXELS, latent_shape=(4, PIXELS, PIXELS))
    return msgspec.structs.replace(manifest_of(root), image=image)


def vectors_of_golden() -> dict[str, np.ndarray]:
    """Return golden vectors as that manifest describes them."""
    latents = np.ones((1, 4, PIXELS, PIXELS), np.float32)
    told = dict.fromkeys(("noise", "sample", "out", "x0"), latents) | {"image": SHADES}
    found = {f"{i}.{name}": value for i in range(4) for name, value in told.items()}
    return found | {f"{i}.input_ids": np.asarray([[1, i, 2]], np.int32) for i in range(4)}


def bundle_targets(work: Path) -> list[Target]:
    """The manifest with every file behind it, the golden vectors, and the tokenizer."""
    from safetensors.numpy import save

    from flashbulb.export.bundle import Bundle, BundleError, encode_manifest, read_bundle, verify
    from flashbulb.export.verify import check_path, is_pickle
    from flashbulb.runtimes.pipeline import Tokenizer

    root = work / "bundle"
    write_files(root)
    manifest = small_manifest(root)

    def read_manifest(data: bytes) -> None:
        (root / "manifest.json").write_bytes(data)
        verify(read_bundle(root))

    vectors = work / "vectors"
    (vectors / "golden").mkdir(parents=True)
    bundle = Bundle(root=vectors, manifest=manifest)

    def read_vectors(data: bytes) -> None:
        (vectors / "golden/vectors.safetensors").write_bytes(data)
        assert {len(c) for c in bundle.golden()} == {6}

    words = work / "tokenizer"
    words.mkdir()
    info = msgspec.structs.replace(manifest.tokenizers[0], folder=".", length=16)

    def read_tokenizer(data: bytes) -> None:
        (words / "tokenizer.json").write_bytes(data)
        ids = Tokenizer(info, words)("a glossy red apple, " * 50 + "\x00\u202e🐸" + "a" * 2000)
        assert ids.shape == (1, 16)

    inside = (work / "paths").resolve()
    inside.mkdir()

    def read_path(data: bytes) -> None:
        name = data.decode("utf-8", "replace")
        check_path(name)
        path = inside / name
        assert path.resolve().is_relative_to(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        for part in (path, *path.parents):
            if part == inside:
                break
            part.unlink() if part.is_file() else part.rmdir()

    def read_raw(data: bytes) -> None:
        (work / "raw").write_bytes(data)
        is_pickle(work / "raw")

    parts = st.sampled_from(["..", ".", "", "a", "con", "é", "A", " ", "a.", "x" * 250, "~", "$HOME"])
    names = st.one_of(st.text(max_size=40), st.lists(parts, max_size=6).map("/".join))
    heads = st.sampled_from([b"\x80\x02", b"\x80\x04", b"\x80\x05\x95", b"PK\x03\x04", b""])
    pickles = st.builds(lambda head, rest: head + rest, heads, st.binary(max_size=64))
    return [
        Target("manifest", read_manifest, (BundleError,), broken_json(json.loads(encode_manifest(manifest)))),
        Target("vectors", read_vectors, (BundleError,), broken_safetensors(save(vectors_of_golden()))),
        Target("tokenizer", read_tokenizer, (BundleError,), broken_json(tokenizer())),
        Target("path", read_path, (BundleError,), names.map(lambda t: t.encode("utf-8", "replace"))),
        Target("pickle", read_raw, (), pickles),
    ]


def picture_targets(work: Path) -> list[Target]:
    """The golden pictures, which are opened to be held to their vectors."""
    from PIL import Image
    from safetensors.numpy import save_file

    from flashbulb.export.bundle import Bundle
    from flashbulb.runtimes.source_gates import picture_file_gate

    root = work / "pictures"
    write_files(root)
    bundle = Bundle(root=root, manifest=small_manifest(root))
    save_file(vectors_of_golden(), root / "golden/vectors.safetensors")
    pixels = Image.fromarray(np.rint(SHADES[0].transpose(1, 2, 0) * 255).astype(np.uint8))
    for i in range(4):
        pixels.save(root / f"golden/{i}.png")
    sound = (root / "golden/0.png").read_bytes()

    def read(data: bytes) -> None:
        (root / "golden/0.png").write_bytes(data)
        record = picture_file_gate(bundle)
        if record.verdict != "pass":
            raise RefusedError(record.sentence)

    read(sound)
    return [Target("picture", read, (RefusedError,), broken_png(sound))]


KINDS = (
    *(b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"pHYs"),
    *(b"eXIf", b"acTL", b"fcTL", b"fdAT", b"cICP", b"sRGB", b"cHRM", b"what"),
)
"""Of chunks: those that readers know, and one that they do not."""


def broken_png(sound: bytes) -> st.SearchStrategy[bytes]:
    """Break a picture in its chunks, whose checksums are made anew, or in its bytes."""
    chunks = png_chunks(sound)
    bomb = zlib.compress(bytes(1 << 20), 9)
    sizes = struct.pack(">II", 2**31 - 1, 2**31 - 1) + chunks[0][1][8:]
    bodies = st.one_of(
        st.binary(max_size=40),
        st.sampled_from([bomb, b"k\0\0" + bomb, b"k\0\1\0\0\0" + bomb, sizes, zlib.compress(b""), b""]),
        st.sampled_from([body for _, body in chunks]),
    )
    inserted = st.tuples(st.integers(0, len(chunks)), st.sampled_from(KINDS), bodies)

    def build(new: list[tuple[int, bytes, bytes]], broken: list[Any], lost: int, raw: list[Any]) -> bytes:
        told = list(chunks)
        kind, body = told[lost % len(told)]
        told[lost % len(told)] = (kind, change_bytes(body, broken))
        for at, *chunk in new:
            told.insert(at, (chunk[0], chunk[1]))
        return change_bytes(sound[:8] + b"".join(png_chunk(*c) for c in told), raw)

    few = st.lists(inserted, max_size=3)
    parts = (few, BYTE_CHANGES, CHOICES)
    return st.one_of(
        st.builds(build, *parts, st.just([])),
        st.builds(build, *parts, BYTE_CHANGES),
        st.builds(change_bytes, st.just(sound), BYTE_CHANGES),
        JUNK,
    )


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return kind and body of each chunk."""
    found, at = [], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += size + 12
    return found


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk with its size and its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def tokenizer() -> Any:
    """Return a small CLIP tokenizer as JSON."""
    letters = [chr(c) for c in range(33, 127)]
    vocab = {
        w: i for i, w in enumerate([*letters, *(c + "</w>" for c in letters), "re", "red</w>", "<|end|>"])
    }
    pattern = {"Regex": r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "decoder": None, "post_processor": None,
        "added_tokens": [{"id": vocab["<|end|>"], "content": "<|end|>", **special}],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"}, {"type": "Lowercase"},
            {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": pattern, "behavior": "Removed", "invert": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<|end|>", "continuing_subword_prefix": "",
                  "end_of_word_suffix": "</w>", "fuse_unk": False, "byte_fallback": False,
                  "vocab": vocab, "merges": ["r e", "re d</w>"]},
    }  # fmt: skip


def checkpoint_targets(work: Path) -> list[Target]:
    """The files of a diffusers folder, up to what is needed to know its shapes."""
    from safetensors import safe_open
    from safetensors.numpy import save

    import flashbulb.distill
    from flashbulb.distill.checkpoint import Checkpoint, CheckpointError
    from flashbulb.distill.schedule import one_step
    from flashbulb.distill.untrusted import UntrustedError, safetensors_header

    assets = Path(flashbulb.distill.__file__).parent / "assets/teacher"
    root = work / "checkpoint"
    small = save({f"w{i}": np.zeros(4096 if i == 0 else 2, np.uint8) for i in range(12)})
    for folder in ("text_encoder", "unet", "vae", "scheduler", "tokenizer"):
        (root / folder).mkdir(parents=True)
        for file in (assets / folder).glob("*config.json"):
            (root / folder / file.name).write_bytes(file.read_bytes())
        if folder in ("text_encoder", "unet", "vae"):
            (root / folder / "model.safetensors").write_bytes(small)
    (root / "model_index.json").write_bytes((assets / "model_index.json").read_bytes())

    def reader(name: str) -> Callable[[bytes], None]:
        sound = (root / name).read_bytes() if (root / name).exists() else None

        def read(data: bytes) -> None:
            (root / name).write_bytes(data)
            try:
                found = Checkpoint.open(root)
                side = (found.latent_shape, found.image_size, found.text_length, found.is_sdxl)
                assert max(side[0]) <= 1 << 20
                one_step(found.config("scheduler"), found.config("vae"))
            finally:
                if sound is None:
                    (root / name).unlink()
                else:
                    (root / name).write_bytes(sound)

        return read

    weights = work / "weights.safetensors"

    def read_weights(data: bytes) -> None:
        weights.write_bytes(data)
        header = safetensors_header(weights)
        with safe_open(
            str(weights), "np"
        ) as opened:  # what we accept the library must accept, and see the same
            assert set(opened.keys()) == set(header)
            for name, told in header.items():
                assert tuple(opened.get_slice(name).get_shape()) == told.shape

    mixed = save(
        {"a": np.zeros((2, 3), np.float32), "b": np.zeros(5, np.int64), "c": np.zeros((0, 7), np.uint8)}
    )
    lineage = {
        "schema_version": 1,
        "entries": [{"stage": "distill", "config": {"steps": 3, "deep": [[1], {"a": 2}]}}],
    }
    names = {"index": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}
    names |= {f"config-{f}": f"{f}/config.json" for f in ("text_encoder", "unet", "vae")}
    found = [
        Target(
            word,
            reader(name),
            (CheckpointError, ValueError),
            broken_json(json.loads((root / name).read_bytes())),
        )
        for word, name in names.items()
    ]
    found.append(Target("lineage", reader("lineage.json"), (CheckpointError,), broken_json(lineage)))
    found.append(Target("weights", read_weights, (UntrustedError,), broken_safetensors(mixed)))
    return found


def report_targets(work: Path) -> list[Target]:
    """The report that ``check --baseline`` reads."""
    from flashbulb.runtimes.records import Device, Measured, Report, SanityRecord, read_report
    from flashbulb.runtimes.summary import markdown

    device = Device(name="d", os="o", arch="a", cpu="c", cores=1, memory_bytes=1)
    record = SanityRecord(gate="files", engine="bundle", verdict="pass", sentence="fine")
    phone = Measured(device=msgspec.structs.replace(device, kind="adb"), versions={}, sanity=(record,))
    told = {"command": "report", "created": "now", "bundle": None, "device": device, "versions": {}}
    report = Report(**told, sanity=(record,), others=(phone,))

    def read(data: bytes) -> None:
        (work / "report.json").write_bytes(data)
        markdown(read_report(work / "report.json"))

    return [Target("report", read, (ValueError,), broken_json(msgspec.to_builtins(report)))]


def targets(work: Path) -> list[Target]:
    """All of them."""
    found = [*bundle_targets(work), *picture_targets(work), *checkpoint_targets(work)]
    return found + report_targets(work)
