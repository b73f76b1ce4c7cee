"""Judge a diffusers folder from a stranger before a library opens it.  Standard library only.

``model_index.json`` names Python classes, ``config.json`` names sizes that are allocated before a weight is
read, and a link can lead to any file of the machine, which a stage would then copy into its result.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flashbulb.distill.untrusted import StoredTensor, UntrustedError

CLASSES = {
    "text_encoder": {("transformers", "CLIPTextModel"), ("transformers", "CLIPTextModelWithProjection")},
    "text_encoder_2": {("transformers", "CLIPTextModelWithProjection"), ("transformers", "CLIPTextModel")},
    "unet": {("diffusers", "UNet2DConditionModel")},
    "vae": {("diffusers", "AutoencoderKL"), ("diffusers", "AutoencoderTiny")},
}
"""The classes that each folder may name: library and class."""
LIBRARIES = ("diffusers", "transformers")
"""What else may be named comes from these: diffusers imports whatever module stands in its index."""
CHECKERS = ("stable_diffusion",)
"""A part of diffusers, by which its own files name the safety checker."""
WIDTHS = (
    "hidden_size", "intermediate_size", "vocab_size", "projection_dim", "cross_attention_dim", "in_channels",
    "block_out_channels", "encoder_block_out_channels", "decoder_block_out_channels", "latent_channels",
    "projection_class_embeddings_input_dim", "max_position_embeddings",
)  # fmt: skip
"""Configuration fields that are a side of some weight."""
COUNTS = (
    "num_hidden_layers", "layers_per_block", "transformer_layers_per_block", "num_encoder_blocks",
    "num_decoder_blocks", "mid_block_layers",
)  # fmt: skip
"""Configuration fields that say how many layers are built."""
MOST_FILES = 10_000
MOST_BLOCKS = 16
MOST_SIDE = 4096
CODE = (".py", ".pyc", ".so", ".dll", ".dylib", ".pyd")
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def folder_faults(root: Path) -> Iterator[str]:
    """Yield what no checkpoint needs: code, links that lead out of it, pipes and devices, too many files."""
    inside = [root.resolve()]
    if inside[0].parent.name == "snapshots":  # the Hub's cache keeps the bytes beside, in blobs/
        inside.append(inside[0].parent.parent / "blobs")
    count = 0
    for folder, names, files in os.walk(root):
        for name in (*names, *files):
            path, count = Path(folder) / name, count + 1
            if count > MOST_FILES:
                yield f"wanted at most {MOST_FILES} files, got more"
                return
            if path.is_symlink() and not any(path.resolve().is_relative_to(top) for top in inside):
                yield f"wanted files of its own, got the link {path.relative_to(root)} to {path.resolve()}"
            elif name in files and not path.is_file():
                yield f"wanted regular files, got another kind in {path.relative_to(root)}"
            if path.suffix.lower() in CODE:
                yield f"wanted data, got the program {path.relative_to(root)}"


def index_faults(index: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a ``model_index.json``."""
    name = index.get("_class_name")
    if not isinstance(name, str) or not WORD.fullmatch(name) or not name.endswith("Pipeline"):
        yield f"wanted the name of a diffusers pipeline in model_index.json, got {str(name)[:80]!r}"
    for key, value in index.items():
        if not (key.startswith("_") and isinstance(value, str)):  # the pipeline's name and version
            yield from _value_faults(key, value)
    for folder, known in CLASSES.items():
        value = index.get(folder)
        if value is None and folder == "text_encoder_2":
            continue
        if not isinstance(value, list) or not _words(value) or tuple(value) not in known:
            words = sorted(f"{library}.{cls}" for library, cls in known)
            yield f"wanted one of {words} for {folder} in model_index.json, got {str(value)[:80]}"
    scheduler = index.get("scheduler")
    if not isinstance(scheduler, list) or not _words(scheduler) or scheduler[0] != "diffusers":
        yield f"wanted a diffusers scheduler in model_index.json, got {str(scheduler)[:80]}"


def _value_faults(key: str, value: Any) -> Iterator[str]:
    """Yield what is wrong with one entry; diffusers takes any two parts for a class, of a word too."""
    if isinstance(value, bool | int | float | None):
        return
    libraries = LIBRARIES + (CHECKERS if key == "safety_checker" else ())
    known = isinstance(value, list) and _words(value) and value[0] in libraries
    if not known and value != [None, None]:
        got = f"{key[:40]!r} in model_index.json, got {str(value)[:80]}"
        yield f"wanted a class of {' or '.join(libraries)} for {got}"


def _words(value: list[Any]) -> bool:
    return len(value) == 2 and all(isinstance(v, str) and WORD.fullmatch(v) for v in value)


def check_config(config: dict[str, Any], weights: Sequence[StoredTensor]) -> None:
    """Refuse sizes that no stored weight has: a module of them would fill the memory before any is read.

    Raises:
        UntrustedError: naming the field.
    """
    if "auto_map" in config or "/" in str(config.get("attn_implementation", "")):
        raise UntrustedError("wanted a plain configuration, got one that names code to load")
    widest = max((side for t in weights if t.end > t.begin for side in t.shape), default=0)
    for field, most in (*((f, widest) for f in WIDTHS), *((f, len(weights)) for f in COUNTS)):
        for value in _leaves(config.get(field), field):
            if not 0 <= value <= most:
                raise UntrustedError(f"its configuration has {field} = {value}, its weights allow {most}")
    for field in ("block_out_channels", "encoder_block_out_channels", "decoder_block_out_channels"):
        if not isinstance(config.get(field, []), list):
            raise UntrustedError(f"wanted a list for {field}, got {str(config[field])[:60]}")
    for field in ("in_channels", "max_position_embeddings"):
        if type(config.get(field, 0)) is not int:
            raise UntrustedError(f"wanted a whole number for {field}, got {str(config[field])[:60]}")
    for value in _leaves(config.get("sample_size"), "sample_size"):
        if not 0 < value <= MOST_SIDE:
            raise UntrustedError(f"wanted sample_size in 1..{MOST_SIDE}, got {value}")


def _leaves(value: Any, field: str) -> Iterator[int]:
    """Yield the whole numbers of a field: one, a list, or a list of lists; null is none."""
    if isinstance(value, list) and len(value) <= MOST_BLOCKS:
        for item in value:
            yield from _leaves(item, field)
    elif type(value) is int:
        yield value
    elif value is not None:
        raise UntrustedError(f"wanted a whole number or a short list for {field}, got {str(value)[:60]}")
