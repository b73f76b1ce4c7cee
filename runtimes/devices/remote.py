"""An engine on another machine: the bundle's files, opened there by a runner."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.devices.wire import Link, LinkLost
from flashbulb.runtimes.engines import Executorch, Ort
from flashbulb.runtimes.engines.base import Array, Engine, Session

log = logging.getLogger(__name__)

T = TypeVar("T")


class Launcher(ABC):
    """Whatever starts runners somewhere.  What they computed is remembered: emulation and cables are slow."""

    retries = 0
    """How often a lost runner is started again for one request."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.features: tuple[str, ...] = ()
        self.runtimes: dict[str, str] = {}
        self.known: dict[tuple[str, str, bytes], Sequence[Array]] = {}
        self._links: dict[tuple[str, str | None], Link] = {}

    @abstractmethod
    def open(self, bundle: Bundle, artifact: Artifact, threads: int) -> Link:
        """Start a runner on one artifact.

        Raises:
            EngineError: when it cannot be started, or the runtime refuses the artifact.
        """

    def recover(self) -> None:  # noqa: B027  most have nothing to do
        """Make ready to start runners again after one was lost."""

    def link(self, bundle: Bundle, artifact: Artifact, threads: int) -> Link:
        """Return the runner of an artifact; started when there is none."""
        key = (artifact.path, artifact.method)
        if key not in self._links:
            self._links[key] = link = self.open(bundle, artifact, threads)
            self.features = link.hello.features
            self.runtimes[artifact.backend] = link.hello.runtime
        return self._links[key]

    def attempt(self, work: Callable[[], T]) -> T:
        """Do some work with runners; when one is lost, end them all and do it anew, a few times.

        Raises:
            LinkLost: when a runner is lost every time.
        """
        for _ in range(self.retries):
            try:
                return work()
            except LinkLost as error:
                log.warning("%s; starting it again", error)
                self.close()
                self.recover()
        return work()

    def close(self) -> None:
        """End all runners."""
        for link in self._links.values():
            link.close()
        self._links.clear()


class Remote(Engine, frozen=True, tag="remote"):
    """Run what another engine runs here, on another machine."""

    inner: Ort | Executorch
    """Which artifacts to open, and how."""
    launcher: Any
    """A `Launcher`."""

    @property
    def name(self) -> str:
        """The word for the engine."""
        return self.inner.name

    @property
    def backend(self) -> str:
        """The backend whose artifacts it opens."""
        return self.inner.backend

    @property
    def label(self) -> str:
        """Engine and place."""
        return f"{self.inner.label}@{self.launcher.where}"

    def format(self, bundle: Bundle) -> Any:
        """The file format to choose."""
        return self.inner.format(bundle)

    def load(
        self, bundle: Bundle, *, threads: int = 1, components: Sequence[str] | None = None
    ) -> RemoteSession:
        """Start one runner per component; the launcher ends them."""
        artifacts = self.artifacts(bundle, components)
        self.launcher.attempt(lambda: [self.launcher.link(bundle, a, threads) for a in artifacts.values()])
        return RemoteSession(self, artifacts, self.launcher, bundle, threads)


class RemoteSession(Session):
    """One runner per component."""

    def __init__(
        self,
        engine: Engine,
        artifacts: Mapping[str, Artifact],
        launcher: Launcher,
        bundle: Bundle,
        threads: int,
    ) -> None:
        super().__init__(engine, artifacts)
        self.launcher, self.bundle, self.threads = launcher, bundle, threads

    def link(self, component: str) -> Link:
        """Return the runner of one component."""
        return self.launcher.link(self.bundle, self.artifacts[component], self.threads)

    def call(self, component: str, arrays: Sequence[Array]) -> Sequence[Array]:
        """Run one component there, unless the same was run before; a lost runner is started again."""
        artifact, known = self.artifacts[component], self.launcher.known
        key = (artifact.path, component, digest(arrays))
        if key not in known:
            feeds = {spec.name: array for spec, array in zip(artifact.inputs, arrays, strict=True)}
            names = [spec.name for spec in artifact.outputs]
            known[key] = self.launcher.attempt(lambda: self.link(component).run(feeds, names))
        return known[key]


def digest(arrays: Sequence[Array]) -> bytes:
    """Return what tells inputs apart: their dtypes, shapes and values."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype} {array.shape} ".encode())
        found.update(array.tobytes())
    return found.digest()
