"""What passes between this machine and the benchmark app on a device of Apple, as files.

Everything lies in the app's folder ``Documents/flashbulb``.  We put there ``bundle/`` and ``request.json``, a
`Request`.  The app runs the bundle's Core ML programs with every kind of compute units that the request
names, and leaves ``answer.json``, an `Answer`, and for the comparisons ``answer.safetensors``: the programs'
outputs as float32 or float16, each under one of these names.

* ``UNITS/golden/CASE/COMPONENT/TENSOR``: each component, the fused generator among them, on the golden inputs
  of a case, for the cases from 0 to `Request.cases` - 1.
* ``UNITS/draw/PROMPT-NOISE/COMPONENT/TENSOR``: for each of `Request.draws`, the components one after another
  from the golden token ids of one case and the golden noise of another, with the manifest's one-step numbers
  in float32; and the fused generator, where the two cases differ.

Then it removes the bundle, which cannot be done from here.  The app judges nothing: its tensors pass the same
gates here as those of every engine, and its times are held to what was asked.
"""

from __future__ import annotations

import logging
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from flashbulb.distill.typed_json import decode
from flashbulb.distill.untrusted import UntrustedError, read_small, safetensors_header
from flashbulb.export.artifact import file_sha256
from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.devices.devicectl import Devicectl
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.records import Device, LatencyRecord

log = logging.getLogger(__name__)

VERSION = 2
"""2 brings the tensors themselves; 1 brought what the app made of them."""
FOLDER = "Documents/flashbulb"
UNITS = ("cpuOnly", "cpuAndGPU", "cpuAndNeuralEngine", "all")
"""Core ML's words for what may compute."""
MOST_TENSOR_BYTES = 8 << 30
DTYPES = ("F32", "F16")
MOST_CORES = 1024
MOST_MEMORY_BYTES = 1 << 50
Tensors = Mapping[str, np.ndarray[Any, Any]]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the app is asked to do."""

    version: int = VERSION
    """Version of this exchange."""
    nonce: str
    """To be repeated in the answer, so that an old one is not taken for it."""
    manifest_sha256: str
    """Digest of the manifest of the bundle to run."""
    units: tuple[str, ...] = UNITS
    """Kinds of compute units; every program runs with each of them."""
    cases: int
    """Golden cases to compare, from the first on; 0 for times alone."""
    draws: tuple[tuple[int, int], ...] = ()
    """Whole pictures to draw: the golden case of the prompt, and that of the noise."""
    runs: int
    """Measured runs of each program; 0 for parity alone."""


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the app found."""

    version: int
    """Version of this exchange."""
    nonce: str
    """That of the request."""
    manifest_sha256: str
    """Digest of the manifest that the app read."""
    device: Device
    """Where it ran; `kind` is ``ios``."""
    tensors_sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | None = None
    """Digest of ``answer.safetensors``; null where no comparison was asked."""
    latency: tuple[LatencyRecord, ...] = ()
    """One for each program and kind of compute units; its engine is ``coreml@cpuAndNeuralEngine``."""
    files: dict[str, str] = {}
    """Path in the bundle -> SHA-256, of the files that the app opened."""


class Exchanged(NamedTuple):
    """A request and what came back."""

    asked: Request
    answer: Answer
    tensors: Tensors
    """Empty where no comparison was asked."""


def draws(cases: int) -> tuple[tuple[int, int], ...]:
    """Return the pictures that the gates look at: of each case, and two of another prompt or noise."""
    return (*((case, case) for case in range(cases)), *(((1, 0), (0, 1)) if cases > 1 else ()))


def exchange(bundle: Bundle, udid: str, manifest_sha256: str, *, cases: int, runs: int) -> Exchanged:
    """Carry a bundle and a request to the app, let it run, and return its answer, named after the device.

    Raises:
        EngineError: when the device cannot be reached, or leaves no answer to this request.
    """
    control = Devicectl(udid)
    name = control.device().device_properties.name or udid
    asked = Request(
        nonce=secrets.token_hex(16),
        manifest_sha256=manifest_sha256,
        cases=cases,
        draws=draws(cases),
        runs=runs,
    )
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "request.json"
        request.write_bytes(msgspec.json.encode(asked))
        log.info("copying %s to %s", bundle.root.name, name)
        control.copy_to(bundle.root, f"{FOLDER}/bundle")
        control.copy_to(request, f"{FOLDER}/request.json")
        control.launch("--request", "flashbulb/request.json")
        answer = read_answer(control.copy_from(f"{FOLDER}/answer.json", Path(folder) / "answer.json"), asked)
        tensors: Tensors = {}
        if asked.cases:
            there, here = f"{FOLDER}/answer.safetensors", Path(folder) / "answer.safetensors"
            tensors = read_tensors(control.copy_from(there, here), answer)
    return Exchanged(asked, _named(answer, udid), tensors)


def _named(answer: Answer, udid: str) -> Answer:
    """Name the device in the label of every record, as other devices do."""
    told = answer.device.attributes | {"udid": udid}
    latency = (msgspec.structs.replace(r, engine=f"{r.engine}@{udid}") for r in answer.latency)
    device = msgspec.structs.replace(answer.device, attributes=told)
    return msgspec.structs.replace(answer, device=device, latency=tuple(latency))


def read_answer(file: Path, asked: Request) -> Answer:
    """Read an answer and hold it to its request.

    Raises:
        EngineError: when it is none, or that to another request or bundle, or of no such device.
    """
    try:
        answer = decode(read_small(file), Answer)
    except (OSError, UntrustedError) as error:
        raise EngineError(f"wanted the app's answer, got: {error}") from error
    for field in ("version", "nonce", "manifest_sha256"):
        if getattr(answer, field) != getattr(asked, field):
            raise EngineError(f"wanted an answer to this request, got another {field}; start it again")
    if answer.device.kind != "ios":
        raise EngineError(f"wanted an answer of a device of kind ios, got {answer.device.kind}")
    for field, most in (("cores", MOST_CORES), ("memory_bytes", MOST_MEMORY_BYTES)):
        if not 1 <= (value := getattr(answer.device, field)) <= most:
            raise EngineError(f"wanted {field} of the device from 1 to {most}, got {value}")
    return answer


def read_tensors(file: Path, answer: Answer) -> Tensors:
    """Read the tensors of an answer; which they are is asked when they are used.

    Raises:
        EngineError: when the file is none, or not the one that the answer is about.
    """
    from safetensors.numpy import load_file

    try:
        header = safetensors_header(file)
        size = file.stat().st_size
    except (OSError, UntrustedError) as error:
        raise EngineError(f"wanted the app's tensors, got: {error}") from error
    if size > MOST_TENSOR_BYTES:
        raise EngineError(f"wanted at most {MOST_TENSOR_BYTES} bytes of tensors, got {size}")
    if odd := sorted(f"{name[:80]} {t.dtype}" for name, t in header.items() if t.dtype not in DTYPES):
        raise EngineError(f"wanted the app's tensors as {' or '.join(DTYPES)}, got {odd[0]}")
    if (got := file_sha256(file)) != answer.tensors_sha256:
        raise EngineError(f"wanted tensors of SHA-256 {answer.tensors_sha256}, got {got}; start it again")
    return load_file(file)
