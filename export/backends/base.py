"""What every backend shares: the shape of the class, and the record of an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from flashbulb.distill.errors import MissingExtra
from flashbulb.export.artifact import Artifact, BackendName, digest, records

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flashbulb.compress.encoding import EncodedTensor
    from flashbulb.export.graph import Graph
    from flashbulb.export.rewrites import Rewrite


class BackendError(RuntimeError):
    """A backend wrote something that fails its own checks."""


class Backend(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One way to lower graphs; a subclass is one file and one line in `AnyBackend`."""

    name: ClassVar[BackendName]
    """Name in the manifest."""
    together: ClassVar[bool] = False
    """Whether all graphs go into one file, rather than a file each."""

    generator: bool = True
    """Also export the fused generator."""
    allow_dequantized: bool = False
    """Store floats where this backend has no form for an encoding, instead of raising."""

    def rewrite(self) -> Rewrite:
        """Return the forms that this backend wants."""
        raise NotImplementedError

    def check_installed(self) -> None:
        """Raise `MissingExtra` where a package is missing."""
        raise NotImplementedError

    def lower(
        self, graphs: Sequence[Graph], encoded: dict[str, EncodedTensor], root: Path
    ) -> tuple[Artifact, ...]:
        """Write graphs under a bundle's root and return one artifact per component and format."""
        raise NotImplementedError


def need(extra: str, *modules: str) -> None:
    """Raise `MissingExtra` unless all modules can be found."""
    from importlib.util import find_spec

    missing = [m for m in modules if find_spec(m) is None]
    if missing:
        raise MissingExtra(f"this export needs {', '.join(missing)}", extra)


def artifact(path: Path, root: Path, graph: Graph, **fields: Any) -> Artifact:
    """Record what was written for a graph."""
    files = records(path, root)
    return Artifact(
        component=graph.component,
        path=path.relative_to(root).as_posix(),
        inputs=graph.inputs,
        outputs=graph.outputs,
        files=files,
        sha256=digest(files),
        size_bytes=sum(f.size_bytes for f in files),
        **fields,
    )
