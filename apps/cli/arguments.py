"""Turn the words after a command into its configuration: defaults, then the recipe, then the flags."""

from __future__ import annotations

import contextlib
import io
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


PRESENT = "default"
"""The word that puts a config without a tag into a field that may also hold none."""


class UsageError(ValueError):
    """Something on the command line or in a recipe that its writer can put right."""


class Choice(typing.NamedTuple):
    """A field that holds one of several tagged configs, or a sequence of them."""

    variants: dict[str, type[msgspec.Struct]]
    many: bool
    optional: bool

    def words(self) -> list[str]:
        """Return the values that the flag of this field takes."""
        return [*self.variants, *(["none"] if self.optional else [])]


def read_recipe(file: Path, config: type[msgspec.Struct]) -> msgspec.Struct:
    """Decode a YAML recipe into ``config``; every bound and every unknown field is looked at."""
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"no recipe {str(file)!r}: wanted a YAML file with the fields of {config.__name__}"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"recipe {file} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if content is not None and not isinstance(content, dict):
        raise UsageError(f"recipe {file}: wanted a mapping of fields, got {type(content).__name__}")
    try:
        return _convert(content or {}, config)
    except msgspec.ValidationError as error:
        raise UsageError(f"recipe {file}: {error}; known fields: {', '.join(_names(config))}") from error


def resolve(
    config: type[msgspec.Struct],
    default: msgspec.Struct,
    words: Sequence[str],
    *,
    program: str,
    description: str = "",
) -> msgspec.Struct:
    """Read flags over ``default``, then decode the result once so that its bounds hold.

    ``--field TAG`` chooses the variant of a field that has several; the options of the chosen one
    follow as ``--field.option``.
    """
    import tyro

    choices = dict(find_choices(config))
    default, rest = _choose(default, choices, list(words))
    text = "\n\n".join(filter(None, (description, *_hints(config, choices))))
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(
                config,
                prog=program,
                description=text,
                default=default,
                args=rest,
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise UsageError(f"{_one_line(complaint.getvalue())}; see {program.split(' [')[0]} --help") from None
    try:
        return _convert(msgspec.to_builtins(parsed, enc_hook=_encode), config)
    except msgspec.ValidationError as error:
        raise UsageError(f"{error}") from error


def _hints(config: type[msgspec.Struct], choices: dict[str, Choice]) -> list[str]:
    """Say what the list of flags does not: how variants are chosen, and what only a recipe can hold."""
    flags = [f"--{path.replace('_', '-')} {{{','.join(c.words())}}}" for path, c in choices.items()]
    hints = typing.get_type_hints(config)
    mappings = [name for name, hint in hints.items() if typing.get_origin(hint) is dict]
    said = ["Choices: " + "; ".join(flags)] if flags else []
    return said + (["Only in a recipe: " + ", ".join(mappings)] if mappings else [])


def blank(config: type[msgspec.Struct], **known: Any) -> msgspec.Struct:
    """Return ``config`` with its defaults, ``known`` values, and marks where a value must still be given."""
    import tyro

    fields = msgspec.structs.fields(config)
    unknown = set(known) - {field.name for field in fields}
    if unknown:
        raise UsageError(f"{config.__name__} has no field {', '.join(sorted(unknown))}")
    missing = {field.name: tyro.MISSING for field in fields if field.required and field.name not in known}
    return config(**missing, **known)


def find_choices(config: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, Choice]]:
    """Walk a config type and yield the path of every field that may hold one of several configs, or none."""
    for name, hint in typing.get_type_hints(config).items():
        choice = _as_choice(hint)
        if choice is not None:
            yield prefix + name, choice
        for part in _parts(hint):
            yield from find_choices(part, f"{prefix}{name}.")


def _as_choice(hint: Any) -> Choice | None:
    if typing.get_origin(hint) is tuple:
        inner = _as_choice(typing.get_args(hint)[0])
        return inner and inner._replace(many=True)
    variants = {str(m.__struct_config__.tag or PRESENT): m for m in _structs(hint)}
    optional = types.NoneType in _members(hint)
    if not variants or (list(variants) == [PRESENT] and not optional):
        return None
    return Choice(variants, many=False, optional=optional)


def _parts(hint: Any) -> list[type[msgspec.Struct]]:
    """Return the configs without a tag that a field holds: those have fields of their own to choose for."""
    return [m for m in _structs(hint) if m.__struct_config__.tag is None]


def _structs(hint: Any) -> list[type[msgspec.Struct]]:
    return [m for m in _members(hint) if isinstance(m, type) and issubclass(m, msgspec.Struct)]


def _members(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _choose(
    default: msgspec.Struct, choices: dict[str, Choice], words: list[str]
) -> tuple[msgspec.Struct, list[str]]:
    """Take the flags that name a variant out of ``words`` and put that variant into ``default``."""
    rest: list[str] = []
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        path = flag.removeprefix("--").replace("-", "_")
        if not word.startswith("--") or path not in choices:
            rest.append(word)
            continue
        values = [value] if equals else _take_values(words, many=choices[path].many)
        default = _put(default, path.split("."), flag, choices[path], values)
    return default, rest


def _take_values(words: list[str], *, many: bool) -> list[str]:
    taken: list[str] = []
    while words and not words[0].startswith("--") and (many or not taken):
        taken.append(words.pop(0))
    return taken


def _put(target: Any, path: list[str], flag: str, choice: Choice, values: list[str]) -> Any:
    head, *tail = path
    if target is None:
        raise UsageError(f"{flag} has nothing to set: say {flag.rpartition('.')[0]} {PRESENT} before it")
    current = getattr(target, head)
    if tail:
        return msgspec.structs.replace(target, **{head: _put(current, tail, flag, choice, values)})
    if not values:
        raise UsageError(f"{flag} wants one of {', '.join(choice.words())}, got nothing")
    now = current if isinstance(current, tuple) else (current,)
    chosen = tuple(_variant(value, choice, now, flag) for value in values)
    return msgspec.structs.replace(target, **{head: chosen if choice.many else chosen[0]})


def _variant(value: str, choice: Choice, now: tuple[Any, ...], flag: str) -> Any:
    if value == "none" and choice.optional:
        return None
    if value not in choice.variants:
        raise UsageError(f"{flag} wants one of {', '.join(choice.words())}, got {value!r}")
    kind = choice.variants[value]
    return next((item for item in now if type(item) is kind), None) or blank(kind)


def _convert(content: Any, config: type[msgspec.Struct]) -> msgspec.Struct:
    return msgspec.convert(content, config, strict=False, dec_hook=_decode)


def _encode(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"a configuration cannot hold a {type(value).__name__}")


def _decode(kind: type, value: Any) -> Any:
    if issubclass(kind, Path):
        return Path(value)
    raise NotImplementedError(f"a configuration cannot hold a {kind.__name__}")


def _names(config: type[msgspec.Struct]) -> list[str]:
    return [field.name for field in msgspec.structs.fields(config)]


def _one_line(text: str) -> str:
    """Flatten the box that the parser draws around an error, and keep its message."""
    lines = [line.strip("╭╮╰╯│─ \t") for line in text.splitlines()]
    kept: list[str] = []
    for line in filter(None, lines[1:]):
        if line.startswith(("For full helptext", "Argument helptext")):
            break
        kept.append(line)
    if kept and kept[0].startswith("Missing from"):
        return _missing(kept)
    return " ".join(kept).rstrip(".") or "the flags cannot be read"


def _missing(lines: list[str]) -> str:
    """Say which flags are wanted and which are unknown, without their descriptions."""
    cut = next((i for i, line in enumerate(lines) if line.startswith("Unrecognized")), len(lines))
    wanted = [line for line in lines[1:cut] if line.startswith("--")]
    unknown = [line for line in lines[cut + 1 :] if line.startswith("-")]
    said = [f"wanted {', '.join(wanted)}", *([f"unknown {', '.join(unknown)}"] if unknown else [])]
    return "; ".join(said)
