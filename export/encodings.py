"""Find the encoding of every weight in a graph, cut where the graph cuts the weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from flashbulb.compress.encoding import EncodedTensor, check_current, layer_key, read_encoded

if TYPE_CHECKING:
    from pathlib import Path

    from flashbulb.export.graph import Graph
    from flashbulb.export.rewrites import Piece


class NotExpressible(ValueError):
    """A backend has no form for an encoding, and was not allowed to store floats instead."""


def read(folder: Path) -> dict[str, EncodedTensor]:
    """Read the encodings of a checkpoint and check that they are those of its weights."""
    encoded = read_encoded(folder)
    if encoded:
        check_current(folder)
    return encoded


def of_graph(graph: Graph, encoded: dict[str, EncodedTensor]) -> dict[str, EncodedTensor]:
    """Return parameter name -> encoding, for the parameters of one graph that have one."""
    found = {}
    for name, (component, piece) in graph.origins.items():
        whole = encoded.get(layer_key(component, piece.weight))
        if whole is not None:
            found[name] = _cut(whole, piece)
    return found


def _cut(whole: EncodedTensor, piece: Piece) -> EncodedTensor:
    """Cut codes and per-row scales; a table of the whole weight serves each part."""
    if piece.rows is None and piece.columns is None:
        return whole
    rows, columns = slice(*(piece.rows or (None,))), slice(*(piece.columns or (None,)))
    codes = np.ascontiguousarray(whole.codes[rows, columns])
    encoding = msgspec.structs.replace(whole.encoding, shape=tuple(int(n) for n in codes.shape))
    scale = None if whole.scale is None else whole.scale[rows]
    return msgspec.structs.replace(whole, encoding=encoding, codes=codes, scale=scale)


def label(encoded: EncodedTensor) -> str:
    """Name a storage for the manifest, such as `palettize6`."""
    kind = encoded.encoding.kind
    return f"{kind}{encoded.encoding.bits}" if kind == "palettize" else kind


def count(used: dict[str, EncodedTensor]) -> dict[str, int]:
    """Count weights per storage."""
    labels = [label(e) for e in used.values()]
    return {name: labels.count(name) for name in sorted(set(labels))}


def refuse(backend: str, used: dict[str, EncodedTensor], kinds: tuple[str, ...], allow: bool) -> None:
    """Raise for encodings outside `kinds`, unless floats were asked for.

    Raises:
        NotExpressible: naming one weight, what can be expressed, and what to do.
    """
    bad = {n: label(e) for n, e in used.items() if e.encoding.kind not in kinds}
    if bad and not allow:
        name, what = next(iter(bad.items()))
        raise NotExpressible(
            f"{backend} expresses {list(kinds) or 'no encoding'}, got {what} for {name} and "
            f"{len(bad) - 1} more weights; compress without it for this backend, "
            "or set allow_dequantized: true to store floats"
        )
