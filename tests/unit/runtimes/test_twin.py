"""Single numbers of a Core ML program are those that operators of PyTorch have, or plain ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flashbulb.runtimes.engines.mil.listing import read_package_listing
from flashbulb.runtimes.twin import Numbers


def numbers(*scalars: float) -> Numbers:
    sources: Any = SimpleNamespace(named=lambda _: [], of=lambda _: [], wanted={})
    return Numbers(sources, "unet", frozenset(scalars))


@pytest.mark.parametrize(("bounds", "absent"), [({"max": 0.7}, -np.inf), ({"min": 0.7}, np.inf)])
def test_the_bound_that_a_clamp_lacks_is_no_strange_number(
    tmp_path: Path, bounds: dict[str, float], absent: float
) -> None:
    ct, torch = pytest.importorskip("coremltools"), pytest.importorskip("torch")

    class Clamped(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return x.clamp(**bounds)

    traced = torch.jit.trace(Clamped(), torch.zeros(1, 4))
    given = [ct.TensorType(name="x", shape=(1, 4))]
    target = ct.target.iOS17
    ct.convert(traced, inputs=given, minimum_deployment_target=target).save(str(tmp_path / "m.mlpackage"))
    constants = read_package_listing(tmp_path / "m.mlpackage").constants
    values = {name: np.asarray(constant.load()) for name, constant in constants.items()}
    assert absent in [float(v.flat[0]) for v in values.values() if v.size == 1]

    known, unknown = numbers(0.7), numbers()
    for name, value in values.items():
        known.exact(name, value)
        unknown.exact(name, value)
    assert known.strange == []
    assert [text.rpartition(" = ")[2] for text in unknown.strange] == ["0.7002"]


def test_a_number_that_operators_have_is_exact_again() -> None:
    asked = numbers(0.1, 3e-5)
    found = asked.exact("scale", np.full((), 0.1, np.float16))
    assert found is not None and found.dtype == np.float32 and found == np.float32(0.1)
    assert asked.exact("plain", np.ones((), np.float16)) is None
    assert asked.strange == []
