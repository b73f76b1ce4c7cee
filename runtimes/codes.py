"""The code gate: what `compress` stored follows from the weights that it was given.

The other gates hold programs to the compressed checkpoint, and cannot see an error of `compress` itself.
Here the codes are held to the checkpoint before, which the lineage names, by what each code promises.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flashbulb.compress.encoding import FOLDERS, EncodedTensor, EncodingError, read_encoded, split_key
from flashbulb.distill.checkpoint import Checkpoint, CheckpointError
from flashbulb.distill.lineage import LineageEntry
from flashbulb.export.anatomy.listing import Array
from flashbulb.runtimes.gates import sanity
from flashbulb.runtimes.records import SanityRecord

SETTLED = 0.1
"""Share of the distance to the next centre by which k-means may stop short of a cluster's mean.

One more value that changes its cluster is allowed on top, and the rounding to float16. Measured with 5 to 500
rounds, 2 to 8 bits: under 0.85 of what is allowed.
"""
ROUNDS = 5
"""With fewer rounds of k-means its centres are not settled, and are not judged."""
HALF_STEP = 0.5 + 2.0**-16
"""Largest error of a weight in steps of its channel; float32 division rounds in the last place of 127."""
SHOWN = 3


def code_gate(checkpoint: Checkpoint) -> SanityRecord:
    """Hold the codes of a compressed checkpoint to its parent, where that can be opened."""
    try:
        encoded = read_encoded(checkpoint.path)
    except EncodingError as error:
        return sanity("codes", "bundle", False, str(error))
    if not encoded:
        words = "the checkpoint stores no codes, only floats"
        return sanity("codes", "bundle", True, words, value=0.0, threshold=0.0, unit="values")
    entry = checkpoint.lineage.entries[-1] if checkpoint.lineage.entries else None
    parent = _parent(entry)
    if isinstance(parent, str) or entry is None:
        words = f"not judged: the codes cannot be held to what was compressed: {parent}"
        return SanityRecord(gate="codes", engine="bundle", verdict="skip", sentence=words)
    pruned = entry.config.get("prune") is not None
    judged = {k: e for k, e in encoded.items() if not (pruned and k.startswith("unet/"))}
    if not judged:
        words = "not judged: channels were removed before the UNet was encoded, and nothing else is"
        return SanityRecord(gate="codes", engine="bundle", verdict="skip", sentence=words)
    return _record(judged, parent, _rounds(entry.config) >= ROUNDS, pruned)


def _record(
    judged: dict[str, EncodedTensor], parent: Checkpoint, settled: bool, pruned: bool
) -> SanityRecord:
    """Judge every encoded weight."""
    wrong, problems = 0, []
    for key, values in _weights(parent, judged):
        count, problem = _faults(judged[key], values, settled)
        wrong += count
        problems += [f"{key}: {problem}"] if problem else []
    words = f"{len(judged)} weights are encoded as their codes promise"
    words += "; the UNet, whose channels were removed before, is not judged" if pruned else ""
    if problems:
        more = len(problems) - SHOWN
        words = "; ".join(problems[:SHOWN]) + (f"; {more} more" if more > 0 else "") + "; compress again"
    return sanity("codes", "bundle", not problems, words, value=float(wrong), threshold=0.0, unit="values")


def _parent(entry: LineageEntry | None) -> Checkpoint | str:
    """Open the checkpoint that was compressed, or say why not; a Hub id is never fetched."""
    if entry is None or entry.stage != "compress":
        return f"the last stage was {entry.stage if entry else 'none'}, not compress"
    source = str(entry.config.get("checkpoint", ""))
    if not source.startswith("embedded:") and not Path(source).is_dir():
        return f"{source or 'what was compressed'} is not on this machine"
    try:
        found = Checkpoint.open(source)
    except CheckpointError as error:
        return str(error)
    same = found.sha256() == entry.parent_sha256
    return found if same else f"{source} has changed since it was compressed"


def _rounds(config: Any) -> float:
    """Return the fewest rounds of k-means among all methods of a configuration."""
    if not isinstance(config, dict):
        return np.inf
    own = config.get("max_rounds")
    return min((own if isinstance(own, int) else np.inf, *(_rounds(v) for v in config.values())))


def _weights(parent: Checkpoint, judged: dict[str, EncodedTensor]) -> Iterator[tuple[str, Array]]:
    """Yield the float32 weight behind each key, one component in memory at a time."""
    for component in dict.fromkeys(split_key(key)[0] for key in judged):
        module = parent.load(FOLDERS[component])
        tensors = dict(module.named_parameters())
        for key in judged:
            owner, name = split_key(key)
            if owner == component:
                yield key, tensors[name].detach().numpy() if name in tensors else np.empty(0, np.float32)


def _faults(encoded: EncodedTensor, values: Array, settled: bool) -> tuple[int, str]:
    """Return how many values are not what the code promises, and a sentence part; empty where all are."""
    if values.shape != encoded.codes.shape:
        return encoded.codes.size, f"wanted a weight {list(encoded.codes.shape)}, got {list(values.shape)}"
    weight = values.astype(np.float64)
    if encoded.lut is not None:
        return _palette(encoded, weight, encoded.lut.astype(np.float64), settled)
    return _int8(encoded, weight)


def _palette(encoded: EncodedTensor, weight: Array, lut: Array, settled: bool) -> tuple[int, str]:
    """Every value is at its nearest entry, and an entry in the middle of its values."""
    ordered = np.sort(lut)
    edges = np.searchsorted(ordered, weight)
    below, above = ordered[np.maximum(edges - 1, 0)], ordered[np.minimum(edges, lut.size - 1)]
    least = np.minimum(np.abs(weight - below), np.abs(weight - above))
    far = np.abs(weight - lut[encoded.codes]) > least
    if far.any():
        return int(far.sum()), f"{int(far.sum())} of {far.size} values are not at the nearest of the table"
    if not settled:
        return 0, ""
    off = _unsettled(encoded.codes.ravel(), weight.ravel(), lut)
    inside = int(off[encoded.codes].sum())
    return inside, f"{int(off.sum())} entries of the table are not the mean of their values" if inside else ""


def _unsettled(codes: Array, weight: Array, lut: Array) -> Array:
    """Tell the entries that are not the mean of their cluster, up to what k-means leaves."""
    count = np.bincount(codes, minlength=lut.size)
    mean = np.bincount(codes, weights=weight, minlength=lut.size) / np.maximum(count, 1)
    gaps = np.concatenate([[np.inf], np.diff(lut), [np.inf]])
    gap = np.minimum(gaps[1:], gaps[:-1])
    rounding = np.abs(np.spacing(lut.astype(np.float16))).astype(np.float64)
    allowed = rounding + np.where(np.isfinite(gap), gap, 0.0) * (SETTLED + 1.0 / np.maximum(count, 1))
    return np.asarray((count > 0) & (np.abs(lut - mean) > allowed))


def _int8(encoded: EncodedTensor, weight: Array) -> tuple[int, str]:
    """Every value is within half a step, and no step is larger than its channel needs."""
    scale = np.asarray(encoded.scale, np.float64).reshape(-1, *(1,) * (weight.ndim - 1))
    far = np.abs(weight - encoded.codes * scale) > HALF_STEP * scale
    if far.any():
        return int(far.sum()), f"{int(far.sum())} of {far.size} values are more than half a step away"
    peak = np.abs(weight).reshape(len(weight), -1).max(1) / 127.0
    needed = np.maximum(peak, np.finfo(np.float16).smallest_subnormal).astype(np.float16)
    coarse = scale.ravel() > np.nextafter(needed, np.float16(np.inf)).astype(np.float64)
    inside = int(coarse.sum()) * (weight.size // len(weight))
    return inside, f"{int(coarse.sum())} steps are larger than their channels need" if inside else ""
