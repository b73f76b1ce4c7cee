"""Write the sound Core ML programs that `fuzz_mil.py` breaks, with coremltools, into ``corpus/``.

python tests/hostile/sound_packages.py
"""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_mil import CORPUS, MARK, RECORD
from messages import fields, flat, tree


def later(mb: Any, x: Any, memory: Any) -> Any:
    """Build on iOS 18: a state, a palette, blocks with scales, attention, a branch."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (8, 4, 3, 3)).astype(np.uint8)
    from coremltools.converters.mil.mil import types

    four = codes.astype(types.nptype_from_builtin(types.uint4))
    palette = rng.standard_normal((1, 1, 1, 1, 16, 1)).astype(np.float16)
    weight = mb.constexpr_lut_to_dense(indices=four, lut=palette)
    held = mb.read_state(input=memory)
    y = mb.conv(x=mb.add(x=x, y=held), weight=weight, pad_type="same", strides=[1, 1])
    mb.coreml_update_state(state=memory, value=mb.mul(x=x, y=np.float16(0.5)))
    y = mb.reshape(x=mb.silu(x=y), shape=[1, 8, 36])
    data = rng.integers(-127, 127, (12, 36)).astype(np.int8)
    scale = rng.uniform(0.01, 0.02, (12, 3)).astype(np.float16)
    y = mb.linear(x=y, weight=mb.constexpr_blockwise_shift_scale(data=data, scale=scale))
    q = mb.reshape(x=y, shape=[1, 2, 4, 12])
    y = mb.scaled_dot_product_attention(query=q, key=q, value=q)
    y = mb.layer_norm(x=y, axes=[-1], epsilon=np.float16(1e-3))
    first, second = mb.split(x=y, num_splits=2, axis=1)
    y = mb.concat(values=[mb.gelu(x=first), mb.softmax(x=second, axis=-1)], axis=-1)
    y = mb.gather(x=y, indices=np.array([3, 0, 1], np.int32), axis=2)
    y = mb.slice_by_index(x=y, begin=[0, 0, 0, 2], end=[1, 1, 3, 20], stride=[1, 1, 1, 2])
    low = mb.less(x=mb.reduce_mean(x=y, axes=[0, 1, 2, 3]), y=np.float16(0.0))
    return mb.cond(pred=low, _true_fn=lambda: mb.relu(x=y), _false_fn=lambda: mb.tanh(x=y))


def earlier(mb: Any, x: Any) -> Any:
    """Build on iOS 16: packed palettes, zero points, masks; pooling, resizing, padding."""
    rng = np.random.default_rng(1)
    packed = rng.integers(0, 255, 54).astype(np.uint8)
    weight = mb.constexpr_lut_to_dense(
        indices=packed, lut=rng.standard_normal(4).astype(np.float16), shape=np.array([6, 4, 3, 3], np.uint32)
    )
    y = mb.conv(x=x, weight=weight, bias=rng.standard_normal(6).astype(np.float16), pad=[1, 1, 1, 1],
                pad_type="custom")  # fmt: skip
    gamma = rng.uniform(0.5, 1.5, 6).astype(np.float16)
    y = mb.batch_norm(x=y, mean=gamma, variance=gamma, gamma=gamma, beta=gamma, epsilon=np.float16(1e-3))
    y = mb.avg_pool(x=y, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid")
    y = mb.upsample_nearest_neighbor(x=y, scale_factor_height=2, scale_factor_width=2)
    y = mb.pad(x=y, pad=[0, 1, 1, 0], mode="reflect")
    y = mb.reshape(x=mb.transpose(x=y, perm=[0, 2, 3, 1]), shape=[49, 6])
    mask = np.packbits(rng.random(48) > 0.5, bitorder="little")
    kept = int(np.unpackbits(mask).sum())
    sparse = mb.constexpr_sparse_to_dense(
        nonzero_data=rng.standard_normal(kept).astype(np.float16),
        mask=mask,
        shape=np.array([8, 6], np.uint32),
    )
    y = mb.linear(x=y, weight=sparse)
    codes = rng.integers(0, 255, (8, 5)).astype(np.uint8)
    zeros, scales = np.full(5, 128, np.uint8), rng.uniform(0.01, 0.02, 5).astype(np.float16)
    table = mb.constexpr_affine_dequantize(
        quantized_data=codes, zero_point=zeros, scale=scales, axis=np.int32(1)
    )
    y = mb.matmul(x=y, y=table)
    y = mb.topk(x=y, k=3, axis=-1)[0]
    return mb.tile(x=y, reps=[1, 2])


def converted(build: Any, target: str, state: bool) -> tuple[bytes, bytes]:
    """Convert one program and return its model file and its weights."""
    import coremltools as ct
    from coremltools.converters.mil import mil
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools spells it
    from coremltools.converters.mil.mil import Function, types

    shape, wanted = (1, 4, 6, 6), getattr(ct.target, target)
    places = {"x": mb.placeholder(shape=shape, dtype=types.fp16)}
    if state:
        places["memory"] = mb.state_tensor_placeholder(shape=shape, dtype=types.fp16)
    program = mil.Program()
    with Function(places, opset_version=wanted) as function:
        function.set_outputs([build(mb, **function.inputs)])
        program.add_function("main", function)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=wanted,
            skip_model_load=True,
            pass_pipeline=ct.PassPipeline.EMPTY,
            compute_precision=ct.precision.FLOAT32,
        )
        path = Path(folder) / "m.mlpackage"
        model.save(str(path))
        inner = path / "Data/com.apple.CoreML"
        return (inner / "model.mlmodel").read_bytes(), (inner / "weights/weight.bin").read_bytes()


def moved(model: bytes, weights: bytes, by: int) -> tuple[bytes, bytes]:
    """Move a weight file and every mention of a place in it, so that it can stand behind another."""
    message, data = tree(model) or [], bytearray(weights)
    for named, place in itertools.pairwise(fields(message)):
        if (named[0], named[2]) == (1, b"@model_path/weights/weight.bin"):
            place[2] += by
    for at in range(0, len(data) - RECORD.size, 64):
        if data[at : at + 4] == MARK:
            parts = list(RECORD.unpack_from(data, at))
            parts[3] += by
            RECORD.pack_into(data, at, *parts)
    return flat(message), bytes(data)


KINDS = {
    "floats": ("fp16", "fp32"),
    "integers": ("int8", "uint8", "int16", "uint16", "int32", "uint32"),
    "bits": ("uint1", "uint2", "uint3", "uint4", "uint6", "int4"),
}
"""Weight files by name, with the element types that each holds beside those of the programs."""


def with_records(weights: bytes, kinds: tuple[str, ...]) -> bytes:
    """Append records of some element types to a weight file, as aligned as a writer makes them."""
    from flashbulb.runtimes.engines.mil.blob import SENTINEL, STORED
    from flashbulb.runtimes.engines.mil.dtypes import BY_NAME

    numbers, rng = {name: number for number, name in STORED.items()}, np.random.default_rng(2)
    weights += bytes(-len(weights) % 64)
    for kind in kinds:
        raw = rng.integers(0, 256, 3 * 5 * max(8, BY_NAME[kind].bits) // 8, dtype=np.uint8).tobytes()
        head = RECORD.pack(SENTINEL, numbers[kind], len(raw), len(weights) + 64, 0)
        weights += head + bytes(64 - len(head)) + raw + bytes(-len(raw) % 64)
    return weights


def write_weights(weights: bytes) -> None:
    """Write the weight file that the programs share, alone and with other element types behind it."""
    folder = CORPUS / "mil-weights"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ok-sound.bin").write_bytes(weights)
    for name, kinds in KINDS.items():
        (folder / f"ok-{name}.bin").write_bytes(with_records(weights, kinds))


def main() -> None:
    """Write both programs and the weight file that they share."""
    model, weights = converted(later, "iOS18", True)
    weights += bytes(-len(weights) % 64)
    second, more = moved(*converted(earlier, "iOS16", False), len(weights))
    for name, data in (("ok-later.mlmodel", model), ("ok-earlier.mlmodel", second)):
        (CORPUS / "mil-model").mkdir(parents=True, exist_ok=True)
        (CORPUS / "mil-model" / name).write_bytes(data)
    write_weights(weights + more)


if __name__ == "__main__":
    main()
