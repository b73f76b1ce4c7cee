"""Feed broken files to everything that reads a stranger's files.

    python tests/hostile/fuzz.py --cases 100000

The manifest, the loader of Core ML programs and the reader of their weights share these cases, a third for
each; every other target has a twentieth of them.  ``--each`` gives all targets the same number instead.

Each case is one file, broken at random by hypothesis, read by one target.  It must end in a result or in one
of the target's documented errors, within `MOST_SECONDS` of processor time and `MOST_BYTES` of allocation; the
whole run may not grow the process by more than `MOST_GROWTH`.  What fails is kept in ``--save`` and belongs,
once mended, into ``tests/hostile/corpus/TARGET/``, which `test_fuzz.py` replays together with a short sample.

A reader that is written later gets its cases in a file ``fuzz_NAME.py`` beside this one, with a function
``targets(work: Path) -> list[Target]``; it is found by its name.
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import hashlib
import importlib.util
import json
import logging
import os
import signal
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import hypothesis
import msgspec
import numpy as np
from hypothesis import strategies as st

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
MOST_SECONDS = 2.0
"""Processor time of one case."""
MOST_BYTES = 64 << 20
"""Python's allocations in one case."""
MOST_GROWTH = 256 << 20
"""Resident memory that a whole run may add."""
ROUND = 1000
"""Cases that hypothesis draws before it starts anew: it remembers each one, which is no reader's memory."""


FOREMOST = ("manifest", "mil-model", "mil-weights")
"""What every stranger's bundle goes through first."""
REST = 20
"""Of so many cases of the run, each other target has one."""


class Target(NamedTuple):
    """A reader, and how its files are broken."""

    name: str
    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    """What it may raise."""
    files: st.SearchStrategy[bytes]


class Hang(BaseException):
    """A case took too long; no reader may catch it."""


@contextmanager
def bounded() -> Iterator[None]:
    """Hold what runs inside to the bounds of one case."""

    def late(*_: object) -> None:
        raise Hang(f"more than {MOST_SECONDS} s of processor time")

    before = signal.signal(signal.SIGVTALRM, late)
    started = tracemalloc.is_tracing()
    if not started:
        tracemalloc.start()
    tracemalloc.reset_peak()
    base = tracemalloc.get_traced_memory()[0]
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        peak = tracemalloc.get_traced_memory()[1] - base
        if not started:
            tracemalloc.stop()
        signal.signal(signal.SIGVTALRM, before)
    assert peak <= MOST_BYTES, f"{peak >> 20} MiB were allocated"


def run_case(target: Target, data: bytes) -> str:
    """Run one case; return ``accepted`` or the name of the documented error."""
    with bounded():
        try:
            target.read(data)
        except target.errors as error:
            assert str(error).strip(), "an error without a message"
            return type(error).__name__
    return "accepted"


# How files are broken

LEAVES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**9, 10**30, 0.0, -0.0, 1e308, 5e-324, "",
    "../x", "/etc/passwd", "a" * 5000, "\x00", "\u202e", "é", "e\u0301", "NaN", "C:\\x", "con", [], {}, [[]],
    {"": ""}, [0] * 50, ["os", "system"], "__class__", "0" * 64, [None, None], "..", ".", "manifest.json",
    "a/b/c", "\ud7ff",
]  # fmt: skip
TOKENS = [
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"null", b"{}", b"[]", b'"\\ud800"', b"\xff\xfe", b"\x00",
    b",", b":", b'"schema_version":1,', b"[" * 300, b'{"a":' * 300, b"9" * 5000, b"\xef\xbb\xbf", b"-", b"'",
]  # fmt: skip
OPERATIONS = ("replace", "delete", "add", "grow", "swap")
CHOICES = st.integers(0, 2**32 - 1)
TREE_CHANGES = st.lists(
    st.tuples(CHOICES, st.sampled_from(OPERATIONS), st.integers(0, len(LEAVES) - 1)), max_size=4
)
BYTE_CHANGES = st.lists(
    st.tuples(CHOICES, st.sampled_from(("flip", "cut", "token", "repeat", "drop")), st.integers(0, 255)),
    max_size=3,
)
JUNK = st.binary(max_size=64)


def places(value: Any) -> list[tuple[Any, Any]]:
    """List every (container, key) of a JSON value."""
    found, queue = [], [value]
    while queue:
        item = queue.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
        for key in keys:
            found.append((item, key))
            queue.append(item[key])
    return found


def change_tree(value: Any, changes: list[tuple[int, str, int]]) -> Any:
    """Break a JSON value at some places."""
    value = copy.deepcopy(value)
    for where, operation, which in changes:
        spots = places(value)
        if not spots:
            break
        holder, key = spots[where % len(spots)]
        leaf = copy.deepcopy(LEAVES[which])
        if operation == "replace":
            holder[key] = leaf
        elif operation == "delete":
            del holder[key]
        elif operation == "add" and isinstance(holder, dict):
            holder["surprise"] = leaf
        elif operation == "grow" and isinstance(holder[key], list):
            holder[key] = holder[key] * (which + 2)
        elif operation == "swap":
            other, name = spots[(where // 7919) % len(spots)]
            holder[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(holder[key])
    return value


def change_bytes(data: bytes, changes: list[tuple[int, str, int]]) -> bytes:
    """Break a file at some places."""
    for where, operation, which in changes:
        at = where % (len(data) + 1)
        if operation == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (which or 1)]) + data[at + 1 :]
        elif operation == "cut":
            data = data[:at]
        elif operation == "token":
            data = data[:at] + TOKENS[which % len(TOKENS)] + data[at:]
        elif operation == "repeat":
            data = data[:at] + data[max(0, at - which) : at] * 3 + data[at:]
        elif operation == "drop":
            data = data[:at] + data[at + which + 1 :]
    return data


def broken_json(sound: Any) -> st.SearchStrategy[bytes]:
    """Break a JSON file as a tree, as bytes, or both; now and then it is only junk."""

    def build(tree: list[Any], raw: list[Any]) -> bytes:
        return change_bytes(json.dumps(change_tree(sound, tree)).encode("utf-8", "surrogatepass"), raw)

    return st.one_of(
        st.builds(build, TREE_CHANGES, BYTE_CHANGES), st.builds(build, TREE_CHANGES, st.just([])), JUNK
    )


def broken_safetensors(sound: bytes) -> st.SearchStrategy[bytes]:
    """Break a safetensors file in its header, its length, or its bytes."""
    size = int.from_bytes(sound[:8], "little")
    header, body = json.loads(sound[8 : 8 + size]), sound[8 + size :]

    def build(tree: list[Any], raw: list[Any], lie: int, keep: int) -> bytes:
        text = change_bytes(json.dumps(change_tree(header, tree)).encode("utf-8", "surrogatepass"), raw)
        length = len(text) + lie if lie > -len(text) else 2**63 + lie
        return length.to_bytes(8, "little") + text + body[: len(body) - keep]

    lies = st.one_of(st.just(0), st.just(0), st.integers(-(2**40), 2**40), st.integers(-8, 8))
    cuts = st.one_of(st.just(0), st.just(0), st.integers(0, 16))
    whole = st.builds(change_bytes, st.just(sound), BYTE_CHANGES)
    return st.one_of(
        st.builds(build, TREE_CHANGES, st.just([]), lies, cuts),
        st.builds(build, TREE_CHANGES, BYTE_CHANGES, lies, cuts),
        whole,
    )


# What is fed


def module(path: Path) -> ModuleType:
    """Import a file by its path."""
    spec = importlib.util.spec_from_file_location(f"flashbulb_{path.stem}", path)
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def bundle_targets(work: Path) -> list[Target]:
    """The manifest with every file behind it, the golden vectors, and the tokenizer."""
    from safetensors.numpy import save

    from flashbulb.export.bundle import BundleError, ImageSpec, encode_manifest, read_bundle, verify
    from flashbulb.export.verify import check_path, is_pickle
    from flashbulb.runtimes.pipeline import Tokenizer

    sample = module(HERE / "conftest.py")
    root = work / "bundle"
    sample.write_files(root)
    manifest = msgspec.structs.replace(
        sample.manifest_of(root), image=ImageSpec(height=8, width=8, latent_shape=(4, 8, 8))
    )
    case = dict.fromkeys(("noise", "sample", "out", "x0"), np.ones((1, 4, 8, 8), np.float32))
    tensors = {f"{i}.{n}": v for i in range(4) for n, v in case.items()}
    for i in range(4):
        tensors[f"{i}.image"] = np.ones((1, 3, 8, 8), np.float32)
        tensors[f"{i}.input_ids"] = np.asarray([[1, i, 2]], np.int32)

    def read_manifest(data: bytes) -> None:
        (root / "manifest.json").write_bytes(data)
        verify(read_bundle(root))

    vectors = work / "vectors"
    (vectors / "golden").mkdir(parents=True)
    bundle = sample.Bundle(root=vectors, manifest=manifest)

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
        Target("vectors", read_vectors, (BundleError,), broken_safetensors(save(tensors))),
        Target("tokenizer", read_tokenizer, (BundleError,), broken_json(tokenizer())),
        Target("path", read_path, (BundleError,), names.map(lambda t: t.encode("utf-8", "replace"))),
        Target("pickle", read_raw, (), pickles),
    ]


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


def all_targets(work: Path) -> list[Target]:
    """Every target, those of sibling files included."""
    found = [*bundle_targets(work), *checkpoint_targets(work), *report_targets(work)]
    for path in sorted(HERE.glob("fuzz_*.py")):
        found += module(path).targets(work)
    return found


# The run


def fuzz(target: Target, cases: int, seed: int, save: Path | None) -> Counter[str]:
    """Run cases of one target until there were enough; count what came out."""
    outcomes: Counter[str] = Counter()

    def one(data: bytes) -> None:
        try:
            outcomes[run_case(target, data)] += 1
        except BaseException:
            if save is not None:
                keep(save / target.name, data)
            raise

    while outcomes.total() < cases:
        left = cases - outcomes.total()
        test = hypothesis.given(target.files)(one)
        checks = list(hypothesis.HealthCheck)
        test = hypothesis.settings(
            max_examples=min(left, ROUND),
            database=None,
            deadline=None,
            suppress_health_check=checks,
            print_blob=False,
        )(hypothesis.seed(seed)(test))
        test()
        seed += 1_000_003
    return outcomes


def keep(folder: Path, data: bytes) -> None:
    """Write an input under its hash."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def high_water() -> int:
    """Return the peak resident memory of this process in bytes, 0 where it is not told."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


def work_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder, in memory where there is one."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(
        prefix="flashbulb-fuzz-", dir=memory if os.access(memory, os.W_OK) else None
    )


def warm_hypothesis() -> None:
    """Draw one text: in a fresh clone hypothesis first makes tables of Unicode, which a tracer makes dear."""

    @hypothesis.settings(max_examples=1, database=None, deadline=None)
    @hypothesis.given(st.text())
    def one(_: str) -> None:
        pass

    one()


def warm(targets: list[Target]) -> None:
    """Read a sound file and an empty one of each target, so that no case pays for what is imported once."""
    for target in targets:
        for data in (b"", *(p.read_bytes() for p in sorted((CORPUS / target.name).glob("ok-*")))):
            with suppress(*target.errors):
                target.read(data)


def share(name: str, cases: int) -> int:
    """Return how many cases a target has of a run of some."""
    return -(-cases // (len(FOREMOST) if name in FOREMOST else REST))


def main() -> int:
    """Run as the command line says; return 1 on the first case that breaks a promise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases",
        type=int,
        default=100_000,
        help=f"cases over {', '.join(FOREMOST)} together; each other target has a {REST}th of it (100000)",
    )
    parser.add_argument("--each", type=int, help="cases of every target alike, instead")
    parser.add_argument("--target", action="append", help="only this target; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--save", type=Path, default=Path("fuzz-failures"), help="folder for inputs that fail"
    )
    told = parser.parse_args()
    faulthandler.enable()
    logging.disable()
    begin, total = time.monotonic(), 0
    with work_folder() as work:
        targets = [t for t in all_targets(Path(work)) if not told.target or t.name in told.target]
        warm_hypothesis()
        tracemalloc.start()  # once: started anew for each case it keeps some kilobytes of its own each time
        warm(targets)
        base = high_water()
        for target in targets:
            faulthandler.dump_traceback_later(3600, exit=True)  # a hang in native code, which no signal ends
            found = fuzz(target, told.each or share(target.name, told.cases), told.seed, told.save)
            total += found.total()
            shown = ", ".join(f"{name} {count}" for name, count in found.most_common())
            grown = high_water() - base >> 20
            print(f"{target.name:<20}{found.total():>8} cases, {grown:>4} MiB: {shown}", flush=True)
    growth = high_water() - base
    print(f"{total} cases in {time.monotonic() - begin:.0f} s, peak memory grew by {growth >> 20} MiB")
    return 1 if growth > MOST_GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
