"""The words of the command line: what they show, what they refuse, what they return."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import flashbulb.distill
from flashbulb.apps.cli import console, dispatch, main
from flashbulb.apps.cli.commands import COMMANDS, Command, find, overview
from flashbulb.distill.errors import MissingExtra
from flashbulb.distill.table.rows import still_holds

HERE = "tests.unit.apps.test_cli"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A config to run."""

    bundle: str = "b"
    """Where."""
    say: str = "fine"
    """What happens."""


def act(config: Config) -> Any:
    """Return or raise what the config says."""
    outcomes: dict[str, Callable[[], Any]] = {
        "fine": lambda: Path("made") / config.bundle,
        "one": lambda: 1,
        "value": lambda: _raise(ValueError("wanted this,\n  got that")),
        "extra": lambda: _raise(MissingExtra("Core ML export needs coremltools", "coreml")),
        "module": lambda: importlib.import_module("no_such_package_anywhere"),
        "file": lambda: Path("/no/such/file").read_text(),
        "library": lambda: int("x" * 3),
        "bug": lambda: _raise(KeyError("oops")),
        "stop": lambda: _raise(KeyboardInterrupt()),
    }
    return outcomes[config.say]()


def _raise(error: BaseException) -> None:
    raise error


@pytest.fixture
def act_word(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a command whose function is `act`."""
    targets = {"config": Config, "function": act}
    monkeypatch.setattr(dispatch, "load", lambda name: targets[name])
    monkeypatch.setitem(act.__globals__, "__name__", "flashbulb.stand_in")
    command = Command("act", "act as told", "config", "function", "bundle")
    return lambda *words: dispatch.dispatch(command, words)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_word(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert shown == overview()
    assert all(f"  {command.word}" in shown for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"flashbulb \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_an_unknown_word_is_met_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distil"]) == 2
    assert "did you mean 'distill'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.word)
def test_every_word_has_a_config_and_a_function_that_takes_it(command: Command) -> None:
    config, function = dispatch.load(command.config), dispatch.load(command.function)
    assert issubclass(config, msgspec.Struct)
    assert next(iter(inspect.signature(function).parameters)) == "config"
    fields = {field.name for field in msgspec.structs.fields(config)}
    assert command.positional in {None, "recipe"} | fields


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.word)
def test_every_word_explains_its_flags(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command.word, "--help"]) == 0
    shown = plain(capsys.readouterr().out)
    assert f"usage: flashbulb {command.word}" in shown
    for field in msgspec.structs.fields(dispatch.load(command.config)):
        assert f"--{field.name.replace('_', '-')}" in shown or field.name in shown


def test_eval_with_table_is_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--table", "--help"]) == 0
    assert "usage: flashbulb table" in plain(capsys.readouterr().out)


def test_the_bare_argument_fills_its_field(
    act_word: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert act_word("there") == 0
    assert capsys.readouterr().out.strip() == "made/there"


def test_failing_numbers_give_one(act_word: Callable[..., int]) -> None:
    assert act_word("--say", "one") == 1


@pytest.mark.parametrize(
    ("say", "message"),
    [
        ("value", "flashbulb: wanted this, got that"),
        ("extra", "pip install 'flashbulb[coreml]'"),
        ("module", "no_such_package_anywhere is not installed"),
        ("file", "/no/such/file"),
    ],
)
def test_the_users_errors_are_one_line(
    act_word: Callable[..., int], capsys: pytest.CaptureFixture[str], say: str, message: str
) -> None:
    assert act_word("--say", say) == 2
    shown = plain(capsys.readouterr().err)
    assert message in shown
    assert shown.count("\n") == 1
    assert "Traceback" not in shown


def test_debug_shows_where_it_came_from(act_word: Callable[..., int]) -> None:
    with pytest.raises(ValueError, match="got that"):
        act_word("--say", "value", "--debug")


def test_a_fault_is_not_blamed_on_the_user(act_word: Callable[..., int]) -> None:
    with pytest.raises(KeyError):
        act_word("--say", "bug")


def test_a_library_error_is_told_from_ours() -> None:
    try:
        msgspec.json.decode(b"{")
    except msgspec.DecodeError as error:
        assert not dispatch.is_for_user(error)


def test_ctrl_c_is_quiet(act_word: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert act_word("--say", "stop") == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_bare_argument_that_nobody_takes_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "everything"]) == 2
    assert "takes no bare argument" in plain(capsys.readouterr().err)


def test_list_shows_what_the_unions_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = plain(capsys.readouterr().out)
    for word in ("add", "palettize", "coreml", "ort", "executorch", "eager", "train"):
        assert word in shown


def test_list_can_be_narrowed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--kinds", "engines"]) == 0
    assert "palettize" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "recipe", sorted((Path(dispatch.__file__).parent / "recipes").glob("*.yaml")), ids=str
)
def test_every_shipped_recipe_is_decoded(recipe: Path) -> None:
    from flashbulb.apps.cli.arguments import read_recipe

    command = find(recipe.stem.partition("-")[0])
    assert command is not None
    read_recipe(recipe, dispatch.load(command.config))


def test_progress_takes_what_the_stages_say() -> None:
    with console.Progress("x") as bar:
        bar(1, 10, {"loss": 0.5})
        bar(2, 10, "a note")
        bar(3, 10)
    stages = console.Stages(["a", "bb"])
    with stages:
        stages.begin("a", "run")(5, 10)
        stages.begin("bb", "keep")


def test_a_shipped_recipe_goes_by_its_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = find("distill")
    assert command is not None
    shipped: Any = dispatch.configure(command, ["student"])
    assert (shipped.objective.pairs, shipped.loop.steps) == (8192, 800)
    (tmp_path / "student").write_text("loop: {steps: 7}")
    own: Any = dispatch.configure(command, ["student"])
    assert own.loop.steps == 7


def test_the_shipped_student_was_taught_by_the_shipped_recipe() -> None:
    """Its lineage holds every option of that training; `make` teaches alike, but shorter."""
    folder = Path(flashbulb.distill.__file__).parent / "assets/student"
    taught = json.loads((folder / "lineage.json").read_text())["entries"][-1]["config"]
    command, make = find("distill"), find("make")
    assert command is not None
    assert make is not None
    recipe: Any = dispatch.configure(command, ["student"])
    told = msgspec.json.decode(msgspec.json.encode(recipe))
    assert still_holds(taught["objective"], told["objective"])
    assert told["loop"].pop("precision") == "auto"  # which that machine computed in bf16
    assert taught["loop"].pop("precision") == "bf16"
    assert still_holds(taught["loop"], told["loop"])
    shorter: Any = dispatch.configure(make, [])
    assert msgspec.structs.replace(shorter.distill.objective, pairs=8192) == recipe.objective


def test_cost_takes_the_recipes_of_distill() -> None:
    command = find("cost")
    assert command is not None
    config: Any = dispatch.configure(command, ["student", "--repeats", "5"])
    assert (config.objective.pairs, config.loop.steps, config.repeats) == (8192, 800, 5)
