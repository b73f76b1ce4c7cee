"""Open what gates look into: programs in one form for all formats, and the checkpoint that they come from."""

from __future__ import annotations

from flashbulb.distill.checkpoint import Checkpoint, CheckpointError
from flashbulb.export.anatomy import read
from flashbulb.export.anatomy.listing import Listing
from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.engines import Eager


def label(artifact: Artifact) -> str:
    """Name an artifact in records, as `unet.onnx`."""
    return f"{artifact.component}.{artifact.format}"


def open_listing(bundle: Bundle, artifact: Artifact) -> Listing:
    """Take an artifact apart.

    Raises:
        AnatomyError, ProgramError: when it is damaged.
    """
    if artifact.format == "mlpackage":
        from flashbulb.runtimes.engines.mil.listing import read_package_listing

        return read_package_listing(bundle.path(artifact))
    return read(bundle.path(artifact), artifact.format, artifact.method)


def open_source(bundle: Bundle, checkpoint: str | None) -> tuple[Checkpoint | None, str | None]:
    """Open the checkpoint of a bundle, or return the reason why it cannot be."""
    eager = Eager(checkpoint=checkpoint)
    if reason := eager.missing():
        return None, reason
    try:
        return eager.open(bundle), None
    except CheckpointError as error:
        return None, str(error)
