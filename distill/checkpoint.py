"""A checkpoint: a standard diffusers folder (safetensors only) plus ``lineage.json``.

Teacher, student and compressed model are one type, so every stage is optional and any Hub model may enter at
any stage. ``diffusers.DiffusionPipeline.from_pretrained`` opens what `Checkpoint.derive` writes, unchanged.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flashbulb.distill.lineage import LineageEntry, read_lineage, tool_versions, write_lineage
from flashbulb.distill.untrusted import UntrustedError, parse_json, read_small, safetensors_header
from flashbulb.distill.untrusted_folder import check_config, folder_faults, index_faults
from flashbulb.distill.untrusted_tokenizer import check_tokenizer, tokenizer_faults

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from diffusers import DiffusionPipeline
    from transformers import CLIPTokenizerFast

log = logging.getLogger(__name__)

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
CODES_FILE = "encodings.safetensors"
"""Stored codes of compressed weights, beside the folders that hold what they decode to."""
HUB_PATTERNS = ("*.json", "*.txt", "*/*.json", "*/*.txt", "*/*.safetensors", CODES_FILE)
"""What is fetched of a Hub repository; weights at its root are the same model once more, as a single file."""
MODULE_FOLDERS = ("text_encoder", "text_encoder_2", "unet", "vae")


class CheckpointError(ValueError):
    """A folder that is not a usable diffusers checkpoint; the message says what to do."""


class Checkpoint:
    """An immutable handle on a diffusers folder; make one with `Checkpoint.open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pixels: int | None = None
        self.index: dict[str, Any] = _read_json(path / "model_index.json")
        try:
            self.lineage = read_lineage(path)
        except UntrustedError as error:
            raise CheckpointError(str(error)) from error

    @classmethod
    def open(cls, source: str | Path, *, revision: str | None = None) -> Checkpoint:
        """Open a local folder, a Hub id, or ``embedded:teacher`` / ``embedded:student``.

        Raises:
            CheckpointError: when there is no such checkpoint, it is incomplete, or it holds pickles only.
        """
        if str(source).startswith("embedded:"):
            return embedded(str(source).removeprefix("embedded:"))  # type: ignore[arg-type]
        path = Path(source)
        if not path.exists():
            path = _download(str(source), revision)
        _validate(path)
        return cls(path.resolve())

    def sized(self, pixels: int | None) -> Checkpoint:
        """Return a handle on the same folder that draws ``pixels`` high and wide; None keeps its own size.

        Denoisers and decoders are convolutions and attention, so their weights serve any size.

        Raises:
            CheckpointError: for a size that the decoder or the UNet cannot halve as often as they must.
        """
        other = Checkpoint(self.path)
        if pixels is not None:
            step = self._scale * 2 ** (len(self.config("unet")["block_out_channels"]) - 1)
            if pixels < step or pixels % step:
                raise CheckpointError(f"wanted an image size that {step} divides, got {pixels}")
            other.pixels = pixels
        return other

    @property
    def is_sdxl(self) -> bool:
        """Tell whether the checkpoint has a second text encoder."""
        return "text_encoder_2" in self.components()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The latent of one image as (channels, height, width)."""
        size = self.field("unet", "sample_size") if self.pixels is None else self.pixels // self._scale
        height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
        return int(self.field("unet", "in_channels")), int(height), int(width)

    @property
    def image_size(self) -> int:
        """Height (= width) of the decoded picture in pixels."""
        return int(self.latent_shape[1] * self._scale)

    @property
    def _scale(self) -> int:
        """Pixels that one latent becomes."""
        stages = len(self.field("vae", "block_out_channels", "decoder_block_out_channels"))
        return int(2 ** (stages - 1))

    @property
    def text_length(self) -> int:
        """Number of tokens of a padded prompt."""
        return int(self.field("text_encoder", "max_position_embeddings"))

    def components(self) -> tuple[str, ...]:
        """Return the component names, in the order of the data flow."""
        second = ("text_encoder_2",) if (self.path / "text_encoder_2").is_dir() else ()
        return ("text_encoder", *second, "unet", "vae_decoder")

    def config(self, folder: str) -> dict[str, Any]:
        """Return the parsed configuration of one sub-folder, for instance ``config("unet")``."""
        name = "scheduler_config.json" if folder == "scheduler" else "config.json"
        return _read_json(self.path / folder / name)

    def field(self, folder: str, *names: str) -> Any:
        """Return the first of some configuration fields that is there.

        Raises:
            CheckpointError: when none is.
        """
        config = self.config(folder)
        for name in names:
            if config.get(name):
                return config[name]
        raise CheckpointError(
            f"wanted {' or '.join(names)} in {folder}/config.json of {self.path}, got none; fetch it again"
        )

    def sha256(self) -> str:
        """Return one hash over the names and bytes of all files but the lineage."""
        digest = hashlib.sha256()
        for file in sorted(p for p in self.path.rglob("*") if p.is_file() and p.name != "lineage.json"):
            digest.update(file.relative_to(self.path).as_posix().encode() + b"\0")
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def load(self, folder: str, dtype: str = "float32") -> torch.nn.Module:
        """Load ``text_encoder``, ``text_encoder_2``, ``unet`` or ``vae``: frozen, in eval mode."""
        import diffusers
        import torch
        import transformers

        if folder not in MODULE_FOLDERS:
            raise CheckpointError(f"wanted one of {MODULE_FOLDERS}, got {folder!r}")
        library = transformers if folder.startswith("text_encoder") else diffusers
        cls = getattr(library, self.index[folder][1])
        kind = getattr(torch, dtype)
        module: torch.nn.Module = cls.from_pretrained(
            self.path / folder, torch_dtype=kind, use_safetensors=True, low_cpu_mem_usage=False
        )
        return module.eval().requires_grad_(False)

    def tokenizer(self, name: str = "tokenizer") -> CLIPTokenizerFast:
        """Load the fast tokenizer, the one whose ``tokenizer.json`` phones read.

        Raises:
            CheckpointError: when it is damaged, or holds a step that CLIP's do not have.
        """
        return _load_tokenizer(self.path / name)

    def pipeline(self, dtype: str = "float32") -> DiffusionPipeline:
        """Open the whole folder as the diffusers pipeline that ``model_index.json`` names."""
        import torch
        from diffusers import DiffusionPipeline

        for name in ("tokenizer", "tokenizer_2"):
            if (self.path / name).is_dir():
                self.tokenizer(name)  # to judge it
        return DiffusionPipeline.from_pretrained(
            self.path, torch_dtype=getattr(torch, dtype), use_safetensors=True, low_cpu_mem_usage=False
        )

    def derive(
        self,
        out: Path,
        *,
        stage: str,
        config: dict[str, Any],
        replace: Mapping[str, torch.nn.Module] | None = None,
        scheduler: dict[str, Any] | None = None,
        metrics: Mapping[str, float | int | str] | None = None,
        keep_dtype: bool = True,
    ) -> Checkpoint:
        """Write a copy with some modules replaced and one lineage entry more; atomic: temporary name, rename.

        Args:
            out: the new folder; an existing one is replaced as a whole.
            stage: name of the stage that calls.
            config: its resolved configuration.
            replace: sub-folder name -> module whose weights and config are written instead.
            scheduler: scheduler config fields to change; ``_class_name`` changes the scheduler itself.
            metrics: figures that belong to this checkpoint.
            keep_dtype: store replaced modules in the dtype that the parent stores them in.
        """
        temporary = out.with_name(f".{out.name}.partial")
        shutil.rmtree(temporary, ignore_errors=True)
        # Weights at the root are the same model as a single file: nobody's who opens a folder.
        single = {file.name for file in _weights(self.path)} - {CODES_FILE}
        left = {"lineage.json", *(replace or {}), *single}
        shutil.copytree(self.path, temporary, ignore=lambda at, _: left if Path(at) == self.path else ())
        for folder, module in (replace or {}).items():
            _save_module(module, temporary / folder, stored_dtype(self.path / folder) if keep_dtype else None)
        if scheduler:
            _write_json(
                temporary / "scheduler" / "scheduler_config.json", self.config("scheduler") | scheduler
            )
            name = scheduler.get("_class_name", self.index["scheduler"][1])
            _write_json(temporary / "model_index.json", self.index | {"scheduler": ["diffusers", name]})
        entry = LineageEntry(
            stage=stage,
            config=config,
            parent_sha256=self.sha256(),
            versions=tool_versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            metrics=dict(metrics or {}),
        )
        write_lineage(temporary, self.lineage.append(entry))
        replace_folder(temporary, out)
        return Checkpoint.open(out)


def embedded(name: Literal["teacher", "student"]) -> Checkpoint:
    """Return the teacher or the ready-made one-step student that ship inside the package."""
    folder = Path(__file__).parent / "assets" / name
    if name not in ("teacher", "student") or not folder.is_dir():
        raise CheckpointError(f"wanted an embedded checkpoint 'teacher' or 'student', got {name!r}")
    return Checkpoint.open(_assemble(name, folder))


def replace_folder(temporary: Path, out: Path) -> None:
    """Put ``temporary`` in the place of ``out``; at no time is a half-written folder visible there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(temporary, out)
    shutil.rmtree(old, ignore_errors=True)


def stored_dtype(folder: Path) -> str:
    """Return ``float16`` or ``float32``: whether the weights that diffusers opens in a folder hold halves."""
    kinds = {tensor.dtype for tensor in safetensors_header(_weights(folder)[0]).values()}
    return "float16" if "F16" in kinds else "float32"


def _save_module(module: torch.nn.Module, folder: Path, dtype: str | None) -> None:
    import copy

    import torch

    clone = copy.deepcopy(module).to("cpu")
    if dtype is not None:
        clone = clone.to(getattr(torch, dtype))
    clone.save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
    config = _read_json(folder / "config.json")
    config.pop("_name_or_path", None)  # the folder that it was read from: nobody else's business
    _write_json(folder / "config.json", config)


def _weights(folder: Path) -> list[Path]:
    """Return the weights of a folder, those without a variant in their name (``.fp16.``) first."""
    return sorted(folder.glob("*.safetensors"), key=lambda file: ("." in file.stem, file.name))


def _download(source: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(HUB_PATTERNS)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"no checkpoint {source!r}: it is no local folder, and the Hub gave no such model "
            f"({type(error).__name__}). Give a diffusers folder, a reachable Hub id, "
            "embedded:teacher or embedded:student"
        ) from error


def _validate(path: Path) -> None:
    if not (path / "model_index.json").is_file():
        raise CheckpointError(
            f"{path} is not a diffusers folder: it has no model_index.json. "
            "Convert single-file checkpoints with diffusers' from_single_file(...).save_pretrained(...)"
        )
    index = _read_json(path / "model_index.json")
    for fault in (*folder_faults(path), *index_faults(index)):
        raise CheckpointError(f"{path}: {fault}; do not use it, or fetch it again")
    needed = [f for f in MODULE_FOLDERS if f != "text_encoder_2" or f in index]
    for folder in needed:
        if not (path / folder / "config.json").is_file():
            raise CheckpointError(f"{path} lacks {folder}/config.json; wanted the folders {needed}")
        _validate_weights(path / folder)
    if not (path / "tokenizer").is_dir() or not (path / "scheduler" / "scheduler_config.json").is_file():
        raise CheckpointError(f"{path} lacks tokenizer/ or scheduler/scheduler_config.json")


def _validate_weights(folder: Path) -> None:
    files = _weights(folder)
    if not files:
        pickles = [p.name for p in folder.iterdir() if p.suffix in PICKLES]
        held = (
            f"only pickled weights ({', '.join(pickles)}), which can run code when opened"
            if pickles
            else "no weights"
        )
        raise CheckpointError(
            f"{folder} holds {held}; wanted .safetensors. "
            "Save it again with save_pretrained(..., safe_serialization=True) on a machine that trusts it"
        )
    try:
        headers = [safetensors_header(file) for file in files]
        check_config(_read_json(folder / "config.json"), [t for h in headers for t in h.values()])
    except UntrustedError as error:
        raise CheckpointError(
            f"{folder}: {error}; fetch it again, or save it with save_pretrained"
        ) from error


@functools.lru_cache(maxsize=8)
def _load_tokenizer(folder: Path) -> CLIPTokenizerFast:
    from transformers import CLIPTokenizerFast

    try:
        check_tokenizer(folder)
        found = CLIPTokenizerFast.from_pretrained(folder)
        for fault in tokenizer_faults(json.loads(found.backend_tokenizer.to_str())):
            raise UntrustedError(f"wanted a CLIP tokenizer, got {fault}")
    except BaseException as error:  # the library raises plain `Exception`, and Rust's panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(
            f"{folder} holds no tokenizer that can be used: {error}; do not use it, or fetch it again"
        ) from error
    return found


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = parse_json(read_small(file))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing") from error
    except UntrustedError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: wanted a JSON object, got {type(value).__name__}")
    return value


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")


@functools.cache
def _assemble(name: str, folder: Path) -> Path:
    """Return a whole diffusers folder; the student's shares its text encoder and VAE with the teacher's."""
    shared = _read_json(folder / "shared.json") if (folder / "shared.json").is_file() else {}
    if not shared:
        return folder
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "flashbulb"
    parts = [folder, *(folder.parent / shared["from"] / part for part in shared["folders"])]
    files = [file for part in parts for file in sorted(part.rglob("*")) if file.is_file()]
    key = hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).hexdigest()[:16]
    out = cache / f"{name}-{key}"
    if not (out / "model_index.json").is_file():
        temporary = out.with_name(f".{out.name}.{os.getpid()}")
        shutil.copytree(folder, temporary, ignore=shutil.ignore_patterns("shared.json"))
        for part in shared["folders"]:
            shutil.copytree(folder.parent / shared["from"] / part, temporary / part)
        replace_folder(temporary, out)
    return out
