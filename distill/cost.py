"""``flashbulb cost``: what one step of a distillation costs, part by part, each alone and all together.

One step is run and its calls are written down: which network, with what, with or without gradients. Then each
part's calls are made again alone, forward and backward, in turns with whole steps. The unit is the core-ms:
processor time of this process, all its threads together, for one picture of the batch. What else runs on the
machine slows it through shared caches only. On a GPU it is the time between two events around the work, all
of it done: what else runs there does count.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.loop import Rank, State, StepRng
from flashbulb.distill.stage import DistillConfig, make_world

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.objectives.base import Learner, World

log = logging.getLogger(__name__)

NETWORKS = ("student", "teacher", "decode", "critic")
"""The parts whose sum the step is compared with."""
RECORD_FILE = "cost.json"


class CostConfig(DistillConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Measure a step of a distillation; takes the recipes of ``flashbulb distill``."""

    out: str = "runs/cost"
    """Folder for ``cost.json``; nothing is trained there."""
    repeats: Annotated[int, msgspec.Meta(ge=3)] = 15
    """Rounds, each of every part and a whole step; one more comes before them and is not counted."""
    threads: Annotated[int, msgspec.Meta(ge=1)] = 1
    """Threads of PyTorch; more than one add what they wait for each other."""
    max_ratio: Annotated[float, msgspec.Meta(gt=0)] = 1.15
    """Whole step to the sum of its networks alone, above which the figures fail (exit code 1); it is for
    steps of student, teacher, decoder and critic, which have enough of them to hide the rest behind."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One part of a step."""

    name: str
    """``student`` (forward and backward), ``teacher`` (forward), ``decode`` (pictures of latents, backward
    where the step does), ``critic`` (features, heads and losses); then ``data``, ``optimizer``, ``average``
    and ``other``, which is the step less all else."""
    calls: int
    """How often a step calls it."""
    core_ms: float
    """Median processor time, in milliseconds for each picture of the batch."""
    share: float
    """Of the whole step."""


class CostRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a step costs."""

    objective: str
    teacher: str
    device: str
    torch: str
    threads: int
    batch: int
    """Pictures in the batch of one process."""
    repeats: int
    step_core_ms: float
    """Of a whole step and the averaging of the weights behind it, for each picture."""
    parts: tuple[Part, ...]
    """The networks, each alone."""
    rest: tuple[Part, ...]
    """Where the rest of the step goes."""
    sum_core_ms: float
    """Of the networks."""
    ratio: float
    """Whole step to that sum: median over the rounds."""
    ratio_quartiles: tuple[float, float]
    """First and third quartile of the rounds."""
    limit: float = 1.15
    """What the ratio shall not exceed where a critic, a teacher and a decoder take part."""

    @property
    def ok(self) -> bool:
        """Whether the ratio keeps its limit, or the step lacks one of the networks that the limit is for."""
        return self.ratio <= self.limit or not {p.name for p in self.parts if p.calls} >= set(NETWORKS)


class Call(NamedTuple):
    """One call that a step made."""

    part: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    gradients: bool


def run(config: CostConfig) -> CostRecord:
    """Measure, write ``OUT/cost.json`` and return the record."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        record = _measured(config)
    finally:
        torch.set_num_threads(before)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / RECORD_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    return record


def _measured(config: CostConfig) -> CostRecord:
    import torch

    from flashbulb.distill.descent import Descent

    torch.manual_seed(config.loop.seed)
    parent = Checkpoint.open(config.teacher).sized(config.image_size)
    batch = config.loop.batch // config.processes
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder:
        world = recorder.watch_data(
            make_world(_few_pairs(config, folder), parent, Rank(), Descent(config.loop))
        )
    learner = config.objective.learner(world, batch=batch, steps=config.loop.steps)
    state = State(learner.modules, learner.optimizers, averaged=("student",))
    last = config.loop.steps - 1  # behind any warm-up of the objective

    def step() -> None:
        learner.update(last, StepRng(config.loop.seed, last, 0, device=world.device))

    with recorder.watch(world, config.objective):
        step()
    work: dict[str, Callable[[], None]] = {
        name: functools.partial(recorder.replay, name) for name in recorder.parts()
    }
    work |= {
        "step": step,
        "optimizer": lambda: _optimize(learner),  # with the gradients that the step left
        "average": lambda: state.update_ema(config.loop.ema),
    }
    rounds = _time_rounds(work, learner, config.repeats, clock(world.device))
    return _record(config, rounds, recorder, batch, device_name(world.device))


def _few_pairs(config: CostConfig, folder: str) -> DistillConfig:
    """Return a configuration that caches as few teacher pictures as can be drawn from, in ``folder``."""
    from flashbulb.distill.pairs import CHUNK

    objective = config.objective
    if objective.wanted_pairs is not None:
        objective = msgspec.structs.replace(objective, pairs=CHUNK, pair_steps=1)
    return msgspec.structs.replace(config, objective=objective, out=str(Path(folder) / "run"))


def _optimize(learner: Learner) -> None:
    import torch

    for name, optimizer in learner.optimizers.items():
        torch.nn.utils.clip_grad_norm_(learner.modules[name].parameters(), 1.0)
        optimizer.step()


class Recorder:
    """Writes down the calls of one step by part, the outermost of nested ones, and makes them again."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.on, self.depth = False, 0

    def watched(self, part: str | Callable[[Any], str], function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function`` with its calls written down; ``part`` may depend on the first argument."""
        import torch

        def call(*arguments: Any, **keywords: Any) -> Any:
            if self.on and not self.depth:
                name = part if isinstance(part, str) else part(arguments[0])
                self.calls.append(Call(name, function, arguments, keywords, torch.is_grad_enabled()))
            self.depth += 1
            try:
                return function(*arguments, **keywords)
            finally:
                self.depth -= 1

        return call

    def watch_data(self, world: World) -> World:
        """Return the world with its sources of data watched."""
        sources = {"real": world.real} | ({"pairs": world.pairs} if world.pairs is not None else {})
        return msgspec.structs.replace(
            world, **{name: self.watched("data", source) for name, source in sources.items()}
        )

    @contextlib.contextmanager
    def watch(self, world: World, objective: Any) -> Iterator[None]:
        """Write down what is called inside: denoisers, decoder, critics and perceptual distances."""
        from flashbulb.distill import features
        from flashbulb.distill.critic import Critic
        from flashbulb.distill.critic_unet import UnetCritic
        from flashbulb.distill.denoiser import Denoiser
        from flashbulb.distill.objectives.base import World

        def whose(denoiser: Denoiser) -> str:
            return "student" if denoiser is world.student else "teacher"

        targets: list[tuple[Any, str, Any]] = [
            (Denoiser, "__call__", whose),
            (World, "decode", "decode"),
            (UnetCritic, "forward", "critic"),
            (features, "distance", "critic"),
            *((Critic, name, "critic") for name in ("features", "condition", "logits")),
        ]
        if hasattr(type(objective), "critic_loss"):
            targets.append((type(objective), "critic_loss", "critic"))
        with contextlib.ExitStack() as stack:
            for owner, name, part in targets:
                stack.enter_context(_replaced(owner, name, self.watched(part, vars(owner)[name])))
            self.on = True
            try:
                yield
            finally:
                self.on = False

    def parts(self) -> tuple[str, ...]:
        """Return the parts that were called, in order of their first calls."""
        return tuple(dict.fromkeys(call.part for call in self.calls))

    def replay(self, part: str) -> None:
        """Make the calls of a part again, and their backward passes where the step had them."""
        for call in self.calls:
            if call.part == part:
                replay(call)


def replay(call: Call) -> None:
    """Make a call again; gradients go to its inputs if those required any, else to the parameters."""
    import torch

    inputs: list[torch.Tensor] = []

    def fresh(value: Any) -> Any:
        if isinstance(value, list):
            return [fresh(v) for v in value]
        if not isinstance(value, torch.Tensor):
            return value
        copy = value.detach().requires_grad_(value.requires_grad)
        if value.requires_grad:
            inputs.append(copy)
        return copy

    arguments, keywords = [fresh(v) for v in call.arguments], {k: fresh(v) for k, v in call.keywords.items()}
    with torch.set_grad_enabled(call.gradients):
        result = call.function(*arguments, **keywords)
    found = result if isinstance(result, list | tuple) else [result]
    ends = [v for v in found if isinstance(v, torch.Tensor) and v.requires_grad]
    ones = [torch.ones_like(v) for v in ends]
    if ends and inputs:
        torch.autograd.grad(ends, inputs, ones, allow_unused=True)
    elif ends:
        torch.autograd.backward(ends, ones)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    kept = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def clock(device: torch.device) -> Callable[[Callable[[], None]], float]:
    """Return what runs a piece of work and tells its milliseconds: the processor's, or a GPU's."""
    import torch

    def of_processor(function: Callable[[], None]) -> float:
        begun = time.process_time()
        function()
        return 1000 * (time.process_time() - begun)

    def of_gpu(function: Callable[[], None]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        function()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    return of_gpu if device.type == "cuda" else of_processor


def _time_rounds(
    work: dict[str, Callable[[], None]],
    learner: Learner,
    repeats: int,
    milliseconds: Callable[[Callable[[], None]], float],
) -> dict[str, list[float]]:
    """Return the time in ms of each piece of work in each round, after one that does not count."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for number in range(repeats + 1):
        for name, function in work.items():
            if name != "optimizer":
                for module in learner.modules.values():
                    module.zero_grad(set_to_none=True)
            taken = milliseconds(function)
            if number:
                found[name].append(taken)
        log.info("round %d of %d", number, repeats)
    return found


def _record(
    config: CostConfig, rounds: dict[str, list[float]], recorder: Recorder, batch: int, device: str = ""
) -> CostRecord:
    import torch

    rounds = {name: [0.0] * config.repeats for name in (*NETWORKS, "data")} | rounds
    counts = {name: sum(call.part == name for call in recorder.calls) for name in rounds}
    wholes = [a + b for a, b in zip(rounds["step"], rounds["average"], strict=True)]
    sums = [sum(values) for values in zip(*(rounds[name] for name in NETWORKS), strict=True)]
    whole = statistics.median(wholes) / batch
    ratios = [a / b for a, b in zip(wholes, sums, strict=True)]

    def part(name: str, core_ms: float, calls: int = 1) -> Part:
        return Part(name=name, calls=calls, core_ms=core_ms, share=core_ms / whole)

    parts = [part(name, statistics.median(rounds[name]) / batch, counts[name]) for name in NETWORKS]
    rest = [part("data", statistics.median(rounds["data"]) / batch, counts["data"])]
    rest += [part(name, statistics.median(rounds[name]) / batch) for name in ("optimizer", "average")]
    rest.append(part("other", whole - sum(p.core_ms for p in (*parts, *rest))))
    low, _, high = statistics.quantiles(ratios, n=4)
    return CostRecord(
        objective=str(type(config.objective).__struct_config__.tag),
        teacher=config.teacher,
        device=device or _processor(),
        torch=str(torch.__version__),  # its own type is no plain string
        threads=config.threads,
        batch=batch,
        repeats=config.repeats,
        step_core_ms=whole,
        parts=tuple(parts),
        rest=tuple(rest),
        sum_core_ms=sum(p.core_ms for p in parts),
        ratio=statistics.median(ratios),
        ratio_quartiles=(low, high),
        limit=config.max_ratio,
    )


def device_name(device: torch.device) -> str:
    """Return the name of what computes."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()


def _processor() -> str:
    """Return the processor's name where the system tells it, else its architecture."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
