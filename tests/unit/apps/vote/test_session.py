"""Plan, ledger and session: what is asked, in which order, and that no vote is lost or asked for twice."""

import json
import multiprocessing
import os
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from flashbulb.apps.vote.folders import open_folders, read_prompts
from flashbulb.apps.vote.ledger import Ledger
from flashbulb.apps.vote.plan import plan
from flashbulb.apps.vote.session import NotAsked, Session
from flashbulb.distill.metrics.votes import Vote, read_votes

NAMES = ("student", "teacher", "lcm")


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "votes.jsonl").read_text().splitlines()]


def vote_all(session: Session, choice: str = "left") -> list[str]:
    asked = []
    while (number := session.current()) is not None:
        asked.append(session.pairs[number].left.name)
        session.vote(number, choice)  # type: ignore[arg-type]
    return asked


def three(tmp_path: Path, draw, count: int = 6):
    folders = open_folders([draw(tmp_path / name, count) for name in NAMES])
    return folders, read_prompts(None, folders)


def test_every_two_models_meet_once_in_every_round_and_on_every_prompt(tmp_path: Path, draw):
    folders, prompts = three(tmp_path, draw)
    pairs = plan(folders, prompts, seed=1, voter="anna")
    met = [frozenset((p.left.model, p.right.model)) for p in pairs]
    every = {frozenset(two) for two in combinations(NAMES, 2)}
    assert all(set(met[i : i + 3]) == every for i in range(0, len(met), 3))
    assert len({(m, p.left.name) for m, p in zip(met, pairs, strict=True)}) == 3 * 6 == len(pairs)
    assert all(p.left.name == p.right.name and p.prompt == f"prompt {p.left.name}" for p in pairs)


def test_sides_are_balanced_and_differ_between_voters_while_the_order_does_not(tmp_path: Path, draw):
    folders, prompts = three(tmp_path, draw, count=20)
    plans = {who: plan(folders, prompts, seed=1, voter=who) for who in ("anna", "ben")}
    for pairs in plans.values():
        left = Counter((p.left.model, p.right.model) for p in pairs)
        assert all(abs(left[a, b] - left[b, a]) <= 1 for a, b in combinations(NAMES, 2))
    anna, ben = plans["anna"], plans["ben"]
    assert [{p.left, p.right} for p in anna] == [{p.left, p.right} for p in ben]
    assert sum(a.left != b.left for a, b in zip(anna, ben, strict=True)) > 10
    assert plan(folders, prompts, seed=1, voter="anna") == anna
    assert plan(folders, prompts, seed=2, voter="anna") != anna
    few = plan(folders, prompts, seed=1, voter="anna", limit=7)
    assert [{p.left, p.right} for p in few] == [{p.left, p.right} for p in anna[:7]]


def test_each_vote_is_a_line_with_what_it_was_about(make_session, tmp_path: Path):
    session = make_session()
    pair = session.pairs[0]
    session.vote(0, "right", 1.23456)
    (line,) = lines(tmp_path)
    assert line["left"] == pair.left.model and line["right"] == pair.right.model
    assert line["choice"] == "right" and line["voter"] == "anna" and line["question"] == "quality"
    assert line["prompt"] == pair.prompt and line["picture"] == pair.left.name
    assert line["left_sha256"] == pair.left.sha256 != line["right_sha256"]
    assert line["seconds"] == 1.235 and str(line["time"]).endswith("+00:00")


def test_a_vote_is_on_the_disk_before_it_counts(make_session, monkeypatch: pytest.MonkeyPatch):
    session, order = make_session(), []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(session.done), real(fd)))
    session.vote(0, "left")
    assert order == [0] and session.done == 1


def test_nothing_is_asked_twice_after_a_restart(make_session):
    session = make_session()
    asked = [session.pairs[n].left.name for n in (0, 1)]
    session.vote(0, "left")
    session.vote(1, "equal")
    again = make_session()
    assert (again.done, again.current()) == (2, 2)
    assert sorted(asked + vote_all(again)) == ["0", "1", "2", "3"]
    assert make_session().current() is None
    assert make_session(seed=9).current() is None  # another order of the same comparisons
    assert make_session(voter="ben").current() == 0


def test_undo_asks_again_even_over_a_restart(make_session, tmp_path: Path):
    session = make_session()
    session.vote(0, "left")
    session.vote(1, "left")
    session.undo()
    assert session.current() == 1
    session = make_session()
    session.undo()
    assert session.current() == 0
    with pytest.raises(NotAsked, match="no vote to take back"):
        session.undo()
    session.vote(0, "right")
    (standing,) = read_votes([tmp_path / "votes.jsonl"])
    assert standing.choice == "right"


def test_only_what_is_asked_can_be_answered(make_session, tmp_path: Path):
    session = make_session(equal=False)
    for number, choice in ((1, "left"), (-1, "left"), (99, "left"), (0, "equal"), (0, "undo")):
        with pytest.raises(NotAsked):
            session.vote(number, choice)
    session.vote(0, "left")
    with pytest.raises(NotAsked, match="0 is not being asked"):
        session.vote(0, "left")
    assert len(lines(tmp_path)) == 1


def test_two_servers_of_one_voter_ask_everything_once(make_session, tmp_path: Path):
    one, other = make_session(), make_session()
    one.vote(0, "left")
    with pytest.raises(NotAsked, match="elsewhere"):
        other.vote(0, "right")
    assert other.current() == 1
    other.vote(1, "right")
    with pytest.raises(NotAsked):
        one.vote(1, "left")
    assert [line["picture"] for line in lines(tmp_path)] == [one.pairs[n].left.name for n in (0, 1)]


def test_a_torn_line_is_taken_away_and_asked_again(make_session, tmp_path: Path):
    session = make_session()
    session.vote(0, "left")
    session.vote(1, "left")
    file = tmp_path / "votes.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    session = make_session()
    assert session.current() == 1
    session.vote(1, "right")
    assert [line["choice"] for line in lines(tmp_path)] == ["left", "right"]


def test_a_last_line_without_its_end_is_kept(tmp_path: Path):
    file = tmp_path / "votes.jsonl"
    file.write_text('{"left": "a", "right": "b", "choice": "left"}')
    ledger = Ledger(file)
    with ledger.hold() as news:
        assert len(news) == 1
        ledger.add(Vote(left="a", right="b", choice="right"))
    assert [vote.choice for vote in read_votes([file])] == ["left", "right"]


def test_a_full_disk_leaves_the_file_as_it_was(make_session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    session = make_session()
    session.vote(0, "left")
    before, real = (tmp_path / "votes.jsonl").read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:10]))
    with pytest.raises(OSError, match="could not be written"):
        session.vote(1, "left")
    monkeypatch.undo()
    assert (tmp_path / "votes.jsonl").read_bytes() == before
    assert (session.done, session.current()) == (1, 1)
    session.vote(1, "left")
    assert len(lines(tmp_path)) == 2


def test_votes_on_other_pictures_of_the_same_names_are_not_continued(make_session, folders: list[Path]):
    session = make_session()
    session.vote(0, "left")
    name = session.pairs[0].left.name
    (folders[0] / f"{name}.png").write_bytes((folders[1] / f"{name}.png").read_bytes())
    with pytest.raises(ValueError, match=f"another picture '{name}' of student: .*--out"):
        make_session()


def _add(file: Path, count: int) -> None:
    ledger = Ledger(file)
    for _ in range(count):
        with ledger.hold():
            ledger.add(Vote(left="a" * 3000, right="b", choice="left"))


def test_lines_of_several_processes_do_not_mix(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    file = tmp_path / "votes.jsonl"
    workers = [context.Process(target=_add, args=(file, 30)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(read_votes([file])) == 90
