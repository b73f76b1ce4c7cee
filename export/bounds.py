"""How large the things may be that a manifest speaks of, and what may stand in its texts.  No torch here.

A reader allocates what a manifest names before it can know better: noise of a shape, ids of a length.  The
bounds are far above any model of the kind and far below what hurts.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashbulb.export.bundle import Manifest

MOST_MANIFEST_BYTES = 1 << 20
"""That of a bundle for three runtimes has some forty thousand."""
MOST_HOLE_BYTES = 1 << 28
"""Most bytes of a file that nobody wrote, so that the system keeps none: some writers leave small holes."""
MOST_CONTAINERS = 100_000
"""Most JSON objects and lists in a manifest; one of a bundle for three runtimes has some hundred."""
MOST_ELEMENTS = 1 << 27
"""Most values in one tensor: half a gigabyte of float32."""
MOST_TOKENS = 4096
MOST_CASES = 256
MOST_SIDE = 16384
MOST_PATH_BYTES, MOST_NAME_BYTES = 1024, 200
MOST_TEXT = 200
RESERVED = frozenset(
    ("con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10)))
)
"""Names that Windows gives to devices, whatever follows the first dot."""
PROGRAMS = (".py", ".pyc", ".pyw", ".so", ".dll", ".dylib", ".pyd")
CONFIGURATIONS = frozenset(
    ("pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "pyproject.toml", "tox.ini", "setup.cfg")
)
"""Files by which pytest is told what to import."""


def portable(path: str) -> bool:
    """Tell whether a relative path can exist, and is the same file, on every system."""
    parts = path.split("/")
    return (
        len(path.encode(errors="replace")) <= MOST_PATH_BYTES
        and all(len(part.encode(errors="replace")) <= MOST_NAME_BYTES for part in parts)
        and all(part == part.strip(" ") and not part.endswith(".") for part in parts)
        and all(part.split(".")[0].casefold() not in RESERVED for part in parts)
        and path.isprintable()
        and not set(path) & set('<>:"|?*')
    )


def runs(path: str) -> bool:
    """Tell whether a path is by its name a program, or a file that has a tool run one."""
    name = path.rsplit("/", 1)[-1].casefold()
    return name.endswith(PROGRAMS) or name in CONFIGURATIONS


def same_file(path: str) -> str:
    """Return one key for all spellings that some file system takes for one file."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def clash(paths: Iterable[str]) -> str | None:
    """Return a path that some system takes for another one, for a folder of one, or spells otherwise."""
    found: dict[tuple[int, str], tuple[int, str, bool]] = {}
    for path in paths:
        folder, parts = 0, path.split("/")
        for depth, part in enumerate(parts, 1):
            entry = (len(found) + 1, part, depth == len(parts))
            known = found.setdefault((folder, same_file(part)), entry)
            if known is not entry and (known[1:] != entry[1:] or entry[2]):
                return path
            folder = known[0]
    return None


def twice(keys: Iterable[object]) -> object | None:
    """Return a key that comes more than once."""
    return next((key for key, count in Counter(keys).items() if count > 1), None)


def faults(manifest: Manifest) -> Iterator[str]:
    """Yield what is out of bounds, as the end of a sentence that begins with "wanted"."""
    yield from _texts(manifest)
    yield from _sizes(manifest)
    step = manifest.sampling.one_step
    if not 0.0 < step.alpha <= 1.0 or not 0.0 <= step.sigma <= 1.0:
        yield f"alpha in (0, 1] and sigma in [0, 1], got {step.alpha} and {step.sigma}"
    if step.latent_scale == 0.0 or step.init_noise_sigma <= 0.0:
        yield f"scales that are not zero, got {step.latent_scale} and {step.init_noise_sigma}"
    if not 0 <= manifest.sampling.folded_timestep < 1 << 31:
        yield f"a timestep of 31 bits, got {manifest.sampling.folded_timestep}"


def _texts(manifest: Manifest) -> Iterator[str]:
    """Names end in file names, terminals and web pages: short and printable."""
    specs = [s for a in manifest.artifacts for s in (*a.inputs, *a.outputs)]
    texts = [manifest.name, manifest.created, *(s.name for s in specs)]
    texts += [t.input for t in manifest.tokenizers]
    texts += [a.method for a in manifest.artifacts if a.method is not None]
    for text in texts:
        if not 0 < len(text) <= MOST_TEXT or not text.isprintable():
            yield f"a printable name of at most {MOST_TEXT} letters, got {text[:40]!r}"


def _sizes(manifest: Manifest) -> Iterator[str]:
    """What a reader allocates before it has seen any data."""
    shapes = [manifest.noise.shape, manifest.image.latent_shape]
    shapes += [s.shape for a in manifest.artifacts for s in (*a.inputs, *a.outputs)]
    for shape in shapes:
        if not shape or len(shape) > 8 or min(shape) < 1 or math.prod(shape) > MOST_ELEMENTS:
            yield f"positive sizes and at most {MOST_ELEMENTS} values in a tensor, got {str(shape)[:80]}"
    if not all(1 <= side <= MOST_SIDE for side in (manifest.image.height, manifest.image.width)):
        got = (manifest.image.height, manifest.image.width)
        yield f"a picture of 1 to {MOST_SIDE} pixels a side, got {got}"
    if len(manifest.golden.cases) > MOST_CASES:
        yield f"at most {MOST_CASES} golden cases, got {len(manifest.golden.cases)}"
    for info in manifest.tokenizers:
        ids = (info.bos_token_id, info.eos_token_id, info.pad_token_id)
        if not 3 <= info.length <= MOST_TOKENS or not all(0 <= i < 1 << 31 for i in ids):
            yield f"3 to {MOST_TOKENS} tokens and ids of 31 bits, got {info.length} and {ids}"
