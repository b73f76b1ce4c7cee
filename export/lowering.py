"""Lower a checkpoint with several backends, in one process or in several, and continue after a kill."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.export.artifact import Artifact, file_sha256

if TYPE_CHECKING:
    from flashbulb.compress.encoding import EncodedTensor
    from flashbulb.distill.schedule import OneStep

STATE = ".state"
TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxruntime", "executorch", "coremltools")
Say = Callable[[int, str], None]
"""Called with the number of tasks done and what begins."""


class Task(msgspec.Struct, frozen=True):
    """One unit of resumable lowering: a backend with the components that go into one file."""

    backend: Any
    components: tuple[str, ...]

    def label(self) -> str:
        """Say what is being done."""
        return f"{self.backend.name}: {', '.join(self.components)}"


def plan(backends: Sequence[Any], checkpoint: Checkpoint) -> list[Task]:
    """List what will be lowered, in order."""
    tasks = []
    for backend in backends:
        names = (*checkpoint.components(), *(("generator",) if backend.generator else ()))
        groups = [names] if backend.together else [(n,) for n in names]
        tasks += [Task(backend, group) for group in groups]
    return tasks


def lower_all(
    tasks: Sequence[Task], checkpoint: Checkpoint, step: OneStep, root: Path, *, jobs: int, say: Say
) -> list[Artifact]:
    """Run every task that an earlier, killed run has not finished; artifacts come back in order."""
    source = checkpoint.sha256()
    groups = _by_backend(tasks)
    if jobs == 1 or len(groups) == 1:
        begun = iter(range(len(tasks)))

        def tell(what: str) -> None:
            say(next(begun), what)

        done = [lower_group(g, checkpoint, step, root, source, tell) for g in groups]
    else:
        done = _in_processes(groups, checkpoint, step, root, source, jobs, say)
    return [artifact for group in done for artifact in group]


def _by_backend(tasks: Sequence[Task]) -> list[list[Task]]:
    groups: list[list[Task]] = []
    for task in tasks:
        if groups and groups[-1][0].backend == task.backend:
            groups[-1].append(task)
        else:
            groups.append([task])
    return groups


def _in_processes(
    groups: list[list[Task]],
    checkpoint: Checkpoint,
    step: OneStep,
    root: Path,
    source: str,
    jobs: int,
    say: Say,
) -> list[list[Artifact]]:
    """Give each backend a process; a single program takes longest, so those begin first."""
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    order = sorted(groups, key=lambda g: not g[0].backend.together)
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_begin, initargs=(_levels(),)
    ) as pool:
        futures = {pool.submit(_work, g, str(checkpoint.path), step, str(root), source): g for g in order}
        say(0, ", ".join(g[0].backend.name for g in order))
        finished = 0
        for future in as_completed(futures):
            finished += len(futures[future])
            future.result()
            say(finished, f"{futures[future][0].backend.name} is done")
        found = {id(g): f.result() for f, g in futures.items()}
    return [found[id(g)] for g in groups]


def _levels() -> dict[str, int]:
    """Return the levels of all loggers that have one of their own."""
    found = {n: g for n, g in logging.root.manager.loggerDict.items() if isinstance(g, logging.Logger)}
    return {name: logger.level for name, logger in found.items() if logger.level}


def _begin(levels: dict[str, int]) -> None:
    """Make a worker process as quiet as its parent, and mortal with it."""
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    _die_with_parent()


def _die_with_parent() -> None:
    """End this process soon after its parent is killed, so that a new run is alone with the files."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(tasks: list[Task], checkpoint: str, step: OneStep, root: str, source: str) -> list[Artifact]:
    return lower_group(tasks, Checkpoint.open(checkpoint), step, Path(root), source, lambda what: None)


def lower_group(
    tasks: Sequence[Task],
    checkpoint: Checkpoint,
    step: OneStep,
    root: Path,
    source: str,
    say: Callable[[str], None],
) -> list[Artifact]:
    """Run the tasks of one backend, which share their graphs."""
    from flashbulb.export.encodings import read

    encoded = read(checkpoint.path)
    found: list[Artifact] = []
    graphs: dict[str, Any] = {}
    for task in tasks:
        say(task.label())
        state = root / STATE / f"{_key(task, source, step)}.json"
        done = _finished(state, root)
        if done is None:
            done = _lower(task, checkpoint, step, encoded, root, graphs)
            state.parent.mkdir(parents=True, exist_ok=True)
            temporary = state.with_suffix(".tmp")
            temporary.write_bytes(msgspec.json.encode(done))
            temporary.replace(state)
        found += done
    return found


def _lower(
    task: Task,
    checkpoint: Checkpoint,
    step: OneStep,
    encoded: dict[str, EncodedTensor],
    root: Path,
    graphs: dict[str, Any],
) -> tuple[Artifact, ...]:
    """Lower one task; the graphs are built when the first task needs them."""
    from flashbulb.export.graph import build

    if not graphs:
        graphs |= {g.component: g for g in build(checkpoint, step, task.backend.rewrite())}
    chosen = [graphs[n] for n in task.components]
    lowered: tuple[Artifact, ...] = task.backend.lower(chosen, encoded, root)
    return lowered


def _key(task: Task, source: str, step: OneStep) -> str:
    """Name a task by everything that its result depends on."""
    parts = [source, msgspec.json.encode(step).decode(), msgspec.json.encode(task.backend).decode()]
    parts += [*task.components, *(f"{k}={v}" for k, v in versions().items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _finished(state: Path, root: Path) -> tuple[Artifact, ...] | None:
    """Return what an earlier run wrote, if every byte is still there."""
    if not state.is_file():
        return None
    try:
        done = msgspec.json.decode(state.read_bytes(), type=tuple[Artifact, ...])
    except msgspec.DecodeError:
        return None
    files = [f for a in done for f in a.files]
    whole = all((root / f.path).is_file() and file_sha256(root / f.path) == f.sha256 for f in files)
    return done if whole else None


def versions() -> dict[str, str]:
    """Return the versions of the installed tools."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
