"""Small packages, written by coremltools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

BUILTIN = {"float32": "fp32", "float16": "fp16", "int32": "int32", "bool": "bool"}


def save_program(
    build: Callable[..., Any],
    inputs: Mapping[str, np.ndarray],
    path: Path,
    *,
    target: str = "iOS16",
    names: tuple[str, ...] = (),
) -> Path:
    """Save a program of MIL's builder without any graph pass; ``build`` gets a Var per input."""
    import coremltools as ct
    from coremltools.converters.mil import mil
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools spells it
    from coremltools.converters.mil.mil import Function, types

    wanted = getattr(ct.target, target)
    kinds = {n: getattr(types, BUILTIN[str(a.dtype)]) for n, a in inputs.items()}
    places = {n: mb.placeholder(shape=a.shape, dtype=kinds[n]) for n, a in inputs.items()}
    program = mil.Program()
    with Function(places, opset_version=wanted) as function:
        found = build(**function.inputs)
        function.set_outputs(list(found) if isinstance(found, list | tuple) else [found])
        program.add_function("main", function)
    return save_converted(program, path, target=target)


def save_converted(program: Any, path: Path, *, target: str = "iOS16", **options: Any) -> Path:
    """Convert without loading, and save."""
    import coremltools as ct

    defaults = {"pass_pipeline": ct.PassPipeline.EMPTY, "compute_precision": ct.precision.FLOAT32}
    with contextlib.redirect_stderr(io.StringIO()):
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, target),
            skip_model_load=True,
            **{**defaults, **options},
        )
    model.save(str(path))
    return path


def snr_db(found: Any, wanted: Any) -> float:
    """Return signal over error in decibels of power."""
    wanted, error = np.asarray(wanted, np.float64), np.asarray(found, np.float64) - wanted
    return float(10 * np.log10((wanted**2).mean() / max((error**2).mean(), 1e-30)))


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """The helpers above."""
    return SimpleNamespace(save_program=save_program, save_converted=save_converted, snr_db=snr_db)
