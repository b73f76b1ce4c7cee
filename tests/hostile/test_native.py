"""A program on which a runtime ends its process fails the check; it does not end it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flashbulb.export.artifact import digest, records
from flashbulb.export.bundle import Bundle, read_bundle, write_manifest
from flashbulb.runtimes import inspection
from flashbulb.runtimes.choice import Choice
from flashbulb.runtimes.engines import Executorch
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.inspection import Inspection
from flashbulb.runtimes.listing_gates import unopened_gate
from flashbulb.runtimes.probe import probe

CORPUS = Path(__file__).parent / "corpus"
ENDS = 1816
"""Where a number too large makes ExecuTorch's bindings end the process with SIGABRT."""


@pytest.fixture
def sample(bundle: Bundle) -> Any:
    """Write a bundle whose one program is the small network, or a broken one."""

    def make(change: bytes = b"") -> Bundle:
        data = bytearray((CORPUS / "anatomy-pte/ok-sound.pte").read_bytes())
        data[ENDS : ENDS + len(change)] = change
        path = bundle.root / "executorch/generator.pte"
        path.parent.mkdir()
        path.write_bytes(data)
        (found,) = [a for a in bundle.manifest.artifacts if a.component == "generator"]
        files = records(path, bundle.root)
        program = msgspec.structs.replace(
            found, backend="executorch", format="pte", path="executorch/generator.pte", method="forward",
            files=files, sha256=digest(files), size_bytes=len(data),
        )  # fmt: skip
        write_manifest(msgspec.structs.replace(bundle.manifest, artifacts=(program,)), bundle.root)
        return read_bundle(bundle.root)

    return make


def test_a_program_that_ends_the_process_is_refused_by_a_process_of_its_own(sample: Any) -> None:
    pytest.importorskip("executorch")
    broken = sample(struct.pack("<I", 2**32 - 4))
    with pytest.raises(EngineError, match=r"they end the process that loads them: .* ended with -6"):
        probe(broken, Executorch(), 1)


def test_a_sound_program_is_loaded_once_and_the_process_ends(sample: Any) -> None:
    pytest.importorskip("executorch")
    probe(sample(), Executorch(), 1)


class Untouched(Executorch, frozen=True, tag="executorch"):
    """An engine that must not be asked to open anything."""

    def load(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("it was opened")


@pytest.mark.parametrize("readable", [True, False])
def test_no_engine_opens_what_our_reader_refused(
    sample: Any, monkeypatch: pytest.MonkeyPatch, readable: bool
) -> None:
    """Either the reader or the process of its own refuses, and then nothing is opened here."""
    made, told = sample(), []

    def refuse(*_: Any) -> None:
        told.append("probed")
        raise EngineError("it ended")

    unread = [] if readable else [unopened_gate("generator.pte", ValueError("it is cut"))]
    monkeypatch.setattr(inspection, "bundle_gates", lambda *_: [])
    monkeypatch.setattr(inspection, "program_gates", lambda *_: unread)
    monkeypatch.setattr(inspection, "probe", refuse)
    asked = Inspection(made, Choice(engines=(Untouched(),), refusals=()), 1)
    (record,) = asked.records("executorch")
    assert (record.gate, record.verdict) == ("load", "fail")  # type: ignore[union-attr]
    assert ("it ended" if readable else "generator.pte cannot be taken apart: it is cut") in record.sentence
    with pytest.raises(EngineError, match=r"it ended|it is cut"):
        asked.session("executorch")
    assert told == ["probed"] * readable
