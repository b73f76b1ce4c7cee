"""A small sound bundle for each test, and a way to change its manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sound_bundle import manifest_of, write_files

from flashbulb.export.bundle import Bundle, read_bundle, write_manifest


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    root = tmp_path / "bundle"
    write_files(root)
    write_manifest(manifest_of(root), root)
    return read_bundle(root)


@pytest.fixture
def edit(bundle: Bundle) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """Change the manifest on disk and return the bundle's folder."""

    def change(apply: Callable[[dict[str, Any]], None]) -> Path:
        path = bundle.root / "manifest.json"
        value = json.loads(path.read_text())
        apply(value)
        path.write_text(json.dumps(value))
        return bundle.root

    return change
