"""What stands inside an exported program: its operations, their wiring and its constants, in one form.

`read(path, format, method)` opens ONNX, `.ort` and `.pte` files without any runtime; Core ML packages are
read by `flashbulb.export.anatomy.coreml` where coremltools is at hand, and elsewhere by the interpreter.
"""

from __future__ import annotations

from pathlib import Path

from flashbulb.export.anatomy.listing import AnatomyError, Constant, Listing, Node

__all__ = ["AnatomyError", "Constant", "Listing", "Node", "read"]


def read(path: Path, file_format: str, method: str | None = None) -> Listing:
    """Read one program.

    Args:
        path: the file.
        file_format: `onnx`, `ort` or `pte`.
        method: which method of a `.pte`.

    Raises:
        AnatomyError: when the file is damaged or of another kind.
    """
    try:
        return _read(path, file_format, method)
    except AnatomyError:
        raise
    except (
        ValueError,
        IndexError,
        KeyError,
        OverflowError,
        TypeError,
        MemoryError,
        RecursionError,
    ) as error:  # numbers that point nowhere, or ask for more than there is
        reason = str(error) or type(error).__name__
        raise AnatomyError(
            f"wanted a sound program in {path.name}, got: {reason}; export it again"
        ) from error


def _read(path: Path, file_format: str, method: str | None) -> Listing:
    if file_format == "onnx":
        from flashbulb.export.anatomy.onnx import read_onnx

        return read_onnx(path)
    if file_format == "ort":
        from flashbulb.export.anatomy.ort import read_ort

        return read_ort(path)
    if file_format == "pte":
        from flashbulb.export.anatomy.pte import read_pte

        return read_pte(path, method or "forward")
    raise AnatomyError(f"wanted a format of onnx, ort, pte, got {file_format!r}")
