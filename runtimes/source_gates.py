"""Gates of what a manifest says, held to what it follows from: checkpoint, export rules, vectors.

A manifest can be changed together with its hashes; these conditions cannot be met by a changed one.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.schedule import one_step
from flashbulb.distill.typed_json import decode
from flashbulb.distill.untrusted import UntrustedError, read_small
from flashbulb.export.bundle import Bundle, BundleError
from flashbulb.export.golden import SANITY_SHARE
from flashbulb.export.thresholds import gates
from flashbulb.export.tokenizer_file import read_tokenizer
from flashbulb.runtimes.engines.base import Array
from flashbulb.runtimes.gates import sanity
from flashbulb.runtimes.records import ParityRecord, SanityRecord

RULE_SLACK = 0.01
"""Decibels by which rounding may lower a threshold."""
CONSTANT_TOLERANCE = 1e-9
"""Largest relative difference of a scheduler constant that is computed again."""
FLOOR_SHARE = 0.4
"""A floor of a sensitivity is half of PyTorch's own; under this share of it, somebody lowered it."""
PICTURES = {"pipeline": "image", "generator": "generator"}
"""How a picture was drawn -> the quantity of its parity."""
FLOOR_ROUNDING = 2e-6
"""Exports round floors to six decimals, and sums of float32 differ in the seventh."""
PIXEL_TOLERANCE = 1
"""Steps of 255 by which a golden picture may differ from its vector."""
MOST_PNG_EXTRA = 1 << 20
"""Bytes that a golden picture's file may have beyond four for each pixel."""
TOKENIZER_PARTS = ("model", "normalizer", "pre_tokenizer", "added_tokens")


def rule_gates(bundle: Bundle) -> Iterator[SanityRecord]:
    """Judge what follows from the bundle itself: thresholds by the export's rule, pictures, vocabularies."""
    yield rule_gate(bundle)
    yield variance_floor_gate(bundle)
    yield picture_file_gate(bundle)
    for info in bundle.manifest.tokenizers:
        folder = bundle.root / info.folder
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            yield vocabulary_gate(folder)


def rule_gate(bundle: Bundle) -> SanityRecord:
    """No threshold may be under what the exporter sets for such an artifact."""
    manifest = bundle.manifest
    told = {(g.backend, g.precision, g.quantity, g.metric): g.minimum_db for g in manifest.gates}
    lowered = []
    for rule in gates(manifest.artifacts, manifest.sampling.one_step):
        key = (rule.backend, rule.precision, rule.quantity, rule.metric)
        if not told.get(key, -np.inf) >= rule.minimum_db - RULE_SLACK:
            found = f"{told[key]:.1f} dB" if key in told else "none"
            lowered.append(f"{' '.join(key)} at least {rule.minimum_db:.1f} dB, the manifest has {found}")
    words = f"the export's rule wants {lowered[0]}" if lowered else "all thresholds are the export's rule"
    return sanity("rule", "bundle", not lowered, words, value=float(len(lowered)), threshold=0.0)


def variance_floor_gate(bundle: Bundle) -> SanityRecord:
    """The floor of the variance may not be under what the exporter sets for such golden pictures."""
    told = bundle.manifest.sanity.std_min
    wanted = SANITY_SHARE * min(float(case["image"].std()) for case in bundle.golden())
    words = f"the floor of the pictures' standard deviation is {told:.4g}, the export's rule {wanted:.4g}"
    good = told >= wanted - FLOOR_ROUNDING
    return sanity("floors.variance", "bundle", good, words, value=told, threshold=wanted)


def picture_file_gate(bundle: Bundle) -> SanityRecord:
    """The golden pictures that people look at must be those of the golden vectors."""
    worst = 0
    for case, golden in zip(bundle.manifest.golden.cases, bundle.golden(), strict=True):
        wanted = np.rint(golden["image"][0].transpose(1, 2, 0) * 255.0).clip(0, 255)
        got = _pixels(bundle.root / case.png, wanted.shape[:2])
        if got is None:
            words = f"{case.png} is no PNG picture of {wanted.shape[:2]} pixels"
            return sanity("pictures", "bundle", False, words)
        worst = max(worst, int(np.abs(got - wanted).max()))
    words = f"the golden pictures differ from their vectors by {worst} of 255, allowed {PIXEL_TOLERANCE}"
    good = worst <= PIXEL_TOLERANCE
    return sanity("pictures", "bundle", good, words, value=float(worst), threshold=float(PIXEL_TOLERANCE))


def _pixels(path: Path, size: tuple[int, ...]) -> Array | None:
    """Return a picture as (height, width, 3) in [0, 255], or None when it is none of that size.

    It is read at once: from a file, a chunk would get all the memory that it says it is long.
    """
    from PIL import Image

    from flashbulb.distill.data.pictures import unreadable

    try:
        data = read_small(path, 4 * size[0] * size[1] + MOST_PNG_EXTRA)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.asarray(image.convert("RGB"), dtype=np.float64) if image.size == size[::-1] else None
    except UntrustedError:
        return None
    except unreadable():
        return None


def vocabulary_gate(folder: Path) -> SanityRecord:
    """`vocab.json` and `merges.txt`, which some apps read, must say what `tokenizer.json` says."""
    gate = f"vocabulary.{folder.name}"
    try:
        model = json.loads(read_tokenizer(folder / "tokenizer.json"))["model"]
        vocabulary = decode(read_small(folder / "vocab.json"), dict[str, int])
        merges = read_small(folder / "merges.txt").decode().splitlines()
    except (BundleError, ValueError, KeyError, OSError) as error:
        words = f"{folder.name} cannot be read: {error}"
        return sanity(gate, "bundle", False, words, value=1.0, threshold=0.0, unit="files")
    found = [line for line in merges if line and not line.startswith("#version")]
    other = [k for k, v in model["vocab"].items() if vocabulary.get(k) != v]
    wanted, fault = [_merge(m) for m in model["merges"]], None
    wrong = len(other) + sum(a != b for a, b in itertools.zip_longest(found, wanted))
    if other:
        word = other[0]
        fault = f"vocab.json has {vocabulary.get(word)} for {word!r}, tokenizer.json {model['vocab'][word]}"
    elif found != wanted:
        fault = f"merges.txt has {len(found)} merges that are not the {len(wanted)} of tokenizer.json"
    words = fault or f"{folder.name}: vocab.json and merges.txt are those of tokenizer.json"
    return sanity(gate, "bundle", fault is None, words, value=float(wrong), threshold=0.0, unit="entries")


def _merge(pair: Any) -> str:
    return pair if isinstance(pair, str) else " ".join(pair)


def checkpoint_gates(bundle: Bundle, checkpoint: Checkpoint) -> Iterator[SanityRecord]:
    """Judge what follows from the checkpoint: the step's constants, the tokenizers, the lineage."""
    yield schedule_gate(bundle, checkpoint)
    for info in bundle.manifest.tokenizers:
        yield tokenizer_gate(bundle, checkpoint, info.folder)
    pairs = itertools.zip_longest(bundle.manifest.lineage.entries, checkpoint.lineage.entries)
    wrong = sum(told != wanted for told, wanted in pairs)
    wrong = wrong or int(bundle.manifest.lineage != checkpoint.lineage)
    words = "the manifest's lineage is not the checkpoint's" if wrong else "the lineage is the checkpoint's"
    yield sanity("lineage", "bundle", not wrong, words, value=float(wrong), threshold=0.0, unit="stages")


def schedule_gate(bundle: Bundle, checkpoint: Checkpoint) -> SanityRecord:
    """The constants of the one step must follow from the checkpoint's scheduler and autoencoder."""
    told, size = bundle.manifest.sampling, checkpoint.image_size
    scheduler, vae = checkpoint.config("scheduler"), checkpoint.config("vae")
    wanted = one_step(scheduler, vae, timestep=told.folded_timestep)
    pairs = {name: (getattr(told.one_step, name), getattr(wanted, name)) for name in wanted.__struct_fields__}
    pairs |= {"width": (bundle.manifest.image.width, size), "height": (bundle.manifest.image.height, size)}
    wrong = {name: pair for name, pair in pairs.items() if not _same(*pair)}
    words = f"the one step at {wanted.timestep} is that of the checkpoint's scheduler"
    if wrong:
        name, (got, right) = next(iter(wrong.items()))
        words = f"the manifest has {name} {got}, the checkpoint's scheduler gives {right}"
    return sanity("schedule", "bundle", not wrong, words, value=float(len(wrong)), threshold=0.0)


def _same(got: Any, wanted: Any) -> bool:
    if isinstance(wanted, float):
        return bool(abs(got - wanted) <= CONSTANT_TOLERANCE * max(1.0, abs(wanted)))
    return bool(got == wanted)


def tokenizer_gate(bundle: Bundle, checkpoint: Checkpoint, name: str) -> SanityRecord:
    """A tokenizer must be the checkpoint's in vocabulary, merges and steps, not only on golden prompts."""
    gate = f"tokenizer.{name}"
    try:
        got = json.loads(read_tokenizer(bundle.root / name / "tokenizer.json"))
    except BundleError as error:
        return sanity(gate, "bundle", False, str(error))
    wanted = json.loads(checkpoint.tokenizer(name).backend_tokenizer.to_str())
    wrong = [part for part in TOKENIZER_PARTS if _canonical(got.get(part)) != _canonical(wanted.get(part))]
    words = f"{name} is the checkpoint's: {len(wanted['model']['vocab'])} words and all merges"
    if wrong:
        words = f"{name} is not the checkpoint's: {', '.join(wrong)} differ"
        if "model" in wrong:
            words += f" ({_model_difference(got['model'], wanted['model'])})"
    return sanity(gate, "bundle", not wrong, words, value=float(len(wrong)), threshold=0.0)


def _canonical(part: Any) -> Any:
    """Two spellings of a merge are one."""
    if isinstance(part, dict) and "merges" in part:
        return {**part, "merges": [_merge(m) for m in part["merges"]]}
    return part


def _model_difference(got: dict[str, Any], wanted: dict[str, Any]) -> str:
    told, right = ([_merge(m) for m in model.get("merges", ())] for model in (got, wanted))
    if told != right:
        place = next(
            (i for i, (a, b) in enumerate(zip(told, right, strict=False)) if a != b),
            min(len(told), len(right)),
        )
        return f"merge {place} of {len(right)} is the first"
    word = next((w for w, i in wanted["vocab"].items() if got.get("vocab", {}).get(w) != i), None)
    return "other options" if word is None else f"the word {word!r} has another id"


def floor_gate(records: Iterable[SanityRecord | ParityRecord | Any]) -> SanityRecord | None:
    """Hold the floors of sensitivity to what engines showed of it; None where none drew a picture.

    PyTorch shows the sensitivity itself.  Another engine, whose pictures are off by e in root mean square,
    shows it up to 2 e: by so much, what it shows is lessened.
    """
    known = list(records)
    found = [
        (r, _proven(r, known)) for r in known if isinstance(r, SanityRecord) and "_sensitivity." in r.gate
    ]
    proven = [(r, value) for r, value in found if value is not None and value > 0.0]
    if not proven:
        return None
    low = [(r, value) for r, value in proven if (r.threshold or 0.0) < FLOOR_SHARE * value]
    words = "the floors of prompt and noise sensitivity are half of PyTorch's own"
    if low:
        record, value = low[0]
        words = (
            f"the floor of {record.gate} is {record.threshold or 0.0:.2g}, far under half of what "
            f"{record.engine} shows, {value:.2g}"
        )
    return sanity("floors", "bundle", not low, words, value=float(len(low)), threshold=0.0)


def _proven(record: SanityRecord, records: Iterable[Any]) -> float | None:
    """Return what PyTorch's own sensitivity must be at least, by what an engine shows of it."""
    if record.value is None or record.engine == "eager":
        return record.value
    quantity = PICTURES.get(record.gate.partition(".")[2])
    errors = [
        _rms(r)
        for r in records
        if isinstance(r, ParityRecord) and (r.engine, r.quantity) == (record.engine, quantity)
    ]
    return record.value - 2.0 * max(errors) if errors else None


def _rms(record: ParityRecord) -> float:
    """Return a picture's error as root mean square; infinite where it is not finite."""
    if record.exact:
        return 0.0
    return float(10.0 ** (-record.psnr_db / 20.0)) if record.psnr_db is not None else np.inf
