"""Folders of tiny pictures, and sessions over them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from flashbulb.apps.vote.folders import open_folders, read_prompts
from flashbulb.apps.vote.ledger import Ledger
from flashbulb.apps.vote.plan import plan
from flashbulb.apps.vote.session import Session

Make = Callable[..., Session]
COLOURS = {"student": (200, 40, 40), "teacher": (40, 200, 40), "lcm": (40, 40, 200)}


def draw_folder(folder: Path, count: int = 4, prompts: Sequence[str] = ()) -> Path:
    """Write pictures 0.png, 1.png, ... of the folder's colour, and their prompts."""
    folder.mkdir(parents=True)
    lines = []
    for i in range(count):
        shade = tuple(min(255, c + i) for c in COLOURS.get(folder.name, (9, 9, 9)))
        Image.new("RGB", (8, 8), shade).save(folder / f"{i}.png")
        text = prompts[i] if prompts else f"prompt {i}"
        lines.append(json.dumps({"file_name": f"{i}.png", "text": text}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def draw() -> Callable[..., Path]:
    return draw_folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [draw_folder(tmp_path / name) for name in ("student", "teacher")]


@pytest.fixture
def make_session(folders: list[Path], tmp_path: Path) -> Make:
    def make(voter: str = "anna", seed: int = 0, limit: int | None = None, **options: object) -> Session:
        opened = open_folders(folders)
        pairs = plan(opened, read_prompts(None, opened), seed=seed, voter=voter, limit=limit)
        ledger = Ledger(tmp_path / "votes.jsonl")
        return Session(pairs, ledger, voter=voter, question="quality", **options)  # type: ignore[arg-type]

    return make
