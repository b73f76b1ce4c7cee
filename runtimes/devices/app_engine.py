"""An app's answer as an engine: what it computed elsewhere passes the gates of every engine here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flashbulb.export.artifact import Artifact
from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.devices.exchange import Request, Tensors
from flashbulb.runtimes.devices.remote import digest
from flashbulb.runtimes.engines.base import Array, Engine, EngineError, Session
from flashbulb.runtimes.pipeline import Pipeline


class App(Engine, frozen=True, tag="coreml"):
    """The Core ML programs as an app ran them, with one kind of compute units."""

    units: str
    """Kind of compute units."""
    udid: str
    """Where it ran."""
    asked: Request
    """What it was asked."""
    tensors: Any
    """What it computed, by name."""

    @property
    def label(self) -> str:
        """Engine, units and place."""
        return f"{self.name}@{self.units}@{self.udid}"

    def load(
        self, bundle: Bundle, *, threads: int = 1, components: Sequence[str] | None = None
    ) -> AppSession:
        """Assign each answer to the inputs that it is of, in the order in which they were asked.

        Raises:
            EngineError: naming the first tensor that the app left out.
        """
        session = AppSession(self, self.artifacts(bundle, components), self.tensors)
        pipeline, golden = Pipeline(bundle, session), bundle.golden()
        held = session.components
        for index in range(self.asked.cases):
            session.place = f"{self.units}/golden/{index}"
            given = {"sample": pipeline.sample(golden[index]["noise"]), **golden[index]}
            for component in held:
                session.run(component, given)
        chained = {"text_encoder", "unet", "vae_decoder"} <= set(held)
        for prompt, noise in self.asked.draws:
            session.place = f"{self.units}/draw/{prompt}-{noise}"
            ids = {t.input: golden[prompt][t.input] for t in bundle.manifest.tokenizers}
            if chained:
                pipeline.trace(ids, golden[noise]["noise"])
            if "generator" in held and prompt != noise:
                pipeline.generate(ids, golden[noise]["noise"])
        session.place = ""
        return session


class AppSession(Session):
    """What an app computed, by the inputs that it was asked about."""

    def __init__(self, engine: Engine, artifacts: Mapping[str, Artifact], tensors: Tensors) -> None:
        super().__init__(engine, artifacts)
        self.tensors, self.place = tensors, ""
        self.known: dict[tuple[str, bytes], Sequence[Array]] = {}

    def call(self, component: str, arrays: Sequence[Array]) -> Sequence[Array]:
        """Return what the app answered about these inputs."""
        key = (component, digest(arrays))
        if key not in self.known:
            self.known[key] = [self._given(component, s.name) for s in self.artifacts[component].outputs]
        return self.known[key]

    def _given(self, component: str, tensor: str) -> Array:
        name = f"{self.place}/{component}/{tensor}"
        if not self.place or name not in self.tensors:
            what = name if self.place else f"{component} on inputs that nobody asked about"
            raise EngineError(f"wanted every answer of the app, it left out {what}")
        return self.tensors[name]
