"""The published implementation that the metrics are held against, where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest


@pytest.fixture(scope="session")
def fidelity() -> SimpleNamespace:
    """torch-fidelity, without the torchvision that only its data sets and other networks use."""
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed (pip install --no-deps torch-fidelity)")
    absent = [] if importlib.util.find_spec("torchvision") else ["torchvision", "torchvision.datasets"]
    absent += ["torchvision.transforms", "torchvision.transforms.functional"] if absent else []
    with pytest.MonkeyPatch.context() as patch:
        for name in absent:
            patch.setitem(sys.modules, name, MagicMock())
        parts = ("metric_fid", "metric_prc", "feature_extractor_inceptionv3")
        found = {name: importlib.import_module(f"torch_fidelity.{name}") for name in parts}
    return SimpleNamespace(**found)


@pytest.fixture
def clouds() -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping sets of features, fewer than their width."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((24, 24)) / 4
    a = rng.standard_normal((60, 24)) @ shared
    b = rng.standard_normal((50, 24)) @ shared * 1.2 + 0.3
    return a.astype(np.float32), b.astype(np.float32)
