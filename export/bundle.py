"""Read, write and verify a bundle: a folder that says what it holds and can be held to it.  No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from flashbulb.distill.lineage import Lineage
from flashbulb.distill.schedule import OneStep
from flashbulb.export.artifact import (
    Artifact,
    ArtifactComponent,
    BackendName,
    FileRecord,
    Format,
    Precision,
    Sha256,
    Size,
)

if TYPE_CHECKING:
    import numpy as np

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
Quantity = Literal["text_encoder", "text_encoder_2", "unet", "vae_decoder", "x0", "image", "generator"]
"""What a gate judges: a component fed with golden inputs, the chained x0 and image, or the fused call."""


class BundleError(ValueError):
    """A bundle is broken, unsafe, or from another version."""


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The checkpoint that a bundle was exported from."""

    checkpoint: str
    """Folder, Hub id or `embedded:` name, as it was given."""
    sha256: Sha256
    """Digest over the checkpoint's files."""


class ImageSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The picture that comes out: RGB, channels first, 0 black and 1 white."""

    height: int
    """Rows."""
    width: int
    """Columns."""
    latent_shape: tuple[int, int, int]
    """Channels, rows and columns of the latent."""


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The one step, as numbers: `x0 = noise_coefficient * sample + output_coefficient * out`."""

    one_step: OneStep
    """The constants that the coefficients come from."""
    noise_coefficient: float
    """Factor of `sample`, where `sample = one_step.init_noise_sigma * noise`."""
    output_coefficient: float
    """Factor of the UNet's output."""
    folded_timestep: int
    """The timestep whose embedding is a constant inside the exported UNet."""


class NoiseSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a seed becomes noise on every platform."""

    algorithm: Literal["mulberry32-box-muller-1"] = "mulberry32-box-muller-1"
    """See `flashbulb.export.noise`."""
    shape: tuple[int, ...]
    """Shape to fill, last index fastest."""


class TokenizerInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a prompt becomes token ids: byte-level CLIP BPE, cut and padded to a fixed length."""

    folder: str
    """Folder in the bundle, holding `tokenizer.json`."""
    input: str
    """Name of the tensor that takes its ids."""
    length: int
    """Number of ids, start and end included."""
    bos_token_id: int
    """Id put first."""
    eos_token_id: int
    """Id put after the last token; a longer prompt is cut before it."""
    pad_token_id: int
    """Id that fills the rest."""
    kind: Literal["clip-bpe"] = "clip-bpe"
    """Family of tokenizer."""


class Licence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Terms of one part of the bundle."""

    subject: str
    """What the terms are about."""
    identifier: str
    """SPDX identifier, or `unknown` where the source states none."""
    file: str | None = None
    """Text of the licence in the bundle."""


class GoldenCase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One prompt whose every intermediate tensor is recorded."""

    prompt: str
    """Text that was tokenized."""
    seed: int
    """Seed of its noise."""
    token_ids: dict[str, tuple[int, ...]]
    """Ids per token input, from the fast tokenizer."""
    png: str
    """Expected picture, in the bundle."""


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Golden vectors: tensor `N.name` of `tensors` belongs to case N, names are those of the specs."""

    cases: tuple[GoldenCase, ...]
    """At least four prompts."""
    tensors: str = "golden/vectors.safetensors"
    """Inputs and fp32 outputs of each component, plus `x0` and `image`."""
    reference: str = "diffusers eager float32"
    """What computed them."""


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One threshold that an engine must reach against the golden vectors."""

    backend: BackendName
    """Backend whose artifacts it judges."""
    precision: Precision
    """Precision that it was set for."""
    quantity: Quantity
    """What is compared."""
    metric: Literal["snr_db", "psnr_db"]
    """`snr_db`: 10 log10(reference power / error power); `psnr_db`: peak 1.0."""
    minimum_db: float
    """Smallest value that passes."""


class Sanity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Floors that a picture must reach whatever its parity says, in root mean square of [0, 1]."""

    std_min: float
    """Least standard deviation of golden picture 0."""
    prompt_rms_min: float
    """Least difference between the prompts of cases 0 and 1 under the noise of case 0."""
    noise_rms_min: float
    """Least difference between the noises of cases 0 and 1 under the prompt of case 0."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything an app needs to know about a bundle, in one file."""

    schema_version: int = SCHEMA_VERSION
    """Version of this layout."""
    name: str
    """Name of the model."""
    created: str
    """Time of export, ISO 8601."""
    versions: dict[str, str]
    """Tools that made it."""
    source: Source
    """Where the weights come from."""
    image: ImageSpec
    """What comes out."""
    sampling: Sampling
    """The one step as numbers."""
    noise: NoiseSpec
    """How seeds become noise."""
    tokenizers: tuple[TokenizerInfo, ...]
    """One per text encoder, in order."""
    artifacts: tuple[Artifact, ...]
    """Every exported program."""
    golden: Golden
    """Vectors to check a runtime with."""
    gates: tuple[Gate, ...]
    """Thresholds to check it against."""
    sanity: Sanity
    """Floors that no picture may fall under."""
    licences: tuple[Licence, ...]
    """Terms of the parts."""
    lineage: Lineage
    """Every stage that the weights went through."""
    files: tuple[FileRecord, ...]
    """Every other file of the bundle: tokenizers, golden vectors, licences, layouts."""


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle on disk."""

    root: Path
    """Its folder."""
    manifest: Manifest
    """What it says of itself."""

    def artifact(
        self, component: ArtifactComponent, backend: BackendName, file_format: Format | None = None
    ) -> Artifact:
        """Find one artifact; without a format, the first of its backend."""
        for found in self.manifest.artifacts:
            if (found.component, found.backend) == (component, backend) and file_format in (
                None,
                found.format,
            ):
                return found
        known = sorted({f"{a.component}/{a.backend}/{a.format}" for a in self.manifest.artifacts})
        raise BundleError(
            f"wanted {component} for {backend} ({file_format or 'any format'}), "
            f"the bundle at {self.root} holds {known}; export it with that backend"
        )

    def components(self, backend: BackendName) -> tuple[str, ...]:
        """Name the components that a backend has, in call order."""
        return tuple(dict.fromkeys(a.component for a in self.manifest.artifacts if a.backend == backend))

    def path(self, artifact: Artifact) -> Path:
        """Return where an artifact lies."""
        return self.root / artifact.path

    def golden(self) -> tuple[dict[str, np.ndarray[Any, Any]], ...]:
        """Load the golden tensors: one dictionary by tensor name per case.

        Raises:
            BundleError: when a tensor is absent, or has another shape than the manifest says.
        """
        from flashbulb.export.vectors import read_vectors

        return read_vectors(self)


def json_schema() -> bytes:
    """Return the manifest's JSON Schema, as exact bytes."""
    schema = msgspec.json.schema(Manifest)
    return msgspec.json.format(msgspec.json.encode(schema, order="sorted"), indent=2) + b"\n"


def encode_manifest(manifest: Manifest) -> bytes:
    """Return a manifest as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def write_manifest(manifest: Manifest, root: Path) -> Path:
    """Write `manifest.json` through a temporary name."""
    target, temporary = root / MANIFEST, root / (MANIFEST + ".tmp")
    temporary.write_bytes(encode_manifest(manifest))
    return temporary.replace(target)


def read_bundle(path: str | Path) -> Bundle:
    """Open a bundle and check its manifest; `verify` then checks the files.

    Raises:
        BundleError: if there is no readable manifest of a known version that is sound in itself.
    """
    from flashbulb.export.verify import parse_manifest

    root = Path(path)
    return Bundle(root=root, manifest=parse_manifest(root))


def verify(bundle: Bundle) -> None:
    """Check every file of a bundle against its manifest.

    Raises:
        BundleError: naming the first thing that is wrong.
    """
    from flashbulb.export.verify import check_files

    check_files(bundle)


__all__ = [
    "MANIFEST",
    "SCHEMA_VERSION",
    "Bundle",
    "BundleError",
    "Gate",
    "Golden",
    "GoldenCase",
    "ImageSpec",
    "Licence",
    "Manifest",
    "NoiseSpec",
    "Quantity",
    "Sampling",
    "Sanity",
    "Size",
    "Source",
    "TokenizerInfo",
    "encode_manifest",
    "json_schema",
    "read_bundle",
    "verify",
    "write_manifest",
]
