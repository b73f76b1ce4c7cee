"""ExecuTorch with the XNNPACK delegate, for Android and iOS processors."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec

from flashbulb.export.artifact import Artifact, BackendName, Delegation, RuntimeFloor
from flashbulb.export.backends.base import Backend, BackendError, artifact, need
from flashbulb.export.encodings import count, of_graph, refuse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flashbulb.compress.encoding import EncodedTensor
    from flashbulb.export.graph import Graph
    from flashbulb.export.rewrites import Rewrite

PATH = "executorch/model.pte"
PLATFORMS = {"ios": "17.0", "macos": "12.0"}


class Executorch(Backend, frozen=True, tag="executorch"):
    """ExecuTorch: one `.pte` with a method per component, delegated to XNNPACK, in fp32.

    Weight-only codes have no form here: XNNPACK lowers them without an error and computes wrong values.
    """

    name: ClassVar[BackendName] = "executorch"
    together: ClassVar[bool] = True

    coverage_floor: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.9
    """Least share of operators that the delegate must take in each method."""
    delegates_ceiling: Annotated[int, msgspec.Meta(ge=1)] = 4
    """Most delegated regions of a method; each one more is a hand-over through portable memory."""

    def rewrite(self) -> Rewrite:
        """Use forms that the partitioner takes, so that each method is one delegate."""
        from flashbulb.export.rewrites import Rewrite

        return Rewrite(norms="primitive", broadcast_upsample=True)

    def check_installed(self) -> None:
        """Raise `MissingExtra` where a package is missing."""
        need("executorch", "executorch")

    def lower(
        self, graphs: Sequence[Graph], encoded: dict[str, EncodedTensor], root: Path
    ) -> tuple[Artifact, ...]:
        """Write one program with a method per graph; equal weights are stored once."""
        self.check_installed()
        start = time.perf_counter()
        for graph in graphs:
            refuse("executorch", of_graph(graph, encoded), ("float32",), self.allow_dequantized)
        manager = _lower(graphs)
        coverage = {g.component: delegation(manager, g.component) for g in graphs}
        self._check(coverage)
        path = root / PATH
        _write(manager, path)
        seconds = round(time.perf_counter() - start, 2)
        return tuple(
            artifact(
                path,
                root,
                graph,
                backend=self.name,
                format="pte",
                method=graph.component,
                precision="float32",
                delegation=coverage[graph.component],
                encodings=count({}),
                seconds=seconds,
                floor=RuntimeFloor(runtime="executorch", version="1.5", platforms=PLATFORMS),
            )
            for graph in graphs
        )

    def _check(self, coverage: dict[Any, Delegation]) -> None:
        for method, found in coverage.items():
            if found.coverage() < self.coverage_floor or found.delegates > self.delegates_ceiling:
                raise BackendError(
                    f"wanted at least {self.coverage_floor:.0%} of {method} in at most "
                    f"{self.delegates_ceiling} delegates, got {found.coverage():.1%} in {found.delegates}, "
                    f"outside: {found.portable}; "
                    "rewrite those operators in flashbulb.export.rewrites or lower the floor"
                )


def _lower(graphs: Sequence[Graph]) -> Any:
    """Partition every method for XNNPACK."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    programs = {g.component: g.program() for g in graphs}
    # Without the verifier after each pass: a fifth of the time, and the result is checked by its numbers.
    config = EdgeCompileConfig(_check_ir_validity=False)
    return to_edge_transform_and_lower(programs, partitioner=[XnnpackPartitioner()], compile_config=config)


def _write(manager: Any, path: Path) -> None:
    """Write the program with its delegates in their own segments, so that a phone can map them."""
    from executorch.exir import ExecutorchBackendConfig

    program = manager.to_executorch(config=ExecutorchBackendConfig(extract_delegate_segments=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        program.write_to_file(stream)


def delegation(manager: Any, method: str) -> Delegation:
    """Count what the delegate took of one method."""
    from executorch.devtools.backend_debug import get_delegation_info

    info = get_delegation_info(manager.exported_program(method).graph_module)
    outside = {
        name: int(found.non_delegated)
        for name, found in info.delegation_by_operator.items()
        if found.non_delegated and name != "getitem"
    }
    return Delegation(
        delegate="XnnpackBackend",
        delegates=info.num_delegated_subgraphs,
        delegated_ops=info.num_delegated_nodes,
        portable_ops=sum(outside.values()),
        portable=outside,
    )
