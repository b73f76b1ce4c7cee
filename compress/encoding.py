"""How one weight is stored: the `Encoding` record, the plan over all layers, the file with codes and tables.

A compressed checkpoint stays a diffusers folder whose safetensors hold the *decoded* values, so PyTorch
computes with exactly what an artifact decodes. Beside it lie ``compress.json`` (`CompressionPlan`) and
``encodings.safetensors``, which holds for every layer key

    ``<key>#codes``   palettize: uint8, the codes packed ``bits`` wide, little-endian bit order, row-major;
                      int8_weight_only: int8 with the shape of the weight
    ``<key>#lut``     palettize: float32 [2**bits], ascending, each value exact in float16
    ``<key>#scale``   int8_weight_only: float32 [shape[axis]], positive, each value exact in float16

A layer key is ``<component>/<state_dict name>``, for instance ``unet/conv_out.weight`` or
``vae_decoder/decoder.conv_in.weight``. Layers without an entry are stored as floats. No torch in this module.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import numpy as np
import numpy.typing as npt

from flashbulb.distill.checkpoint import CODES_FILE
from flashbulb.distill.components import ComponentName
from flashbulb.distill.typed_json import decode
from flashbulb.distill.untrusted import UntrustedError

PLAN_FILE = "compress.json"
FOLDERS: dict[str, str] = {
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "unet": "unet",
    "vae_decoder": "vae",
}
"""Component name -> diffusers folder that holds its weights."""

Kind = Literal["float16", "float32", "palettize", "int8_weight_only"]
Bits = Literal[1, 2, 4, 6, 8, 16, 32]
PALETTE_BITS = (1, 2, 4, 6, 8)
FLOAT_BITS = {"float16": 16, "float32": 32}


class EncodingError(ValueError):
    """A plan or an encoded weight that cannot be used; the message says what to do."""


class Encoding(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one weight is stored.

    ==================  =============  ===========  ====  =========================================
    kind                bits           granularity  axis  decoded value
    ==================  =============  ===========  ====  =========================================
    palettize           1, 2, 4, 6, 8  per_tensor   None  ``lut[codes]``
    int8_weight_only    8              per_channel  0     ``codes * scale`` along ``axis``
    float16, float32    16, 32         per_tensor   None  the float itself; no codes are stored
    ==================  =============  ===========  ====  =========================================
    """

    kind: Kind
    bits: Bits
    granularity: Literal["per_tensor", "per_channel"]
    axis: int | None = None
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        problem = _shape_problem(self.shape) or self._kind_problem()
        if problem:
            raise EncodingError(f"{self.kind} encoding of shape {self.shape}: {problem}")

    def _kind_problem(self) -> str | None:
        """Return what contradicts the table above."""
        per_channel = self.kind == "int8_weight_only"
        wanted = PALETTE_BITS if self.kind == "palettize" else (FLOAT_BITS.get(self.kind, 8),)
        if self.bits not in wanted:
            return f"wanted bits in {wanted}, got {self.bits}"
        if (self.granularity == "per_channel") != per_channel:
            return (
                f"wanted granularity {'per_channel' if per_channel else 'per_tensor'}, got {self.granularity}"
            )
        if self.axis != (0 if per_channel else None):
            return f"wanted axis {0 if per_channel else None}, got {self.axis}"
        return None

    @property
    def coded(self) -> bool:
        """Tell whether codes are stored for this weight (the kind is not a float)."""
        return self.kind not in FLOAT_BITS

    @property
    def size_bytes(self) -> int:
        """Bytes of the stored weight: codes plus its table or scales, these counted as float16."""
        count = math.prod(self.shape)
        tables = {"palettize": 2**self.bits, "int8_weight_only": self.shape[0]}.get(self.kind, 0)
        return (count * self.bits + 7) // 8 + 2 * tables


class CompressionPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of ``compress.json``: layer key -> `Encoding`, and the hash of the file with the codes."""

    schema_version: Literal[1] = 1
    layers: dict[str, Encoding] = {}
    tensors_sha256: str | None = None

    def __post_init__(self) -> None:
        for key in self.layers:
            split_key(key)

    def of(self, component: ComponentName) -> dict[str, Encoding]:
        """Return state_dict name -> `Encoding` for one component."""
        pairs = ((split_key(key), encoding) for key, encoding in self.layers.items())
        return {name: encoding for (owner, name), encoding in pairs if owner == component}

    @property
    def coded(self) -> bool:
        """Tell whether any layer has codes."""
        return any(encoding.coded for encoding in self.layers.values())


class EncodedTensor(msgspec.Struct, frozen=True, kw_only=True):
    """An `Encoding` with its numbers; ``codes`` are unpacked and have the shape of the weight."""

    encoding: Encoding
    codes: npt.NDArray[Any]
    lut: npt.NDArray[np.float32] | None = None
    scale: npt.NDArray[np.float32] | None = None

    def decode(self) -> npt.NDArray[np.float32]:
        """Return the weight that every artifact and the PyTorch reference compute with."""
        if self.lut is not None:
            return cast(npt.NDArray[np.float32], self.lut[self.codes])
        if self.scale is None:
            raise EncodingError(f"a {self.encoding.kind} weight has no codes to decode")
        along = (-1, *(1,) * (self.codes.ndim - 1))
        return self.codes.astype(np.float32) * self.scale.reshape(along)


def layer_key(component: str, name: str) -> str:
    """Return the key of a weight in a plan."""
    return f"{component}/{name}"


def split_key(key: str) -> tuple[str, str]:
    """Return (component, state_dict name) of a layer key.

    Raises:
        EncodingError: for a key without a known component.
    """
    component, _, name = key.partition("/")
    if component not in FOLDERS or not name:
        raise EncodingError(f"wanted a layer key <component>/<weight> with {list(FOLDERS)}, got {key!r}")
    return component, name


def write_plan(
    folder: Path, encoded: dict[str, EncodedTensor], floats: dict[str, Encoding] | None = None
) -> None:
    """Write ``compress.json`` and ``encodings.safetensors`` into a checkpoint folder.

    Args:
        folder: the diffusers folder whose weights are already the decoded ones.
        encoded: layer key -> weight with codes.
        floats: layer key -> encoding of layers that are to stay a given float type.
    """
    from safetensors.numpy import save

    tensors = {name: array for key in sorted(encoded) for name, array in _stored(key, encoded[key]).items()}
    blob = save(tensors)
    layers = {key: value.encoding for key, value in encoded.items()} | (floats or {})
    plan = CompressionPlan(
        layers=dict(sorted(layers.items())), tensors_sha256=hashlib.sha256(blob).hexdigest()
    )
    (folder / CODES_FILE).write_bytes(blob)
    (folder / PLAN_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(plan)) + b"\n")


def read_plan(folder: Path) -> CompressionPlan:
    """Read ``compress.json``; a folder without one gives an empty plan.

    Raises:
        EncodingError: when the file is not a plan of this version.
    """
    file = folder / PLAN_FILE
    if not file.is_file():
        return CompressionPlan()
    try:
        return decode(file.read_bytes(), CompressionPlan)
    except UntrustedError as error:
        raise EncodingError(
            f"{PLAN_FILE} is not a compression plan: {error}. Compress the parent again"
        ) from error


def read_encoded(folder: Path) -> dict[str, EncodedTensor]:
    """Read every coded weight of a checkpoint folder, unpacked; empty when nothing is encoded.

    Raises:
        EncodingError: when the codes are missing, changed, or do not fit the plan.
    """
    plan = read_plan(folder)
    if not plan.coded:
        return {}
    tensors = _read_tensors(folder / CODES_FILE, plan.tensors_sha256)
    coded = {key: encoding for key, encoding in plan.layers.items() if encoding.coded}
    return {key: _restore(key, encoding, tensors) for key, encoding in coded.items()}


def check_current(folder: Path) -> None:
    """Compare every coded weight with the folder's safetensors: a stage may have changed them afterwards.

    Raises:
        EncodingError: when the plan is stale; compressing again cures it.
    """
    weights: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for key, encoded in read_encoded(folder).items():
        component, name = split_key(key)
        if component not in weights:
            weights[component] = _load_weights(folder / FOLDERS[component])
        held = weights[component].get(name)
        if held is None or held.shape != encoded.codes.shape or not np.array_equal(held, encoded.decode()):
            state = "missing" if held is None else "not what its codes decode to"
            raise EncodingError(
                f"{PLAN_FILE} is stale: {key} is {state}. "
                "The weights changed after compression: run `flashbulb compress` again, or delete "
                f"{PLAN_FILE} and {CODES_FILE} to export floats"
            )


def _load_weights(folder: Path) -> dict[str, npt.NDArray[Any]]:
    from safetensors.numpy import load_file

    return {
        name: array
        for file in sorted(folder.glob("*.safetensors"))
        for name, array in load_file(file).items()
    }


def _stored(key: str, value: EncodedTensor) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors that are written for one weight."""
    if value.lut is not None:
        return {f"{key}#codes": pack(value.codes, value.encoding.bits), f"{key}#lut": value.lut}
    if value.scale is None:
        raise EncodingError(f"{key}: a {value.encoding.kind} weight belongs into `floats`, it has no codes")
    return {f"{key}#codes": np.ascontiguousarray(value.codes), f"{key}#scale": value.scale}


def pack(codes: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Pack codes ``bits`` wide, row-major, little-endian bit order: [n] -> uint8 [ceil(n * bits / 8)]."""
    flat = np.ascontiguousarray(codes, dtype=np.uint8).reshape(-1, 1)
    return np.packbits(np.unpackbits(flat, axis=1, count=bits, bitorder="little"), bitorder="little")


def unpack(packed: npt.NDArray[np.uint8], bits: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Undo `pack`."""
    flat = np.unpackbits(packed, count=math.prod(shape) * bits, bitorder="little").reshape(-1, bits)
    return np.packbits(flat, axis=1, bitorder="little").reshape(shape)


def _read_tensors(file: Path, sha256: str | None) -> dict[str, npt.NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if not file.is_file():
        raise EncodingError(f"{PLAN_FILE} names codes, but {file.name} is missing. Compress the parent again")
    blob = file.read_bytes()
    if hashlib.sha256(blob).hexdigest() != sha256:
        raise EncodingError(f"{file.name} is not the file that {PLAN_FILE} was written with. Compress again")
    try:
        return cast(dict[str, npt.NDArray[Any]], load(blob))
    except SafetensorError as error:
        raise EncodingError(f"{file.name} is not a safetensors file: {error}") from error


def _restore(key: str, encoding: Encoding, tensors: dict[str, npt.NDArray[Any]]) -> EncodedTensor:
    if encoding.kind == "palettize":
        packed = _take(
            tensors, f"{key}#codes", np.uint8, ((math.prod(encoding.shape) * encoding.bits + 7) // 8,)
        )
        lut = _take(tensors, f"{key}#lut", np.float32, (2**encoding.bits,))
        return EncodedTensor(encoding=encoding, codes=unpack(packed, encoding.bits, encoding.shape), lut=lut)
    codes = _take(tensors, f"{key}#codes", np.int8, encoding.shape)
    scale = _take(tensors, f"{key}#scale", np.float32, encoding.shape[:1])
    if not (scale > 0).all():
        raise EncodingError(f"{key}#scale: wanted positive scales, got {float(scale.min())}")
    return EncodedTensor(encoding=encoding, codes=codes, scale=scale)


def _take(
    tensors: dict[str, npt.NDArray[Any]], name: str, dtype: type[np.generic], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    array = tensors.get(name)
    if array is None or array.dtype != dtype or array.shape != shape:
        got = "nothing" if array is None else f"{array.dtype} {array.shape}"
        raise EncodingError(f"{CODES_FILE}: wanted {name} as {np.dtype(dtype)} {shape}, got {got}")
    if array.dtype == np.float32 and not np.isfinite(array).all():
        raise EncodingError(f"{CODES_FILE}: {name} holds non-finite numbers")
    return array


def _shape_problem(shape: tuple[int, ...]) -> str | None:
    fine = 2 <= len(shape) <= 5 and all(size > 0 for size in shape) and math.prod(shape) < 2**33
    return None if fine else "wanted 2 to 5 positive sizes"
