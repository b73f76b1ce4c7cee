"""Open the golden vectors of a bundle, held to the shapes that the manifest tells.  No torch here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from flashbulb.distill.untrusted import UntrustedError, safetensors_header

if TYPE_CHECKING:
    import numpy as np

    from flashbulb.export.bundle import Bundle, Manifest

    Arrays = dict[str, np.ndarray[Any, Any]]

MOST_HEADER_BYTES = 1 << 20
"""A few tensors for each of at most some hundred cases."""
DTYPES = ("F32", "F16", "F64", "I32", "I64")
_AGAIN = "export the bundle again, or fetch it from where it was published"


def read_vectors(bundle: Bundle) -> tuple[Arrays, ...]:
    """Return one dictionary by tensor name per golden case.

    Raises:
        BundleError: when the file is none, or lacks a tensor, or holds one in another shape.
    """
    import numpy as np
    from safetensors.numpy import load_file

    from flashbulb.export.bundle import BundleError

    path, manifest = bundle.root / bundle.manifest.golden.tensors, bundle.manifest
    try:
        header = safetensors_header(path, most_bytes=MOST_HEADER_BYTES)
    except (UntrustedError, OSError) as error:
        raise BundleError(f"wanted golden vectors, got: {error}; {_AGAIN}") from error
    if fault := _fault(manifest, {name: (t.dtype, t.shape) for name, t in header.items()}):
        raise BundleError(f"wanted {fault} in {manifest.golden.tensors!r}; {_AGAIN}")
    cases: list[Arrays] = [{} for _ in manifest.golden.cases]
    for key, value in load_file(path).items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise BundleError(f"wanted finite golden vectors, got NaN or infinity in {key}; {_AGAIN}")
        index, name = key.split(".", 1)
        cases[int(index)][name] = value
    for index, (told, case) in enumerate(zip(manifest.golden.cases, cases, strict=True)):
        for name, ids in told.token_ids.items():
            if name not in case or case[name].ravel().tolist() != list(ids):
                raise BundleError(
                    f"wanted the manifest's ids {name!r} in golden case {index}, got others; {_AGAIN}"
                )
    return tuple(cases)


def wanted_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """Return the tensors that every golden case must have, with their shapes."""
    specs = [s for a in manifest.artifacts for s in (*a.inputs, *a.outputs)]
    latent = dict.fromkeys(("noise", "sample", "out", "x0"), manifest.noise.shape)
    image = (1, 3, manifest.image.height, manifest.image.width)
    ids = {t.input: (1, t.length) for t in manifest.tokenizers}
    return {**{s.name: tuple(s.shape) for s in specs}, **latent, **ids, "image": image}


def _fault(manifest: Manifest, header: dict[str, tuple[str, tuple[int, ...]]]) -> str | None:
    count, shapes = len(manifest.golden.cases), wanted_shapes(manifest)
    for key, (dtype, shape) in header.items():
        match = re.fullmatch(r"(0|[1-9][0-9]{0,3})\.([A-Za-z0-9_]{1,100})", key)
        if match is None or int(match[1]) >= count or dtype not in DTYPES:
            return f"CASE.NAME in {DTYPES} with a case under {count}, got {key[:80]!r} in {dtype}"
        if shape != shapes.get(match[2], shape):
            return f"{key} in shape {shapes[match[2]]}, got {shape}"
    absent = next(
        (f"{i}.{name}" for i in range(count) for name in shapes if f"{i}.{name}" not in header), None
    )
    return f"the tensor {absent}, got none" if absent else None
