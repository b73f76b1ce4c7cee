"""Every fault that can be planted in a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle, read_bundle
from flashbulb.runtimes.engines import Eager
from mutants.bundles import golden_faults, optimum_faults, tokenizer_faults
from mutants.constants import constant_faults
from mutants.delegates import delegate_faults
from mutants.fault import Fault, Planter
from mutants.files import donated, exchanged, file_faults
from mutants.graphs import attribute_faults, wiring_faults
from mutants.manifests import manifest_faults
from mutants.mlpackage_view import MlpackageView
from mutants.onnx_view import OnnxView
from mutants.ort_view import OrtView
from mutants.packages import description_faults, package_faults
from mutants.pte_view import PteView
from mutants.students import Pairs, embeddings, student_faults
from mutants.view import View


def opener(artifact: Artifact) -> Callable[[Path], Any]:
    """Return what opens an artifact for editing, given the bundle's folder."""
    method = artifact.method or artifact.component
    openers: dict[str, Callable[[Path], View]] = {
        "onnx": OnnxView,
        "ort": OrtView,
        "mlpackage": MlpackageView,
        "pte": lambda path: PteView(path, method),
    }
    return lambda root: openers[artifact.format](root / artifact.path)


def catalogue(
    root: Path, donors: Mapping[str, Path], seed: int = 0, checkpoint: str | None = None
) -> list[Fault]:
    """List the faults of a bundle; the same for the same seed.

    Args:
        root: folder of the bundle.
        donors: kind of fault -> a bundle of the same shapes that its files come from.
        seed: chooses the places.
        checkpoint: where the bundle's checkpoint is, if not where it was at export.
    """
    bundle = read_bundle(root)
    found: list[Fault] = []
    folded = _folded(bundle, checkpoint)
    for artifact in bundle.manifest.artifacts:
        planter = Planter(artifact.format, artifact.component, seed)
        _artifact(planter, bundle, artifact, folded)
        for kind, donor in donors.items():
            if artifact.format != "pte" or artifact.component == "unet":
                donated(planter, kind, donor, artifact)
        found += planter.faults
    return found + _rest(bundle, seed)


def _folded(bundle: Bundle, checkpoint: str | None) -> Pairs:
    """Compute time embeddings, where the checkpoint is here."""
    eager = Eager(checkpoint=checkpoint)
    if eager.missing() or eager.serves(bundle):
        return []
    return embeddings(eager.open(bundle), bundle.manifest.sampling.folded_timestep)


def _artifact(planter: Planter, bundle: Bundle, artifact: Artifact, folded: Pairs) -> None:
    root, open_ = bundle.root, opener(artifact)
    view = open_(root)
    constant_faults(planter, open_, view)
    student_faults(planter, open_, view, bundle.manifest.sampling.one_step, folded)
    if artifact.component == "generator":
        if artifact.format == "onnx":
            wiring_faults(planter, open_, view)
        if artifact.format == "mlpackage":
            description_faults(planter, open_)
        return
    if artifact.format in ("onnx", "ort"):
        attribute_faults(planter, open_, view)
    if artifact.format == "onnx":
        wiring_faults(planter, open_, view)
    if artifact.format == "mlpackage":
        package_faults(planter, open_, view)
    if artifact.format == "pte":
        delegate_faults(planter, open_, view)
    if artifact.format != "pte" or artifact.component == "unet":  # all methods share one file
        file_faults(planter, root, artifact)


def _rest(bundle: Bundle, seed: int) -> list[Fault]:
    manifest, root, found = bundle.manifest, bundle.root, []
    for fmt in dict.fromkeys(a.format for a in manifest.artifacts if a.format != "pte"):
        planter = Planter(fmt, "", seed)
        exchanged(planter, [a for a in manifest.artifacts if a.format == fmt])
        found += planter.faults
    tokenizer, golden, optimum, own = (
        Planter(f, "", seed) for f in ("tokenizer", "golden", "optimum", "manifest")
    )
    cases = manifest.golden.cases
    tokenizer_faults(tokenizer, manifest.tokenizers[0].folder, [c.prompt for c in cases])
    golden_faults(golden, root, manifest.golden.tensors, [c.png for c in cases])
    optimum_faults(optimum, root)
    manifest_faults(own, msgspec.to_builtins(manifest))
    return found + [f for planter in (tokenizer, golden, optimum, own) for f in planter.faults]
