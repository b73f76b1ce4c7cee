"""An `.mlpackage` that can be edited: the program as a message, the weights as bytes."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from mutants.fault import replace
from mutants.ort_view import stored
from mutants.view import Array, Const, Node, Store, View

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
TYPES = {10: "<f2", 11: "<f4", 21: "|i1", 23: "<i4", 31: "|u1", 33: "<u4"}
"""numpy's words for the element types of ML programs."""
PALETTE, STEPS = "constexpr_lut_to_dense", "constexpr_affine_dequantize"


class MlpackageView(View):
    """The block of the main function."""

    def __init__(self, path: Path) -> None:
        from coremltools.proto import Model_pb2

        super().__init__()
        self.path, self.model = path, Model_pb2.Model()
        self.model.ParseFromString((path / MODEL).read_bytes())
        self.data = bytearray((path / WEIGHTS).read_bytes())
        function = self.model.mlProgram.functions["main"]
        self.block = function.block_specializations[function.opset]
        self.inputs = tuple(i.name for i in function.inputs)
        self.immediates: dict[str, Any] = {}
        for op in self.block.operations:
            self._operation(op)

    def _operation(self, op: Any) -> None:
        name = op.outputs[0].name
        if op.type == "const":
            self.immediates[name] = op.attributes["val"]
            store = self.store(op.attributes["val"])
            if store is not None:
                self.consts[name] = Const(name, store, _shape(op.outputs[0].type))
        elif op.type in (PALETTE, STEPS):
            self.consts[name] = self._coded(op)
        else:
            inputs = tuple(
                a.name for k in sorted(op.inputs) for a in op.inputs[k].arguments if self._known(a)
            )
            self.nodes.append(Node(op.type, _ordered(op, inputs), tuple(o.name for o in op.outputs), op))

    def _known(self, argument: Any) -> bool:
        """Tell a value from a text or a flag."""
        name = argument.name
        return bool(name) and (name not in self.immediates or name in self.consts)

    def _coded(self, op: Any) -> Const:
        name, shape = op.outputs[0].name, _shape(op.outputs[0].type)
        stores = {k: self.store(v) for k, v in op.attributes.items()}
        found = {k: v for k, v in stores.items() if v is not None}
        if op.type == STEPS:
            parts = {"scale": found["scale"], "zero_point": found["zero_point"]}
            return Const(name, found["quantized_data"], shape, **parts)
        bits = (len(found["lut"].read()) - 1).bit_length()
        codes = _packed(found["indices"], bits, shape)
        return Const(name, codes, shape, lut=found["lut"], packed=found["indices"])

    def store(self, value: Any) -> Store | None:
        """Return an array that is stored as a value; None for texts and what else is none."""
        kind = TYPES.get(value.type.tensorType.dataType)
        shape = _shape(value.type)
        if kind is None:
            return None
        if value.WhichOneof("value") == "blobFileValue":
            offset = value.blobFileValue.offset
            _, _, count, start = struct.unpack_from("<IIQQ", self.data, offset)
            return stored(self.data, start, count, kind, shape)
        return _immediate(value.immediateValue.tensor, kind, shape)

    def save(self) -> None:
        """Write both files where they changed."""
        found = {MODEL: self.model.SerializeToString(), WEIGHTS: bytes(self.data)}
        for name, data in found.items():
            if data != (self.path / name).read_bytes():
                replace(self.path / name, data)


def _ordered(op: Any, inputs: tuple[str, ...]) -> tuple[str, ...]:
    """Put `x` and `y` first, as other formats have them."""
    first = [a.name for k in ("x", "y") if k in op.inputs for a in op.inputs[k].arguments if a.name]
    return (*first, *(name for name in inputs if name not in first))


def _shape(kind: Any) -> tuple[int, ...]:
    return tuple(d.constant.size for d in kind.tensorType.dimensions)


def _immediate(tensor: Any, kind: str, shape: tuple[int, ...]) -> Store | None:
    field = tensor.WhichOneof("value")
    if field == "bytes":

        def read() -> Array:
            return np.frombuffer(tensor.bytes.values, kind).reshape(shape)

        def write(values: Array) -> None:
            tensor.bytes.values = np.ascontiguousarray(values, kind).tobytes()

        return Store(read, write)
    if field not in ("floats", "ints"):
        return None
    numbers = getattr(tensor, field).values

    def read_numbers() -> Array:
        return np.asarray(list(numbers), kind).reshape(shape)

    def write_numbers(values: Array) -> None:
        numbers[:] = np.asarray(values).reshape(-1).tolist()

    return Store(read_numbers, write_numbers)


def _packed(store: Store, bits: int, shape: tuple[int, ...]) -> Store:
    """Unpack codes of a few bits, least significant first."""
    count = math.prod(shape)

    def read() -> Array:
        flat = np.unpackbits(store.read().reshape(-1), bitorder="little")[: count * bits]
        return np.packbits(flat.reshape(count, bits), axis=1, bitorder="little").reshape(shape)

    def write(values: Array) -> None:
        flat = np.unpackbits(values.astype(np.uint8).reshape(-1, 1), axis=1, count=bits, bitorder="little")
        packed = np.packbits(flat.reshape(-1), bitorder="little")
        held = store.read()
        store.write(np.concatenate([packed, held.reshape(-1)[len(packed) :]]).reshape(held.shape))

    return Store(read, write)
