"""Which operations each opset has, and which opset a model file of each version may use.

Made from coremltools' registry of operations, and held to it by a test.
"""

from __future__ import annotations

from flashbulb.runtimes.engines.mil.errors import ProgramError

OPSETS = {f"CoreML{n}": n + 10 for n in range(5, 9)}
"""Opsets by the iOS version that brought them; later ones have not been read yet."""
VERSIONS = {6: 15, 7: 16, 8: 17, 9: 18}
"""Specification version of a model file -> the latest opset that it may use, as an iOS version."""
LATER = {
    16: (
        "constexpr_affine_dequantize", "constexpr_cast", "constexpr_lut_to_dense",
        "constexpr_sparse_to_dense", "fill_like", "pixel_unshuffle", "reshape_like",
    ),
    17: ("dequantize", "quantize", "resize"),
    18: (
        "constexpr_blockwise_shift_scale", "constexpr_lut_to_sparse",
        "constexpr_sparse_blockwise_shift_scale", "read_state",
        "scaled_dot_product_attention", "slice_update", "write_state",
    ),
}  # fmt: skip
"""Operations by the iOS version that brought them; all others came with iOS 15."""
SINCE = {op: since for since, ops in LATER.items() for op in ops}


def check_age(op: str, opset: int) -> None:
    """Refuse an operation in an opset that is older than it.

    Raises:
        ProgramError: with both.
    """
    if (since := SINCE.get(op, 15)) > opset:
        raise ProgramError(f"wanted an operation of the opset of iOS {opset}, it came with iOS {since}")


def check_version(version: int, opset: str) -> None:
    """Refuse a model file whose version cannot hold its opset.

    Raises:
        ProgramError: with both.
    """
    latest = VERSIONS.get(min(version, max(VERSIONS)), 0)
    if OPSETS.get(opset, 0) > latest:
        held = [name for name, since in OPSETS.items() if since <= latest]
        raise ProgramError(
            f"wanted one of the opsets {held} in a model of version {version}, got {opset}; export it again"
        )
