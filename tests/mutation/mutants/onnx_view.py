"""An `.onnx` file that can be edited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mutants.fault import replace
from mutants.view import Array, Const, Node, Store, View


class OnnxView(View):
    """The model as onnx reads it; a weight stored in half precision goes under the name of its user."""

    def __init__(self, path: Path) -> None:
        import onnx

        super().__init__()
        self.path, self.model = path, onnx.load(path)
        graph = self.model.graph
        self.inputs = tuple(i.name for i in graph.input)
        self.tensors = {t.name: t for t in graph.initializer}
        self.alias = {n.output[0]: n.input[0] for n in graph.node if self._decodes(n)}
        for name, tensor in self.tensors.items():
            self._add(name, tensor)
        for user, stored in self.alias.items():
            self.consts[user] = self.consts.pop(stored)
            self.consts[user].name = user
        self.nodes = [
            Node(n.op_type, tuple(n.input), tuple(n.output), n) for n in graph.node if not self._decodes(n)
        ]
        self.join_codes()

    def _decodes(self, node: Any) -> bool:
        return node.op_type == "Cast" and node.input[0] in self.tensors and node.input[0].endswith(".half")

    def _add(self, name: str, tensor: Any) -> None:
        from onnx import numpy_helper

        def read() -> Array:
            return np.asarray(numpy_helper.to_array(tensor))

        def write(values: Array) -> None:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))

        self.consts[name] = Const(name, Store(read, write), tuple(tensor.dims))

    def attributes(self, index: int) -> dict[str, Any]:
        """Return the attributes of an operation."""
        import onnx

        return {a.name: onnx.helper.get_attribute_value(a) for a in self.nodes[index].ref.attribute}

    def set_attribute(self, index: int, name: str, value: Any) -> None:
        """Give an attribute another value."""
        import onnx

        node = self.nodes[index].ref
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    def add_const(self, name: str, values: Array) -> None:
        """Store a new constant."""
        from onnx import numpy_helper

        self.model.graph.initializer.append(numpy_helper.from_array(values, name))

    def redirect(self, old: str, new: str) -> None:
        """Let everything that takes one value take another."""
        for node in self.model.graph.node:
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new

    def save(self) -> None:
        """Write the model."""
        replace(self.path, self.model.SerializeToString())
