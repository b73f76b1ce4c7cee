"""What is asked for in an evaluation, and the real pictures that the answers are held against."""

from __future__ import annotations

import hashlib
import io
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.data.stickers import Sticker, Stickers

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Prompts:
    """Captions, and real pictures in [-1, 1] (or bytes) where there are any."""

    captions: tuple[str, ...]
    real: torch.Tensor | None = None
    """Real pictures (m, 3, h, w)."""
    paired: bool = False
    """Whether real picture i is one of caption i."""
    floor: torch.Tensor | None = None
    """As many other real pictures: what a perfect model's figures would be."""
    stickers: tuple[Sticker, ...] = ()
    """In the sticker world: the sticker that each caption asks for."""
    backgrounds: tuple[str, ...] = ()

    def part(self, begin: int, end: int) -> Prompts:
        """Return some of the captions and what is known of each, without real pictures."""
        return Prompts(
            captions=self.captions[begin:end],
            stickers=self.stickers[begin:end],
            backgrounds=self.backgrounds[begin:end],
        )

    def sha256(self) -> str:
        """Return a hash of the captions: checkpoints are compared on the same ones only."""
        return hashlib.sha256(json.dumps(self.captions).encode()).hexdigest()


def embedded_prompts(data: Stickers, stickers: list[Sticker], backgrounds: list[str], seed: int) -> Prompts:
    """Return the prompts of stickers, the stickers as real pictures, and as many others as floor."""
    others, grounds = floor_stickers(data, stickers, seed)
    return Prompts(
        captions=tuple(data.captions(stickers, backgrounds)),
        real=data.composite(stickers, backgrounds),
        paired=True,
        floor=data.composite(others, grounds),
        stickers=tuple(stickers),
        backgrounds=tuple(backgrounds),
    )


def floor_stickers(data: Stickers, asked: list[Sticker], seed: int) -> tuple[list[Sticker], list[str]]:
    """Draw as many stickers of iconic concepts that were not asked for: of the same split first."""
    from flashbulb.distill.data.words import BACKGROUNDS

    rng = random.Random(f"floor {seed}")
    used = {s.index for s in asked}
    split = asked[0].split
    near = [s for s in data.select(split, iconic=True) if s.index not in used]
    far = [s for name in ("train", "combination") if name != split for s in data.select(name, iconic=True)]
    rng.shuffle(near)
    rng.shuffle(far)
    found = (near + far)[: len(asked)]
    return found, rng.choices(list(BACKGROUNDS), k=len(found))


def read_prompts(file: Path, *, count: int, size: int) -> Prompts:
    """Read captions, one a line, or JSON lines with ``text`` and optionally ``file_name`` of a real picture.

    Args:
        file: ``.jsonl`` is read as JSON lines, all else as plain lines; empty lines are left out.
        count: how many to read at most, from the start.
        size: side to which real pictures are scaled, after a centred crop.

    Raises:
        ValueError: for a file that is not there, holds fewer than two captions, or malformed lines.
    """
    if not file.is_file():
        raise ValueError(f"wanted a file with one caption a line, got {str(file)!r}, which is none")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()][:count]
    rows = [_row(file, line) for line in lines] if file.suffix == ".jsonl" else [{"text": x} for x in lines]
    if len(rows) < 2:
        raise ValueError(f"wanted two captions or more in {file}, got {len(rows)}")
    named = [file.parent / row["file_name"] for row in rows if row.get("file_name")]
    if named and len(named) < len(rows):
        raise ValueError(f"{file}: wanted file_name on every line or none, got {len(named)} of {len(rows)}")
    return Prompts(
        captions=tuple(row["text"] for row in rows),
        real=load_pictures(named, size) if named else None,
        paired=bool(named),
    )


def _row(file: Path, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: wanted a JSON object on every line, got {line[:60]!r}") from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise ValueError(f'{file}: wanted {{"text": ...}} on every line, got {line[:60]!r}')
    return row


def read_real(folder: Path, *, count: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Read real pictures of a folder: at most ``count``, and as many others where there are enough.

    Raises:
        ValueError: for fewer than two pictures.
    """
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in PICTURES)
    if len(files) < 2:
        kinds = ", ".join(PICTURES)
        raise ValueError(f"wanted a folder with two pictures ({kinds}) or more, got {folder}: {len(files)}")
    random.Random(seed).shuffle(files)
    real, rest = files[:count], files[count : 2 * count]
    enough = len(rest) == len(real)
    return load_pictures(real, size), load_pictures(rest, size) if enough else None


def load_pictures(files: list[Path], size: int) -> torch.Tensor:
    """Return pictures (n, 3, size, size) as bytes, cropped to a centred square.

    Raises:
        ValueError: when one cannot be read.
    """
    import torch

    found = torch.from_numpy(np.stack([_load(file, size) for file in files]))
    return found.permute(0, 3, 1, 2)


def _load(file: Path, size: int) -> np.ndarray:
    from PIL import Image, ImageOps

    from flashbulb.distill.data.pictures import FORMATS, MAX_BYTES, unreadable
    from flashbulb.distill.untrusted import read_small

    try:  # read at once: from a file, a chunk would get all the memory that it says it is long
        with Image.open(io.BytesIO(read_small(file, MAX_BYTES)), formats=FORMATS) as picture:
            fitted = ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
            return np.asarray(fitted)
    except unreadable() as error:
        raise ValueError(f"{file} cannot be read as a picture: {error}") from error
