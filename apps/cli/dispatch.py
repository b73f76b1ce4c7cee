"""Run one command: build its configuration, call its function, show what came back."""

from __future__ import annotations

import importlib
import inspect
import itertools
import os
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from flashbulb.apps.cli import arguments, console, outcome, watch
from flashbulb.apps.cli.commands import RECIPE, USER_ERROR, Command

if TYPE_CHECKING:
    from collections.abc import Sequence

RECIPES = Path(__file__).parent / "recipes"

INTERRUPTED = 130
"""What shells expect of a program that was stopped by Ctrl-C."""

USER_ERRORS = (
    ValueError,
    ImportError,
    RuntimeError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
"""What stages raise when their input is at fault, see `is_for_user`."""


def dispatch(command: Command, words: Sequence[str]) -> int:
    """Run ``command`` with the words that follow it and return the exit code."""
    debug = "--debug" in words
    console.set_up(debug=debug)
    try:
        config = configure(command, [word for word in words if word != "--debug"])
        result = call(load(command.function), config, title=command.word)
    except SystemExit as stop:  # the parser has shown its help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        console.complain("stopped; say the same command again to go on from the last saved state")
        return INTERRUPTED
    except USER_ERRORS as error:
        if debug or not is_for_user(error):
            raise
        console.complain(explain(error))
        return USER_ERROR
    return outcome.show(result)


def configure(command: Command, words: list[str]) -> msgspec.Struct:
    """Return the configuration of ``command``: its defaults, its bare argument, its flags."""
    config: type[msgspec.Struct] = load(command.config)
    if takes_many(config, command.positional):
        return _with_many(command, config, words)
    bare = words.pop(0) if words and not words[0].startswith("-") else None
    if bare is not None and command.positional is None and command.word != "make":
        raise arguments.UsageError(f"flashbulb {command.word} takes no bare argument, got {bare!r}")
    if command.positional == RECIPE or command.word == "make":
        recipe, words = _recipe(bare, words)
        if recipe is None or not recipe.exists():
            name = command.word if recipe is None else f"{command.recipes_of or command.word}-{recipe}"
            recipe = _shipped_recipe(name) or recipe
        default = arguments.read_recipe(recipe, config) if recipe else arguments.blank(config)
    else:
        known = {} if bare is None else {str(command.positional): bare}
        default = arguments.blank(config, **known)
    shown = f" [{command.positional.upper()}]" if command.positional else ""
    return _resolve(command, config, default, words, shown)


def takes_many(config: type[msgspec.Struct], positional: str | None) -> bool:
    """Tell whether the bare argument of a command may be several: its field is a tuple."""
    return typing.get_origin(typing.get_type_hints(config).get(positional or "")) is tuple


def _with_many(command: Command, config: type[msgspec.Struct], words: list[str]) -> msgspec.Struct:
    """Put all leading words without a dash into the field of the bare argument."""
    field = str(command.positional)
    kind, *_ = typing.get_args(typing.get_type_hints(config)[field])
    bare = [kind(word) for word in itertools.takewhile(lambda word: not word.startswith("-"), words)]
    flags = {word.partition("=")[0] for word in words}
    if not bare and not flags & {f"--{field}", "--help", "-h"}:
        raise arguments.UsageError(
            f"flashbulb {command.word} wants {field.upper()}, got none; see flashbulb {command.word} --help"
        )
    default = arguments.blank(config, **({field: tuple(bare)} if bare else {}))
    return _resolve(command, config, default, words[len(bare) :], f" {field.upper()}...")


def _resolve(
    command: Command, config: type[msgspec.Struct], default: msgspec.Struct, words: list[str], shown: str
) -> msgspec.Struct:
    return arguments.resolve(
        config,
        default,
        words,
        program=f"flashbulb {command.word}{shown}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
    )


def _recipe(bare: str | None, words: list[str]) -> tuple[Path | None, list[str]]:
    """Find the recipe: the bare argument, or what follows ``--recipe``."""
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        flag, equals, value = word.partition("=")
        if flag != "--recipe":
            rest.append(word)
            continue
        if not equals and not queue:
            raise arguments.UsageError("--recipe wants a YAML file, got nothing")
        bare = value if equals else queue.pop(0)
    return (Path(bare) if bare is not None else None), rest


def _shipped_recipe(name: str) -> Path | None:
    """Return the recipe that ships under a name, such as ``make`` or ``distill-student``."""
    file = RECIPES / f"{name}.yaml"
    return file if file.parent == RECIPES and file.is_file() else None


def load(name: str) -> Any:
    """Import the object that ``module:name`` speaks of."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def call(function: Any, config: msgspec.Struct, *, title: str) -> Any:
    """Call a stage function; where it takes ``on_step``, the first process draws its progress."""
    follower = os.environ.get("RANK", "0") != "0"
    if follower or "on_step" not in inspect.signature(function).parameters:
        return function(config)
    with console.Progress(title) as bar:
        return watched(function, config, bar)


def watched(function: Any, config: msgspec.Struct, on_step: Any) -> Any:
    """Call a stage function; where it trains in other processes, its progress is read from their files."""
    if not watch.trains_elsewhere(config):
        return function(config, on_step=on_step)
    with watch.Watch(config, on_step), watch.workers_errors():
        return function(config)


def is_for_user(error: BaseException) -> bool:
    """Tell an error that our code raises about its input from a fault, which shows its traceback.

    A missing file or package is the user's to put right; of the rest only what was raised by a line of
    flashbulb itself, or from an error class of flashbulb, was written for a reader.
    """
    if isinstance(error, OSError | ModuleNotFoundError) or type(error).__module__.startswith("flashbulb."):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("flashbulb.")


def explain(error: BaseException) -> str:
    """Return the message of an error in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if type(error) is ModuleNotFoundError and not str(error.name).startswith("flashbulb"):
        return f"the package {error.name} is not installed: pip install 'flashbulb[all]'"
    return text
