"""An engine that opens again only what changed, and runs again only what it has not run before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.engines.base import Array, Engine, Session

Call = tuple[str, str, str]
"""What ran: engine and contents, component, digest of its inputs."""


class Memory:
    """Sessions and results of the clean bundle, and those of the mutant at hand."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.results: dict[Call, Sequence[Array]] = {}
        self.fresh: dict[Call, Sequence[Array]] = {}
        self.clean = True
        self.seen: dict[tuple[str, str, str], str] = {}
        """Engine, component and inputs -> digest of the outputs, of the calls since `start`."""

    def start(self) -> None:
        """Forget the mutant before."""
        self.fresh, self.seen = {}, {}

    def session(
        self, engine: Engine, bundle: Bundle, name: str, artifact: Artifact, threads: int
    ) -> tuple[str, Session]:
        """Return a session of one component and the key of its contents."""
        key = f"{engine.label} {_key(artifact)}"
        if key in self.sessions:
            return key, self.sessions[key]
        found = engine.load(bundle, threads=threads, components=(name,))
        if self.clean:
            self.sessions[key] = found
        return key, found

    def run(self, key: str, session: Session, component: str, arrays: Sequence[Array]) -> Sequence[Array]:
        """Run one component, or return what it gave before."""
        inputs = digest(arrays)
        call = (key, component, inputs)
        found = self.results.get(call) or self.fresh.get(call)
        if found is None:
            found = session.call(component, arrays)
            (self.results if self.clean else self.fresh)[call] = found
        self.seen[key.split(" ", 1)[0], component, inputs] = digest(found)
        return found


def digest(arrays: Sequence[Array]) -> str:
    """Return one digest of the bits of some arrays."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _key(artifact: Artifact) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(artifact, seconds=None))).hexdigest()


class Reusing(Engine, frozen=True, tag="reusing"):
    """Another engine, seen through a memory."""

    inner: Any
    """What runs."""
    memory: Any
    """What is known already."""

    @property
    def name(self) -> str:
        """The inner engine's."""
        return str(self.inner.name)

    @property
    def backend(self) -> str:
        """The inner engine's."""
        return str(self.inner.backend)

    @property
    def label(self) -> str:
        """The inner engine's."""
        return str(self.inner.label)

    def holds(self, bundle: Bundle) -> tuple[str, ...]:
        """The inner engine's."""
        found: tuple[str, ...] = self.inner.holds(bundle)
        return found

    def load(self, bundle: Bundle, *, threads: int = 1, components: Sequence[str] | None = None) -> Session:
        """Open each component by itself."""
        if self.inner.backend == "eager":
            return self._eager(bundle, threads)
        artifacts = self.inner.artifacts(bundle, components)
        parts = {
            name: self.memory.session(self.inner, bundle, name, artifact, threads)
            for name, artifact in artifacts.items()
        }
        return Joined(self, artifacts, parts, self.memory)

    def _eager(self, bundle: Bundle, threads: int) -> Session:
        """PyTorch depends on the checkpoint and on the manifest's numbers, not on any file."""
        from flashbulb.runtimes.engines.base import EngineError

        manifest = bundle.manifest
        numbers = (manifest.sampling, manifest.source, manifest.tokenizers, manifest.image, manifest.noise)
        key = "eager " + hashlib.sha256(msgspec.json.encode(numbers)).hexdigest()
        if key not in self.memory.sessions:
            found = self.inner.load(bundle, threads=threads)
            if not self.memory.clean:
                return found
            self.memory.sessions[key] = found
        session: Session = self.memory.sessions[key]
        if set(session.components) != set(self.inner.holds(bundle)):
            raise EngineError(f"wanted {self.inner.holds(bundle)} of eager, it has {session.components}")
        return Joined(self, session.artifacts, dict.fromkeys(session.components, (key, session)), self.memory)


class Joined(Session):
    """Sessions of one component each, as one."""

    def __init__(
        self,
        engine: Engine,
        artifacts: Mapping[str, Artifact],
        parts: Mapping[str, tuple[str, Session]],
        memory: Memory,
    ) -> None:
        super().__init__(engine, artifacts)
        self.parts, self.memory = dict(parts), memory

    def call(self, component: str, arrays: Sequence[Array]) -> Sequence[Array]:
        """Run one component, or remember."""
        return self.memory.run(*self.parts[component], component, arrays)

    def not_finite(self, component: str) -> tuple[int, str] | None:
        """Return what the inner session saw."""
        return self.parts[component][1].not_finite(component)
