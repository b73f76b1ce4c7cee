"""The manifest's JSON Schema is read by apps in other languages: it changes only on purpose."""

from __future__ import annotations

import json
from pathlib import Path

import flashbulb.export
from flashbulb.export.bundle import json_schema

SCHEMA = Path(flashbulb.export.__file__).parent / "schema" / "manifest.v1.json"


def test_schema_is_the_golden_one(update_golden: bool) -> None:
    if update_golden:
        SCHEMA.write_bytes(json_schema())
    assert json_schema() == SCHEMA.read_bytes(), "run pytest --update-golden if this change is meant"


def test_schema_describes_every_field() -> None:
    definitions = json.loads(SCHEMA.read_bytes())["$defs"]
    assert {"Manifest", "Artifact", "FileRecord", "Gate", "Golden", "Sampling", "OneStep"} <= set(definitions)
    assert all("description" in d for d in definitions.values())
