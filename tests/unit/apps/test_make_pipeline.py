"""What ``make`` keeps, continues and does again, with stages that only write a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from flashbulb.apps.cli.make.pipeline import Stage, plan, run_stages
from flashbulb.apps.cli.make.state import digest, read_record


class Number(msgspec.Struct, frozen=True):
    value: int = 0


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


class House:
    """Three stages a -> b -> c, and a list of what ran."""

    def __init__(self, root: Path) -> None:
        self.root, self.ran, self.fail = root, [], ""
        self.values = {"a": 1, "b": 2, "c": 3}

    def stage(self, name: str, parents: tuple[str, ...]) -> Stage:
        def make(on_step: Any) -> None:
            folder = self.root / name
            resumed = (folder / "half").exists()
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "half").write_text("x")
            self.ran.append(f"{name}+" if resumed else name)
            if self.fail == name:
                raise Killed
            read = "".join(
                (self.root / parent / "out").read_text() for parent in parents if parent != "source"
            )
            (folder / "out").write_text(f"{read}{self.values[name]}")

        config = Number(self.values[name])
        return Stage(name, name, config, make, f"{name}/out", parents, estimate_s=10.0, folders=(name,))

    def stages(self) -> list[Stage]:
        return [self.stage("a", ("source",)), self.stage("b", ("a",)), self.stage("c", ("b",))]

    def run(self, source: str = "s", version: str = "1") -> list[str]:
        self.ran.clear()
        run_stages(self.stages(), self.root, source, version, on_stage=lambda name, action: lambda *_: None)
        return list(self.ran)

    def plan(self) -> list[str]:
        return [step.action for step in plan(self.stages(), self.root, "s", "1")]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_everything_runs_once_and_is_then_kept(house: House) -> None:
    assert house.plan() == ["run", "run", "run"]
    assert house.run() == ["a", "b", "c"]
    assert house.plan() == ["keep", "keep", "keep"]
    assert house.run() == []
    assert (house.root / "c/out").read_text() == "123"


def test_a_changed_config_redoes_what_depends_on_it(house: House) -> None:
    house.run()
    house.values["b"] = 5
    assert house.plan() == ["keep", "run", "run"]
    assert house.run() == ["b", "c"]
    assert (house.root / "c/out").read_text() == "153"


def test_a_change_that_changes_nothing_stops_there(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.run()
    (house.root / "state/b.json").unlink()
    (house.root / "b/out").unlink()
    (house.root / "b/half").unlink()
    (house.root / "b").rmdir()
    assert house.run() == ["b"]


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_killed_stage_goes_on_where_it_was(house: House, name: str) -> None:
    house.fail = name
    with pytest.raises(Killed):
        house.run()
    house.fail = ""
    assert house.plan()["abc".index(name)] == "continue"
    assert house.run()[0] == f"{name}+"
    assert (house.root / "c/out").read_text() == "123"


def test_a_stage_killed_under_another_config_starts_anew(house: House) -> None:
    house.fail = "b"
    with pytest.raises(Killed):
        house.run()
    house.fail, house.values["b"] = "", 7
    assert house.run() == ["b", "c"]


def test_a_damaged_product_is_made_again(house: House) -> None:
    house.run()
    (house.root / "b/out").write_text("damaged")
    assert house.run() == ["b"]
    (house.root / "c/out").unlink()
    assert house.run() == ["c"]


@pytest.mark.parametrize("change", [{"source": "other"}, {"version": "2"}])
def test_another_source_or_version_redoes_all(house: House, change: dict[str, str]) -> None:
    house.run()
    assert house.run(**change)[0] == "a"


def test_what_make_did_not_make_is_not_removed(house: House) -> None:
    (house.root / "b").mkdir()
    (house.root / "b/precious").write_text("mine")
    with pytest.raises(FileExistsError, match="move it away"):
        house.run()
    assert (house.root / "b/precious").read_text() == "mine"


def test_a_broken_record_counts_as_none(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text('{"stage": ')
    assert read_record(file) is None


def test_a_stage_without_its_product_is_an_error(tmp_path: Path) -> None:
    lazy = Stage("a", "a", Number(), lambda on_step: None, "a/out", ("source",))
    with pytest.raises(RuntimeError, match="without its product"):
        run_stages([lazy], tmp_path, "s", "1", on_stage=lambda name, action: lambda *_: None)


def test_the_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "x").write_bytes(b"1")
    first = digest(folder)
    (folder / "x").rename(folder / "y")
    second = digest(folder)
    (folder / "y").write_bytes(b"2")
    assert len({first, second, digest(folder), digest(tmp_path / "none")}) == 4


def test_an_estimate_is_replaced_by_what_it_took(house: House) -> None:
    steps = plan(house.stages(), house.root, "s", "1")
    assert [step.seconds for step in steps] == [10.0] * 3
    house.run()
    assert [step.seconds for step in plan(house.stages(), house.root, "s", "1")] == [0.0] * 3
