"""Look for trouble in a bundle's programs before a phone is touched: static, and nothing is run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle, read_bundle, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Severity = Literal["error", "warning", "info"]
FP16_TYPE = 10
"""Number of fp16 in Core ML's `DataType`."""
LIMIT_BYTES = 2**31 - 1
COVERAGE_WARNING = 0.95


class DoctorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to examine."""

    bundle: str
    """Folder of the bundle."""
    max_bytes: int | None = None
    """Largest artifact that is still fine, if there is a limit."""


class Finding(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One thing that was found in one artifact."""

    severity: Severity
    """`error` breaks on a device, `warning` costs speed or accuracy, `info` is good to know."""
    artifact: str
    """Path of the artifact in the bundle."""
    component: str
    """What it computes."""
    what: str
    """The finding and, where there is one, the cure."""


class Diagnosis(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All findings of one bundle."""

    bundle: str
    """Folder that was examined."""
    findings: tuple[Finding, ...]
    """Findings in the order of the artifacts."""

    @property
    def passed(self) -> bool:
        """Tell whether nothing is an error."""
        return all(f.severity != "error" for f in self.findings)


def run(config: DoctorConfig) -> Diagnosis:
    """Verify a bundle, then examine each of its artifacts."""
    bundle = read_bundle(config.bundle)
    verify(bundle)
    found = [f for a in bundle.manifest.artifacts for f in examine(bundle, a, config.max_bytes)]
    return Diagnosis(bundle=str(bundle.root), findings=tuple(found))


def examine(bundle: Bundle, artifact: Artifact, max_bytes: int | None = None) -> Iterator[Finding]:
    """Yield the findings of one artifact."""
    messages = [*_size(artifact, max_bytes), *look(bundle.path(artifact), artifact)]
    for severity, what in messages:
        yield Finding(severity=severity, artifact=artifact.path, component=artifact.component, what=what)


def look(path: Path, artifact: Artifact) -> Iterator[tuple[Severity, str]]:
    """Yield what is to be said of a program; one that cannot be read is an error."""
    looks: dict[str, Any] = {"onnx": _onnx, "ort": _ort, "mlpackage": _mlpackage, "pte": _pte}
    try:
        yield from looks[artifact.format](path, artifact)
    except (OSError, ValueError) as error:
        yield "error", f"cannot be read ({str(error)[:200]}): export it again"


def _parse(parse: Callable[[], Any]) -> Any:
    """Parse a protobuf; its error becomes a `ValueError`, so that other formats need no such library."""
    from google.protobuf.message import DecodeError

    try:
        return parse()
    except DecodeError as error:
        raise ValueError(str(error)) from error


def _size(artifact: Artifact, max_bytes: int | None) -> Iterator[tuple[Severity, str]]:
    yield "info", f"{artifact.size_bytes} bytes in {len(artifact.files)} files"
    if any(f.size_bytes == 0 for f in artifact.files):
        yield "error", "holds an empty file: the writer failed; export it again"
    if max_bytes is not None and artifact.size_bytes > max_bytes:
        yield "error", f"larger than {max_bytes} bytes; compress the checkpoint further"


def _onnx(path: Path, artifact: Artifact) -> Iterator[tuple[Severity, str]]:
    import onnx

    model = _parse(lambda: onnx.load(path, load_external_data=False))
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    yield "info", f"opset {opset}, {len(model.graph.node)} nodes"
    foreign = sorted({n.domain for n in model.graph.node} - {"", "ai.onnx"})
    if foreign:
        yield "error", f"operators of {foreign}: plain runtimes lack them; export without fusing"
    yield from _onnx_names(model)
    yield from _onnx_shapes(model, artifact)
    if any(t.data_location == 1 for t in model.graph.initializer):
        yield "warning", "external data: .ort conversion and some apps want one file; compress the weights"


def _onnx_names(model: Any) -> Iterator[tuple[Severity, str]]:
    """Look for what breaks converters and what tells about the exporting machine."""
    twice = [n for n, c in Counter(node.name for node in model.graph.node if node.name).items() if c > 1]
    if twice:
        yield "error", f"nodes share the names {twice[:3]}: optimisers drop one of them"
    shared = Counter(n.input[2] for n in model.graph.node if n.op_type == "Resize" and len(n.input) > 2)
    if any(count > 1 for name, count in shared.items() if name):
        yield (
            "warning",
            "Resize nodes share their scales: fp16 converters write duplicates; give each its own",
        )
    if any(len(node.metadata_props) or node.doc_string for node in model.graph.node):
        yield "warning", "nodes carry traces of the exporting machine: strip metadata_props and doc_string"


def _onnx_shapes(model: Any, artifact: Artifact) -> Iterator[tuple[Severity, str]]:
    """Compare the declared tensors with the manifest."""
    pairs = ((model.graph.input, artifact.inputs), (model.graph.output, artifact.outputs))
    for values, wanted in pairs:
        got = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}
        for spec in wanted:
            if got.get(spec.name) != spec.shape:
                yield "error", f"{spec.name} is {got.get(spec.name)}, the manifest says {spec.shape}"


def _ort(path: Path, artifact: Artifact) -> Iterator[tuple[Severity, str]]:
    with path.open("rb") as stream:
        head = stream.read(8)
    if head[4:8] != b"ORTM":
        yield "error", f"no .ort file: it starts with {head!r}"
    if artifact.size_bytes > LIMIT_BYTES:
        yield "error", "over 2 GB, which flat buffers cannot address; ship .onnx"
    yield "info", "the WebGPU provider does not open .ort: give the web the .onnx"


def _pte(path: Path, artifact: Artifact) -> Iterator[tuple[Severity, str]]:
    with path.open("rb") as stream:
        head = stream.read(8)
    if not head[4:8].startswith(b"ET"):
        yield "error", f"no ExecuTorch program: it starts with {head!r}"
    found = artifact.delegation
    if found is None:
        yield "warning", "no record of delegation: portable operators are about 30 times slower"
        return
    yield (
        "warning" if found.coverage() < COVERAGE_WARNING or found.delegates != 1 else "info",
        f"{found.delegates} delegates take {found.coverage():.1%} of the operators, outside: "
        f"{found.portable}",
    )


def _mlpackage(path: Path, artifact: Artifact) -> Iterator[tuple[Severity, str]]:
    from coremltools.proto import Model_pb2

    files = list((path / "Data").rglob("*.mlmodel"))
    if len(files) != 1 or not (path / "Manifest.json").is_file():
        yield "error", f"wanted Manifest.json and one .mlmodel, got {len(files)}"
        return
    model = _parse(lambda: Model_pb2.Model.FromString(files[0].read_bytes()))
    functions = model.mlProgram.functions
    ops = [o for f in functions.values() for b in f.block_specializations.values() for o in b.operations]
    yield (
        "info",
        f"specification {model.specificationVersion}, {sum(o.type != 'const' for o in ops)} operators",
    )
    declared = {f.name for f in (*model.description.input, *model.description.output)}
    for spec in (*artifact.inputs, *artifact.outputs):
        if spec.name not in declared:
            yield "error", f"{spec.name} of the manifest is not declared; convert again with names"
    if artifact.precision == "float16":
        yield from _fp16(ops)


def _fp16(ops: list[Any]) -> Iterator[tuple[Severity, str]]:
    """Point at operators whose fp16 result overflows where fp32 did not."""
    kinds = {o.outputs[0].name: o.type for o in ops if o.outputs}
    squares = [o for o in ops if o.type == "square" or _is_square(o)]
    open_ = [o.outputs[0].name for o in squares if not _divided(o, kinds)]
    if open_:
        yield (
            "warning",
            f"{len(open_)} squares of unscaled values ({open_[0]}): fp16 overflows from 256 on; divide first",
        )
    frequencies = [o.outputs[0].name for o in ops if o.type in ("sin", "cos")]
    if frequencies:
        yield "warning", f"{frequencies[0]} takes fp16 angles (44 dB): fold the embedding of a fixed timestep"
    wide = [o.outputs[0].name for o in ops if _infinite(o)]
    if wide:
        yield "error", f"constants {wide[:3]} are infinite in fp16; use a finite mask such as -1e4"


def _inputs(op: Any) -> dict[str, list[str]]:
    return {name: [a.name for a in argument.arguments if a.name] for name, argument in op.inputs.items()}


def _is_square(op: Any) -> bool:
    given = _inputs(op)
    return op.type == "mul" and bool(given.get("x")) and given.get("x") == given.get("y")


def _divided(op: Any, kinds: dict[str, str]) -> bool:
    """Tell whether what is squared comes out of a division, as in the guarded normalisation."""
    return all(kinds.get(name) == "real_div" for name in _inputs(op).get("x", []))


def _infinite(op: Any) -> bool:
    """Tell whether an immediate fp16 constant, stored as raw bytes, holds an infinity."""
    import numpy as np

    if op.type != "const":
        return False
    data = op.attributes["val"].immediateValue.tensor.bytes.values
    kind = op.attributes["val"].type.tensorType.dataType
    return kind == FP16_TYPE and bool(np.isinf(np.frombuffer(data, dtype="<f2")).any())
