"""Draw and measure: what is known of each picture of a checkpoint, from which all figures are computed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from flashbulb.distill.metrics.detail import diversity, high_frequency_ratio, sharpness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch

    from flashbulb.distill.checkpoint import Checkpoint
    from flashbulb.distill.data.stickers import Stickers
    from flashbulb.distill.metrics.clip_score import ClipScorer
    from flashbulb.distill.metrics.judge import Judge
    from flashbulb.distill.metrics.prompts import Prompts
    from flashbulb.distill.metrics.stage import EvalConfig

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]
Array = TypeVar("Array", Features, Floats)
ARRAYS = ("scores", "repeated", "features", "real", "floor")
LOOKED_AT = 64
"""Pictures that are kept as numbers at a time."""
REPEATED_CAPTIONS = 32
"""Captions of which several pictures are drawn for the diversity."""


@dataclass(frozen=True)
class Evaluation:
    """Measurements of every picture; the figures are in `flashbulb.distill.metrics.figures`."""

    captions: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: dict[str, Floats]
    """Figure -> (seeds, prompts), of which it is the mean."""
    repeated: dict[str, Floats] = field(default_factory=dict)
    """Figure -> (seeds, captions), where a caption was drawn several times."""
    features: dict[str, Features] = field(default_factory=dict)
    """Network -> features (seeds, prompts, d)."""
    real: dict[str, Features] = field(default_factory=dict)
    """Network -> features of real pictures (m, d)."""
    floor: dict[str, Features] = field(default_factory=dict)
    """Network -> features of as many other real pictures."""
    paired: bool = False
    """Whether real picture i belongs to prompt i, so that they are resampled together."""
    real_scores: dict[str, float] = field(default_factory=dict)
    """Figure -> what real pictures reach."""

    def save(self, file: Path) -> None:
        """Write everything into one ``.npz``, through a temporary name."""
        arrays = {f"{kind}/{k}": v for kind in ARRAYS for k, v in getattr(self, kind).items()}
        plain = {k: getattr(self, k) for k in ("captions", "seeds", "paired", "real_scores")}
        temporary = file.with_name(f".{file.name}.partial.npz")
        np.savez_compressed(temporary, plain=np.array(json.dumps(plain)), **arrays)
        temporary.replace(file)

    @classmethod
    def load(cls, file: Path) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            ValueError: when there is no such file.
        """
        if not file.is_file():
            raise ValueError(
                f"wanted the folder of an earlier eval with {file.name} in it, got {file.parent}"
            )
        with np.load(file, allow_pickle=False) as found:
            plain = json.loads(str(found["plain"]))
            arrays: dict[str, Any] = {kind: {} for kind in ARRAYS}
            for name in found.files:
                kind, _, key = name.partition("/")
                if key:
                    arrays[kind][key] = found[name]
        plain |= {"captions": tuple(plain["captions"]), "seeds": tuple(plain["seeds"])}
        return cls(**plain, **arrays)


@dataclass(frozen=True)
class Examiner:
    """The networks that look at pictures, loaded once for many checkpoints."""

    networks: dict[str, Callable[[torch.Tensor], Features]]
    """Name -> features (n, d) of pictures in [-1, 1]."""
    data: Stickers | None = None
    judge: Judge | None = None
    """With ``data``: in the sticker world only."""
    clip: ClipScorer | None = None

    @classmethod
    def open(cls, config: EvalConfig) -> Examiner:
        """Load what ``config`` asks for.

        Raises:
            ValueError: for Inception weights or a CLIP that cannot be read.
            MissingExtra: when the judge's network is not installed.
        """
        from flashbulb.distill.metrics.clip_score import ClipScorer
        from flashbulb.distill.metrics.inception import Inception
        from flashbulb.distill.metrics.judge import Eyes, Judge

        device = chosen_device(config.device)
        clip = ClipScorer(config.clip, device) if config.clip else None
        inception = Inception.open(config.inception, device) if config.inception else None
        networks: dict[str, Any] = {"judge": Eyes(device)}
        if inception is not None:
            networks["inception"] = lambda pictures: inception(pictures).numpy()
        if config.prompts:
            return cls(networks, clip=clip)
        from flashbulb.distill.data.stickers import Stickers

        data = Stickers()
        return cls(networks, data, Judge(data, networks["judge"]), clip)


@dataclass(frozen=True)
class Reference:
    """Prompts, and what is known of their real pictures; the same for every checkpoint that is asked."""

    prompts: Prompts
    real: dict[str, Features]
    floor: dict[str, Features]
    scores: dict[str, float]
    """Figure -> what real pictures reach."""

    @classmethod
    def of(cls, prompts: Prompts, examiner: Examiner) -> Reference:
        """Look at the real pictures of ``prompts``."""
        real, scores = _real(examiner, prompts)
        floor = {} if prompts.floor is None else _joined([_look(examiner, p) for p in parts(prompts.floor)])
        return cls(prompts, real, floor, scores)


def evaluate(
    checkpoint: Checkpoint,
    config: EvalConfig,
    examiner: Examiner,
    *,
    reference: Reference | None = None,
    on_pictures: Callable[[torch.Tensor], object] | None = None,
) -> Evaluation:
    """Draw ``config.seeds`` sets of pictures and measure every picture.

    Args:
        checkpoint: what draws.
        config: how it draws; ``config.checkpoint`` plays no part.
        examiner: what looks.
        reference: what is asked for; by default what ``config`` says. Make it once for many checkpoints.
        on_pictures: called with the pictures (n, 3, h, w) of each seed, some at a time.
    """
    from flashbulb.distill.metrics.stage import drawn, open_prompts

    if reference is None:
        prompts = open_prompts(config, examiner.data, checkpoint.image_size)
        reference = Reference.of(prompts, examiner)
    prompts = reference.prompts
    repeated = [c for c in prompts.captions[:REPEATED_CAPTIONS] for _ in range(config.per_caption)]
    seeds = tuple(config.seed + 2 * i for i in range(config.seeds))
    scores, features, diversities = [], [], []
    for seed in seeds:
        pictures = together(drawn(checkpoint, list(prompts.captions), config, seed=seed))
        looked, measured = examine(examiner, prompts, pictures, on_pictures=on_pictures)
        features.append(looked)
        scores.append(measured)
        again = together(drawn(checkpoint, repeated, config, seed=seed + 1))
        judged = np.concatenate([examiner.networks["judge"](part) for part in again])
        diversities.append(diversity(judged, repeated))
    return Evaluation(
        captions=prompts.captions,
        seeds=seeds,
        scores={name: np.stack([s[name] for s in scores]) for name in scores[0]},
        repeated={"diversity": np.stack(diversities)},
        features={name: np.stack([f[name] for f in features]) for name in features[0]},
        real=reference.real,
        floor=reference.floor,
        paired=prompts.paired,
        real_scores=reference.scores,
    )


def examine(
    examiner: Examiner,
    prompts: Prompts,
    pictures: Iterable[torch.Tensor],
    *,
    real: bool = False,
    on_pictures: Callable[[torch.Tensor], object] | None = None,
) -> tuple[dict[str, Features], dict[str, Floats]]:
    """Return features and measurements of pictures, one a prompt, that come some at a time."""
    features, found, done = [], [], 0
    for part in pictures:
        features.append(_look(examiner, part))
        asked = prompts.part(done, done + len(part))
        found.append(measure(examiner, asked, part, features[-1]["judge"], real=real))
        done += len(part)
        if on_pictures is not None:
            on_pictures(part)
    return _joined(features), _joined(found)


def parts(pictures: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield pictures (n, 3, h, w), in [-1, 1] or bytes, as numbers in [-1, 1], some at a time."""
    import torch

    for part in pictures.split(LOOKED_AT):
        yield part.float() / 127.5 - 1 if part.dtype == torch.uint8 else part


def together(pictures: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Join consecutive pictures until as many are together as networks look at."""
    import torch

    waiting: list[torch.Tensor] = []
    for part in pictures:
        waiting.append(part)
        if sum(map(len, waiting)) >= LOOKED_AT:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def measure(
    examiner: Examiner, prompts: Prompts, pictures: torch.Tensor, judged: Features, *, real: bool = False
) -> dict[str, Floats]:
    """Measure pictures (n, 3, h, w), one a prompt, whose judge features (n, d) are known."""
    from flashbulb.distill.metrics.judge import background_of

    found: dict[str, npt.NDArray[Any]] = {}
    if examiner.judge is not None and prompts.stickers:
        found |= examiner.judge.outcomes(judged, prompts.stickers, real=real)
        pairs = zip(background_of(pictures), prompts.backgrounds, strict=True)
        found["background"] = np.array([seen == asked for seen, asked in pairs])
    if examiner.clip is not None:
        found["clip_score"] = examiner.clip(pictures, prompts.captions)
    found |= {"sharpness": sharpness(pictures), "high_frequency": high_frequency_ratio(pictures)}
    return {name: np.asarray(values, np.float64) for name, values in found.items()}


def _look(examiner: Examiner, pictures: torch.Tensor) -> dict[str, Features]:
    return {name: network(pictures) for name, network in examiner.networks.items()}


def _joined(found: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: cast(Array, np.concatenate([part[name] for part in found])) for name in found[0]}


def _real(examiner: Examiner, prompts: Prompts) -> tuple[dict[str, Features], dict[str, float]]:
    """Return the features of real pictures and what they reach: in detail, and in all if of the captions."""
    if prompts.real is None:
        return {}, {}
    detail = Examiner(examiner.networks)
    judges = examiner if prompts.paired else detail
    features, found = examine(judges, prompts, parts(prompts.real), real=True)
    return features, {name: float(values.mean()) for name, values in found.items()}


def chosen_device(name: str) -> torch.device:
    """Return the device that ``name`` means: by default a GPU where there is one.

    Raises:
        ValueError: for no device, or a GPU where there is none.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    try:
        device = torch.device(name or ("cuda" if has_gpu else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"wanted a device such as cpu, cuda or cuda:1, got {name!r}") from error
    if device.type == "cuda" and not has_gpu:
        raise ValueError(f"wanted {name!r}, but PyTorch sees no GPU here; say cpu, or nothing")
    return device
