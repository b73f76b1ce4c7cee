"""Votes as a file, agreement against scikit-learn and published examples, and the record of ratings."""

import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from flashbulb.distill.metrics.agreement import cohen, krippendorff, pairwise
from flashbulb.distill.metrics.preference import EloConfig, PreferenceRecord, run
from flashbulb.distill.metrics.votes import read_votes


def line(choice: str = "left", **more: str) -> str:
    return json.dumps({"left": "a", "right": "b", "choice": choice, **more}) + "\n"


def write(folder: Path, *lines: str, name: str = "votes.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(lines))
    return file


def test_the_least_line_is_a_vote(tmp_path: Path):
    votes = read_votes([write(tmp_path, line(), line("right"), line("equal"))])
    assert [vote.result for vote in votes] == [1.0, 0.0, 0.5]
    assert {(v.voter, v.question) for v in votes} == {("anonymous", "quality")}


def test_an_undo_takes_back_and_a_later_vote_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    turned = json.dumps({"left": "b", "right": "a", "choice": "undo", "picture": "2"}) + "\n"
    file = write(
        tmp_path,
        line("left", picture="1"),
        line("left", picture="2"),
        turned,
        line("right", picture="3"),
        line("equal", picture="3"),
        line("left", picture="3", voter="eve"),
    )
    votes = read_votes([file])
    assert [(v.picture, v.choice, v.voter) for v in votes] == [
        ("1", "left", "anonymous"),
        ("3", "equal", "anonymous"),
        ("3", "left", "eve"),
    ]
    assert "1 comparisons were voted on more than once" in caplog.text


def test_a_torn_last_line_is_left_out_and_any_other_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    assert len(read_votes([write(tmp_path, line(), line()[:20])])) == 1
    assert "cut off" in caplog.text
    assert len(read_votes([write(tmp_path, line(), line().rstrip("\n"))])) == 2
    with pytest.raises(ValueError, match=r"votes.jsonl, line 1: .*wanted one vote a line"):
        read_votes([write(tmp_path, line()[:20] + "\n", line())])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line("both"), "line 1: Invalid enum value 'both'"),
        (line(picked="a"), "line 1: Object contains unknown field `picked`"),
        (json.dumps({"left": "a", "right": "a", "choice": "left"}) + "\n", "'a' against itself"),
        ("[]\n", "line 1: Expected `object`"),
    ],
)
def test_a_line_that_is_no_vote_is_named(tmp_path: Path, bad: str, message: str):
    with pytest.raises(ValueError, match=message):
        read_votes([write(tmp_path, bad)])
    with pytest.raises(FileNotFoundError, match="no votes"):
        read_votes([tmp_path / "none.jsonl"])


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_that_of_scikit_learn(seed: int):
    rng = random.Random(seed)
    first = rng.choices("abc", weights=(5, 2, 1), k=80)
    second = [label if rng.random() < 0.6 else rng.choice("abc") for label in first]
    same, kappa = cohen(list(zip(first, second, strict=True)))
    assert kappa == pytest.approx(cohen_kappa_score(first, second))
    assert same == sum(a == b for a, b in zip(first, second, strict=True)) / 80
    assert cohen([("a", "a")] * 3) == (1.0, None)


def as_labels(*rows: str) -> dict[str, dict[object, str]]:
    return {str(i): {j: c for j, c in enumerate(row.split()) if c != "*"} for i, row in enumerate(rows)}


def test_alpha_is_that_of_the_published_examples():
    """Four observers of twelve units in Krippendorff's own text; three of fifteen at Wikipedia."""
    four = as_labels(
        "1 2 3 3 2 1 4 1 2 * * *",
        "1 2 3 3 2 2 4 1 2 5 * 3",
        "* 3 3 3 2 3 4 2 2 5 1 *",
        "1 2 3 3 2 4 4 1 2 5 1 *",
    )
    three = as_labels(
        "* * * * * 3 4 1 2 1 1 3 3 * 3",
        "1 * 2 1 3 3 4 3 * * * * * * *",
        "* * 2 1 3 4 4 * 2 1 1 3 3 * 4",
    )
    assert krippendorff(four) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff(three) == pytest.approx(0.691, abs=5e-4)


def test_alpha_of_agreement_chance_and_nothing():
    assert krippendorff(as_labels("1 2 1", "1 2 1")) == 1.0
    assert krippendorff(as_labels("1 1", "1 1")) is None
    assert krippendorff(as_labels("1 *", "* 2")) is None
    rng = random.Random(0)
    noise = as_labels(*(" ".join(rng.choices("12", k=4000)) for _ in range(3)))
    assert krippendorff(noise) == pytest.approx(0, abs=0.03)
    assert [a.common for a in pairwise(as_labels("1 2 *", "* 2 1"))] == [1]


def some_votes(seed: int = 0) -> list[str]:
    """Two voters, of whom the second copies the first in three of four pictures; the student wins mostly."""
    rng, lines = random.Random(seed), []
    for i in range(120):
        left, right = rng.sample(["student", "teacher", "lcm"], 2)
        best = min(left, right, key=["student", "teacher", "lcm"].index)
        choice = rng.choices(["left", "right", "equal"], [4, 4, 2])[0]
        choice = choice if rng.random() < 0.4 else "left" if best == left else "right"
        for voter in ("anna", "ben"):
            said = choice if voter == "anna" or i % 4 else "equal"
            vote = {"left": left, "right": right, "choice": said, "voter": voter, "picture": f"{i:03}"}
            lines.append(json.dumps(vote) + "\n")
    return lines


def rated(folder: Path, **options: object) -> PreferenceRecord:
    return run(EloConfig(votes=(write(folder, *some_votes()),), orders=50, **options))


def test_the_record_counts_what_was_voted(tmp_path: Path):
    lines = [json.loads(text) for text in some_votes()]
    record = rated(tmp_path, out=tmp_path / "deep" / "elo.json")
    assert [r.model for r in record.ratings] == ["student", "teacher", "lcm"]
    assert record.voters == {"anna": 120, "ben": 120} and record.votes == 240
    assert sum(m.wins + m.losses + m.draws for m in record.matches) == 240
    assert sum(r.wins for r in record.ratings) == sum(r.losses for r in record.ratings)
    choices = Counter(vote["choice"] for vote in lines)
    assert sum(m.draws for m in record.matches) == choices["equal"]
    decided = choices["left"] + choices["right"]
    assert record.left_share == choices["left"] / decided
    assert record.left_p == pytest.approx(binomtest(choices["left"], decided).pvalue)
    assert json.loads((tmp_path / "deep" / "elo.json").read_text())["ratings"][0]["model"] == "student"


def test_the_record_states_the_agreement(tmp_path: Path):
    record = rated(tmp_path)
    lines = [json.loads(text) for text in some_votes()]
    said = {
        voter: [v.get(v["choice"], "draw") for v in lines if v["voter"] == voter] for voter in ("anna", "ben")
    }
    (found,) = record.agreement
    assert (found.first, found.second, found.common) == ("anna", "ben", 120)
    assert found.kappa == pytest.approx(cohen_kappa_score(said["anna"], said["ben"]))
    assert record.alpha is not None and math.isclose(record.alpha, found.kappa or 0, abs_tol=0.05)


def test_draws_can_be_dropped(tmp_path: Path):
    record = rated(tmp_path, draws="drop")
    assert record.votes == sum(json.loads(text)["choice"] != "equal" for text in some_votes())
    assert {r.draws for r in record.ratings} == {0}
    only_draws = write(tmp_path, line("equal"), name="draws.jsonl")
    with pytest.raises(ValueError, match="all 1 votes are draws"):
        run(EloConfig(votes=(only_draws,), draws="drop"))


def test_one_question_at_a_time(tmp_path: Path):
    file = write(tmp_path, line(), line("right", question="alignment"))
    with pytest.raises(ValueError, match="got alignment and quality: choose --question"):
        run(EloConfig(votes=(file,)))
    record = run(EloConfig(votes=(file,), question="alignment", orders=3))
    assert (record.question, record.ratings[0].model) == ("alignment", "b")
    with pytest.raises(ValueError, match=r"wanted votes on alignment, got none in .*only.jsonl"):
        run(EloConfig(votes=(write(tmp_path, line(), name="only.jsonl"),), question="alignment"))
