"""Store weights of a Core ML program as the codes that a checkpoint was compressed with."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from flashbulb.export.encodings import NotExpressible

if TYPE_CHECKING:
    from flashbulb.compress.encoding import EncodedTensor


def compress(model: Any, used: dict[str, EncodedTensor]) -> Any:
    """Replace constants of a converted model by constexpr operators carrying the given codes.

    Weights are found by their values: conversion renames, transposes and rounds them, and all of a table's
    values and scales are exact in fp16, so the rounded product can be recomputed here.

    Raises:
        NotExpressible: if an encoded weight is in the program in no recognisable form.
    """
    import coremltools as ct

    coded = {n: e for n, e in used.items() if e.encoding.coded}
    if not coded:
        return model
    program = model._mil_program
    missing = dict(coded)
    for function in program.functions.values():
        _replace(function, _index(coded), missing)
    if missing:
        raise NotExpressible(
            f"wanted the encoded weight {next(iter(missing))} in the Core ML program, found it in no "
            f"known form ({len(missing)} of {len(coded)} missing); "
            "leave it out of the compression plan for this backend"
        )
    return _again(ct, model, program)


def _key(values: Any) -> tuple[tuple[int, ...], str]:
    array = np.ascontiguousarray(values)
    return array.shape, hashlib.sha256(array.tobytes()).hexdigest()


def _index(coded: dict[str, EncodedTensor]) -> dict[Any, tuple[str, EncodedTensor, tuple[int, ...]]]:
    """Index each weight by its values in both float types, plain and transposed."""
    found = {}
    for name, encoded in coded.items():
        values = encoded.decode()
        orders = [tuple(range(values.ndim))] + ([(1, 0)] if values.ndim == 2 else [])
        for order in orders:
            for kind in (np.float16, np.float32):
                found[_key(values.transpose(order).astype(kind))] = (name, encoded, order)
    return found


def _replace(function: Any, index: dict[Any, Any], missing: dict[str, EncodedTensor]) -> None:
    for op in list(function.operations):
        if op.op_type != "const" or not isinstance(op.outputs[0].val, np.ndarray):
            continue
        values = op.outputs[0].val
        hit = (
            index.get(_key(values)) if values.ndim >= 2 and values.dtype in (np.float16, np.float32) else None
        )
        if hit is not None:
            name, encoded, order = hit
            _swap(function, op, encoded, order)
            missing.pop(name, None)


def _swap(function: Any, op: Any, encoded: EncodedTensor, order: tuple[int, ...]) -> None:
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools spells it

    old, codes = op.outputs[0], np.ascontiguousarray(encoded.codes.transpose(order))
    kind = old.val.dtype
    with function, mb.scope(*_scopes(op)):
        if encoded.lut is not None:
            new = mb.constexpr_lut_to_dense(
                **_palette(codes, encoded.lut.astype(kind), encoded.encoding.bits, function.opset_version),
                before_op=op,
                name=op.name + "_palettized",
            )
        else:
            axis = order.index(0)
            scale = np.asarray(encoded.scale, dtype=kind)
            new = mb.constexpr_affine_dequantize(
                quantized_data=codes.astype(np.int8),
                zero_point=np.int8(0),
                scale=scale,
                axis=np.int32(axis),
                before_op=op,
                name=op.name + "_quantized",
            )
    function.replace_uses_of_var_after_op(
        anchor_op=op, old_var=old, new_var=new, no_check_var_types=True, force_replace=True
    )
    function.remove_ops([op])


def _palette(codes: Any, lut: Any, bits: int, opset: Any) -> dict[str, Any]:
    """Return codes and table as an opset reads them: packed, or since iOS 18 in the weight's shape."""
    import coremltools as ct
    from coremltools.converters.mil.mil.types import string_to_nptype

    if opset < ct.target.iOS18:
        return {"indices": pack(codes, bits), "lut": lut, "shape": np.array(codes.shape, dtype=np.uint32)}
    whole = lut.reshape(*(1,) * codes.ndim, -1, 1)  # one table of numbers for all blocks
    return {"indices": codes.astype(string_to_nptype(f"uint{bits}")), "lut": whole}


def _scopes(op: Any) -> list[Any]:
    """Let a new operator say that it comes from where the old one did."""
    from coremltools.converters.mil.mil.scope import ScopeInfo, ScopeSource

    kept = {k: v for k, v in op.scopes.items() if k != ScopeSource.COREMLTOOLS_GRAPH_PASS}
    return [ScopeInfo(source=source, data=list(data)) for source, data in kept.items()]


def pack(codes: Any, bits: int) -> Any:
    """Pack codes as iOS 16's table lookup reads them: bits wide, least significant bit first."""
    flat = np.ascontiguousarray(codes, dtype=np.uint8).reshape(-1, 1)
    return np.packbits(np.unpackbits(flat, axis=1, count=bits, bitorder="little"), bitorder="little")


def _again(ct: Any, model: Any, program: Any) -> Any:
    """Serialise a changed program without any further graph pass."""
    return ct.convert(
        program,
        convert_to="mlprogram",
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
        minimum_deployment_target=ct.target(model.get_spec().specificationVersion),
        compute_precision=ct.precision.FLOAT32,
    )
