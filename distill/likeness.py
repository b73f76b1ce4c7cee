"""What a student must share with its teacher: both read the same text states and the same latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashbulb.distill.checkpoint import CheckpointError
from flashbulb.distill.text import added_width

if TYPE_CHECKING:
    from flashbulb.distill.checkpoint import Checkpoint


def must_read_alike(teacher: Checkpoint, student: Checkpoint) -> None:
    """Refuse a student whose UNet does not read what the teacher's reads; its depth and widths are free.

    Raises:
        CheckpointError: for other latent channels, another width of the text, or other text beside the time.
    """
    read, other = (_reads(checkpoint.config("unet")) for checkpoint in (teacher, student))
    if unlike := [name for name in read if read[name] != other[name]]:
        found = "; ".join(f"{name} {other[name]}, where the teacher has {read[name]}" for name in unlike)
        raise CheckpointError(
            f"wanted a student that reads the latents and the text of its teacher, got {found}; "
            "give a student of the teacher's family, or no student"
        )


def _reads(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "in_channels": config.get("in_channels"),
        "cross_attention_dim": config.get("cross_attention_dim"),
        "pooled text beside the time": added_width(config),
    }
