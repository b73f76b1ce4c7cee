"""Build the embedded sticker data from freely licensed emoji packages, deterministically.

``python -m flashbulb.distill.data.build`` fetches seven npm packages of SVG drawings (and one of names),
renders each drawing once with resvg and writes one Parquet file of lossless WebP pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flashbulb.distill.data.words import ICONIC, STYLES

PACKAGES: dict[str, str] = {
    "noto": "@iconify-json/noto@1.2.9",
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
    "fluent-emoji": "@iconify-json/fluent-emoji@1.2.7",
    "fluent-emoji-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
    "emojione": "@iconify-json/emojione@1.2.3",
}
NAMES = "emojibase-data@17.0.0"
GROUPS = {3, 4, 5, 6, 7}
"""emojibase groups taken: animals and nature, food, travel, activities, objects."""
FACES = {
    "grinning face",
    "smiling face with heart-eyes",
    "smiling face with sunglasses",
    "winking face",
    "crying face",
    "loudly crying face",
    "angry face",
    "sleeping face",
    "nerd face",
    "cowboy hat face",
    "face with tears of joy",
    "thinking face",
    "skull",
    "ghost",
    "alien",
    "alien monster",
    "robot",
    "clown face",
    "pile of poo",
    "red heart",
    "yellow heart",
    "green heart",
    "blue heart",
    "purple heart",
    "broken heart",
    "heart with arrow",
    "kiss mark",
    "collision",
    "see-no-evil monkey",
    "smiling face with horns",
}
SKIP = re.compile(
    r"o’clock|-thirty|mailbox|moon face|speaker (low|medium)|quarter|gibbous|globe with|"
    r"globe showing (asia|europe)|banknote|oncoming|with pen|japanese post|tram car|light rail|waxing|"
    r"waning|suspension|mahjong|outbox|inbox|facing up|bookmark tabs|(blue|green|orange) book|"
    r"page with|incoming|with arrow|e-mail|card (file|index)|fax|pager|yen|(2nd|3rd) place|"
    r"cityscape at|tanabata|pine decoration|moon viewing|japanese dolls|face with horns|tear-off|"
    r"level slider|control knobs|bookmark$|mobile phone with|bell with slash|hammer and|"
    r"camera with flash|chart|clinking glasses|hourglass not|house with garden|derelict|love hotel|"
    r"bank$|hotel|factory|department|seat$|airplane (dep|arr)|tilted right|postal horn|ballot|foggy|"
    r"sunset|night with|sunrise over|map of|cigarette|coffin|funeral|sun behind (small|large)|"
    r"motorway|railway track|kaaba|synagogue|mosque|shinto|prayer"
)
MIN_STYLES = 5
HELD_OUT_PERCENT = 8
UNSEEN_PERCENT = 4
FILL = 0.875
"""Share of the canvas that a drawing takes, so that a border of background always remains."""


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "assets" / "stickers.parquet")
    parser.add_argument("--size", type=int, default=64, help="pixels of one side")
    parser.add_argument(
        "--packages", type=Path, help="an existing node_modules folder; default: fetch with npm"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        packages = arguments.packages or fetch(Path(folder))
        build(packages, arguments.out, arguments.size)


def fetch(folder: Path) -> Path:
    """Fetch the named packages with ``npm pack`` and unpack them as ``folder/<name>``; return the folder."""
    for spec in (*PACKAGES.values(), NAMES):
        done = subprocess.run(
            ["npm", "pack", "--silent", spec], cwd=folder, check=True, capture_output=True, text=True
        )
        target = folder / spec.rpartition("@")[0]
        with tarfile.open(folder / done.stdout.split()[-1]) as archive:
            archive.extractall(target.parent / "_", filter="data")
        (target.parent / "_" / "package").rename(target)
    return folder


def slug(label: str) -> str:
    """Return ``label`` as the icon packages spell it: ASCII, lower case, hyphens."""
    text = unicodedata.normalize("NFKD", label.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", text.replace("&", "and").replace("'", "")).strip("-")


class IconSet:
    """One package of drawings, found by code point or by name."""

    def __init__(self, folder: Path) -> None:
        data = json.loads((folder / "icons.json").read_text())
        self.icons: dict[str, Any] = data["icons"]
        self.aliases: dict[str, Any] = data.get("aliases", {})
        self.width, self.height = data.get("width", 16), data.get("height", 16)
        chars = folder / "chars.json"
        self.chars: dict[str, str] = json.loads(chars.read_text()) if chars.is_file() else {}
        self.flat = {name.replace("-", ""): name for name in (*self.icons, *self.aliases)}

    def find(self, hexcode: str, label: str) -> str | None:
        """Return the name of the drawing of an emoji, or None."""
        plain = hexcode.lower().replace("-fe0f", "")
        return self.chars.get(plain) or self.flat.get(slug(label).replace("-", ""))

    def svg(self, name: str) -> str:
        """Return the drawing as an SVG document; aliases that turn or mirror are not taken."""
        while name not in self.icons:
            name = self.aliases[name]["parent"]
        icon = self.icons[name]
        width, height = icon.get("width", self.width), icon.get("height", self.height)
        names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f'<svg {names} viewBox="0 0 {width} {height}">{icon["body"]}</svg>'


def concepts(packages: Path) -> Iterator[tuple[str, str]]:
    """Yield (hexcode, label) of the emoji that make the sticker world."""
    for entry in json.loads((packages / "emojibase-data" / "en" / "data.json").read_text()):
        label = entry["label"].lower()
        wanted = entry.get("group") in GROUPS and not SKIP.search(label)
        if wanted or label in FACES or label in ICONIC:
            yield entry["hexcode"], label


def split_of(concept: str, style: str) -> str:
    """Return ``train``, ``combination`` (a known concept in a held-out style) or ``unseen``."""

    def percent(key: str) -> float:
        return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF * 100

    if concept not in ICONIC and percent(f"concept:{concept}") < UNSEEN_PERCENT:
        return "unseen"
    return "combination" if percent(f"pair:{concept}:{style}") < HELD_OUT_PERCENT else "train"


def render(svg: str, size: int) -> bytes:
    """Render an SVG document into a lossless RGBA WebP of ``size`` pixels with a transparent border."""
    import resvg_py
    from PIL import Image

    inner = round(size * FILL)
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=inner * 2, height=inner * 2))
    drawing = Image.open(io.BytesIO(png)).convert("RGBa").resize((inner, inner), Image.Resampling.BOX)
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(drawing.convert("RGBA"), ((size - inner) // 2, (size - inner) // 2))
    out = io.BytesIO()
    canvas.save(out, "WEBP", lossless=True, quality=100, method=6, exact=False)
    return out.getvalue()


def build(packages: Path, out: Path, size: int) -> int:
    """Render all stickers and write them to ``out`` (Parquet); return their number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sets = {style: IconSet(packages / spec.rpartition("@")[0]) for style, spec in PACKAGES.items()}
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for hexcode, label in concepts(packages):
        found = {style: name for style in STYLES if (name := sets[style].find(hexcode, label))}
        if len(found) < MIN_STYLES:
            continue
        for style, name in found.items():
            picture = render(sets[style].svg(name), size)
            digest = hashlib.sha256(picture).hexdigest()
            if digest not in seen:
                seen.add(digest)
                rows.append(
                    {"concept": label, "style": style, "split": split_of(label, style), "image": picture}
                )
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(rows), temporary, compression="none")
    temporary.rename(out)
    return len(rows)


if __name__ == "__main__":
    main()
