"""`flashbulb elo` and `flashbulb vote` as words of the command line."""

import json
from pathlib import Path

import pytest

from flashbulb.apps.cli import arguments, main
from flashbulb.apps.cli.commands import find, overview
from flashbulb.apps.cli.dispatch import configure


def votes(file: Path, voter: str, wins: int, losses: int) -> str:
    choices = ["left"] * wins + ["right"] * losses
    lines = [
        {"left": "student", "right": "teacher", "choice": choice, "voter": voter, "picture": f"{i:03}"}
        for i, choice in enumerate(choices)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


def test_elo_prints_ratings_matches_and_agreement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("flashbulb.apps.cli.console.out.width", 140, raising=False)
    files = [votes(tmp_path / "a.jsonl", "anna", 30, 10), votes(tmp_path / "b.jsonl", "ben", 20, 20)]
    assert main(["elo", *files, "--orders", "50", "--out", str(tmp_path / "elo.json")]) == 0
    shown = capsys.readouterr().out
    record = json.loads((tmp_path / "elo.json").read_text())
    assert record["votes"] == 80 and record["voters"] == {"anna": 40, "ben": 40}
    assert f"{record['ratings'][0]['elo']:.1f}" in shown and "student" in shown
    assert "agreement of voters" in shown and "75%" in shown  # 20 + 10 of 40 judged alike
    assert record["ratings"][0]["elo"] + record["ratings"][1]["elo"] == pytest.approx(2000)


def test_a_preferred_side_is_spoken_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["elo", votes(tmp_path / "a.jsonl", "anna", 30, 2), "--orders", "5"]) == 0
    assert "94% of the decided votes went to the left picture" in " ".join(capsys.readouterr().err.split())


def test_wrong_input_ends_with_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["elo", str(tmp_path / "none.jsonl")]) == 2
    assert "no votes" in capsys.readouterr().err
    assert main(["elo"]) == 2
    assert "flashbulb elo wants VOTES, got none" in capsys.readouterr().err
    assert main(["elo", "--help"]) == 0
    assert "--votes" in capsys.readouterr().out
    assert main(["vote", str(tmp_path)]) == 2
    assert "at least two folders" in capsys.readouterr().err


def test_bare_words_are_the_folders():
    command = find("vote")
    assert command is not None
    config = configure(command, ["a", "b", "c", "--prompts", "p.txt", "--voter", "anna", "--no-equal"])
    assert config.folders == (Path("a"), Path("b"), Path("c"))
    assert (config.prompts, config.voter, config.equal, config.question) == (
        Path("p.txt"),
        "anna",
        False,
        "quality",
    )
    assert configure(command, ["a", "b"]).voter == "anonymous"
    for wrong in (["--voter", "<script>"], ["--port", "70000"], ["--question", "beauty"], ["--limit", "0"]):
        with pytest.raises(arguments.UsageError):
            configure(command, ["a", "b", *wrong])


def test_the_overview_names_them():
    assert "vote FOLDERS" in overview() and "elo VOTES" in overview()
