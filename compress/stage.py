"""The compress stage: a checkpoint in, a checkpoint with fewer channels or fewer bits per weight out."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from flashbulb.compress.encoding import (
    FOLDERS,
    PLAN_FILE,
    EncodedTensor,
    EncodingError,
    check_current,
    layer_key,
    split_key,
    write_plan,
)
from flashbulb.compress.methods import AnyMethod, Palettize
from flashbulb.compress.methods.channels import ChannelPrune
from flashbulb.compress.selection import Choice, Layer, choose
from flashbulb.compress.sensitivity import Probe, Response
from flashbulb.distill.checkpoint import CODES_FILE, Checkpoint, replace_folder, stored_dtype
from flashbulb.distill.guidance import fold_scale

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

OnStep = Callable[[int, int, str], None]
"""Called as ``on_step(done, total, what)`` before each part of the work."""

RESPONSE_FILE = "sensitivity.json"
PROMPTS = (
    "a glossy red apple on a pink background",
    "a flat blue whale on a white background",
    "a cartoon green frog on a yellow background",
    "a minimal house on a blue background",
)


class CompressConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is made smaller, and how far the picture may change."""

    checkpoint: str = "embedded:student"
    """A diffusers folder, a Hub id, embedded:teacher or embedded:student."""
    out: str = "runs/compress"
    """The new checkpoint folder."""
    guidance: Annotated[float, msgspec.Meta(ge=1)] | None = None
    """For a UNet that takes the guidance scale as an input (guided-1, guided-2, lcm): the scale g that it
    keeps. It becomes a bias, and the result a UNet like any other, which can be exported."""
    prune: ChannelPrune | None = None
    """Remove channels of the UNet first; quality needs training afterwards, so off by default."""
    default: AnyMethod | None = Palettize(bits=6)
    """For Linear and Conv weights that nothing below names."""
    by_kind: dict[str, AnyMethod | None] = {}
    """linear, conv, or a component name -> method; null leaves floats. The later entry wins."""
    by_name: dict[str, AnyMethod | None] = {}
    """Layer key or pattern such as ``unet/*.attn2.*`` -> method; null leaves floats. The floor
    does not apply to what is named here, but to the whole result."""
    min_weights: Annotated[int, msgspec.Meta(ge=1)] = 4096
    """Smaller weights stay floats unless named exactly."""
    floor_psnr_db: float | None = 30.0
    """The picture's PSNR against the uncompressed one may not fall below: the parts that respond most stay
    floats, until it holds. Null encodes all that is chosen."""
    probe: Literal["layer", "component"] = "component"
    """Measure, and leave out, whole components, or single layers: finer, and a picture for each of them."""
    prompts: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = PROMPTS
    """The pictures that are compared."""
    seed: int = 0
    """Seed of their noise."""


def run(config: CompressConfig, *, on_step: OnStep | None = None) -> Path:
    """Compress one checkpoint and return the folder of the new one.

    Raises:
        ValueError: for unknown kinds or names, widths that no config expresses, or a floor that cannot hold.
    """
    say = on_step or _silent
    # 1. read
    say(0, 4, "read the checkpoint")
    parent = Checkpoint.open(config.checkpoint)
    modules = {component: parent.load(FOLDERS[component]) for component in parent.components()}
    touched: set[str] = set()
    if fold_guidance(config, modules):
        touched.add("unet")
    # 2. remove channels
    probe = Probe(parent, modules, config.prompts, config.seed)
    metrics: dict[str, float | int | str] = {}
    if config.prune is not None:
        say(1, 4, "remove channels")
        modules["unet"], pruned = _prune(config.prune, parent, modules, probe, config)
        metrics |= _figures("prune", pruned)
        probe = Probe(parent, modules, config.prompts, config.seed)
        touched.add("unet")
    # 3. encode, and leave out what the picture does not bear
    choices = choose(
        list_layers(modules),
        default=config.default,
        by_kind=config.by_kind,
        by_name=config.by_name,
        min_weights=config.min_weights,
    )
    encoded = {key: _encode(key, choice, modules) for key, choice in choices.items()}
    kept, responses = _keep(config, probe, choices, encoded, say)
    # 4. write
    say(3, 4, "write the checkpoint")
    metrics |= _figures("encode", responses[0]) | _sizes(encoded, kept)
    touched |= {split_key(key)[0] for key in kept}
    _place(kept, modules)
    return _write(config, parent, {c: modules[c] for c in touched}, kept, responses, metrics)


def fold_guidance(config: CompressConfig, modules: dict[str, torch.nn.Module]) -> bool:
    """Put a UNet with its guidance scale folded in into ``modules``, if one is asked for.

    Raises:
        ValueError: when the UNet takes a scale and none is given, or the other way round.
    """
    takes = modules["unet"].config["time_cond_proj_dim"] is not None  # type: ignore[index]
    if takes and config.guidance is None:
        raise ValueError(
            f"{config.checkpoint} takes the guidance scale as an input, which no phone program here has: "
            "give the one to keep, such as guidance: 3.0"
        )
    if config.guidance is None:
        return False
    modules["unet"] = fold_scale(modules["unet"], config.guidance)
    return True


def list_layers(modules: Mapping[str, torch.nn.Module]) -> list[Layer]:
    """Return the weights of all Linear and Conv layers: no embedding, no norm, no bias, no buffer."""
    import torch

    types = {"linear": torch.nn.Linear, "conv": torch.nn.Conv2d}
    found = []
    for component, module in modules.items():
        for name, layer in module.named_modules():
            kind = next((k for k, cls in types.items() if isinstance(layer, cls)), None)
            decodes = component != "vae_decoder" or name.startswith(("decoder.", "post_quant_conv"))
            if kind is not None and decodes:
                key = layer_key(component, f"{name}.weight")
                found.append(
                    msgspec.convert({"key": key, "type": kind, "count": layer.weight.numel()}, Layer)
                )
    return found


def _encode(key: str, choice: Choice, modules: Mapping[str, torch.nn.Module]) -> EncodedTensor:
    component, name = split_key(key)
    try:
        return choice.method.encode(modules[component].get_parameter(name).detach().numpy())
    except EncodingError as error:
        raise EncodingError(f"{key}: {error}") from error


def _keep(
    config: CompressConfig,
    probe: Probe,
    choices: Mapping[str, Choice],
    encoded: Mapping[str, EncodedTensor],
    say: OnStep,
) -> tuple[dict[str, EncodedTensor], list[Response]]:
    """Return what is encoded within the floor, and the records: of the result, then of each unit."""
    forced = [key for key in encoded if choices[key].by_name]
    units = _units(config.probe, [key for key in encoded if key not in forced])
    responses = []
    for index, (name, keys) in enumerate(units.items()):
        say(2, 4, f"measure {name} ({index + 1}/{len(units)})")
        responses.append(_measure(probe, name, keys, encoded))
    order = sorted(responses, key=lambda response: response.robustness, reverse=True)
    ranked = [units[response.name] for response in order]
    count, result = _longest(config, probe, forced, ranked, encoded)
    keys = [*forced, *itertools.chain.from_iterable(ranked[:count])]
    return {key: encoded[key] for key in encoded if key in set(keys)}, [result, *responses]


def _longest(
    config: CompressConfig,
    probe: Probe,
    forced: list[str],
    ranked: list[list[str]],
    encoded: Mapping[str, EncodedTensor],
) -> tuple[int, Response]:
    """Find by bisection how many units, the most robust first, hold the floor together."""

    def measured(count: int) -> Response:
        return _measure(probe, "all", [*forced, *itertools.chain.from_iterable(ranked[:count])], encoded)

    result = measured(len(ranked))
    if config.floor_psnr_db is None or result.passes(config.floor_psnr_db):
        return len(ranked), result
    low, result = 0, measured(0)  # `low` holds the floor, `high` does not
    high = len(ranked)
    if not result.passes(config.floor_psnr_db):
        raise ValueError(
            f"the layers of by_name alone give {result.image_psnr_db} dB, under floor_psnr_db "
            f"{config.floor_psnr_db}: name fewer, give them more bits, or set floor_psnr_db to null"
        )
    while high - low > 1:
        middle = (low + high) // 2
        response = measured(middle)
        low, high, result = (
            (middle, high, response) if response.passes(config.floor_psnr_db) else (low, middle, result)
        )
    log.info("%d of %d units stay floats to hold %s dB", len(ranked) - low, len(ranked), config.floor_psnr_db)
    return low, result


def _measure(probe: Probe, name: str, keys: list[str], encoded: Mapping[str, EncodedTensor]) -> Response:
    labels = sorted({f"{encoded[key].encoding.kind}{encoded[key].encoding.bits}" for key in keys})
    return probe.response(name, "+".join(labels), {key: encoded[key].decode() for key in keys})


def _units(by: Literal["layer", "component"], keys: list[str]) -> dict[str, list[str]]:
    units: dict[str, list[str]] = {}
    for key in keys:
        units.setdefault(key if by == "layer" else split_key(key)[0], []).append(key)
    return units


def _prune(
    prune: ChannelPrune,
    parent: Checkpoint,
    modules: Mapping[str, torch.nn.Module],
    probe: Probe,
    config: CompressConfig,
) -> tuple[torch.nn.Module, Response]:
    """Return the narrower UNet, and what that alone did to the picture."""
    from flashbulb.compress.sensitivity import compare

    unet = prune.apply(modules["unet"])
    after = Probe(parent, {**modules, "unet": unet}, config.prompts, config.seed)
    return unet, compare("unet", "pruned", (probe.x0, probe.image), (after.x0, after.image))


def _figures(name: str, response: Response) -> dict[str, float | int | str]:
    fields = ("x0_snr_db", "image_snr_db", "image_psnr_db")
    values = {f"{name}_{field}": getattr(response, field) for field in fields}
    return {key: value if value is not None else "exact" for key, value in values.items()}


def _sizes(encoded: Mapping[str, EncodedTensor], kept: Mapping[str, EncodedTensor]) -> dict[str, int]:
    """Return counts and bytes; floats are counted as float16, the least that all backends store."""
    return {
        "layers_encoded": len(kept),
        "layers_left_float": len(encoded) - len(kept),
        "encoded_bytes": sum(value.encoding.size_bytes for value in kept.values()),
        "encoded_as_float16_bytes": sum(2 * value.codes.size for value in kept.values()),
    }


def _place(kept: Mapping[str, EncodedTensor], modules: Mapping[str, torch.nn.Module]) -> None:
    """Put the decoded values into the modules."""
    import torch

    for key, value in kept.items():
        component, name = split_key(key)
        modules[component].get_parameter(name).data = torch.from_numpy(value.decode())


def _write(
    config: CompressConfig,
    parent: Checkpoint,
    touched: Mapping[str, torch.nn.Module],
    kept: dict[str, EncodedTensor],
    responses: list[Response],
    metrics: dict[str, Any],
) -> Path:
    """Write everything under a temporary name, check it, rename it."""
    out = Path(config.out)
    temporary = out.with_name(f".{out.name}.compressing")
    parent.derive(
        temporary,
        stage="compress",
        config=msgspec.to_builtins(config),
        replace={FOLDERS[component]: module for component, module in touched.items()},
        metrics=metrics,
        keep_dtype=_fits(parent, kept),
    )
    for stale in (PLAN_FILE, CODES_FILE):
        (temporary / stale).unlink(missing_ok=True)
    if kept:
        write_plan(temporary, kept)
        check_current(temporary)
    (temporary / RESPONSE_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(responses)) + b"\n")
    replace_folder(temporary, out)
    shutil.rmtree(temporary, ignore_errors=True)
    return out


def _fits(parent: Checkpoint, kept: Mapping[str, EncodedTensor]) -> bool:
    """Tell whether decoded values are exact in the parent's dtype: code * scale is not, in float16."""
    scaled = {split_key(key)[0] for key, value in kept.items() if value.scale is not None}
    return all(stored_dtype(parent.path / FOLDERS[component]) == "float32" for component in scaled)


def _silent(done: int, total: int, what: str) -> None:
    """Report nothing."""
