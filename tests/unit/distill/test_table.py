"""The table: its rows decode, its rules can hold, fail and tie, its page says what the results say."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.table import page
from flashbulb.distill.table.predictions import DPM_4, PREDICTIONS, TEACHER_1, judge_all
from flashbulb.distill.table.references import REFERENCES, seen
from flashbulb.distill.table.results import Drawn, Figures, Result, Spread, Table, load, save
from flashbulb.distill.table.rows import FILE, Draw, Row, choose, load_rows, stated, still_holds
from flashbulb.distill.table.stage import TableConfig, asked_of_teachers, run

TEACHER_50 = "ddim 50 guidance 3"
FAR_BY_ROW = {"add": 400.0, "adv-only": 410.0, "teacher": 900.0, "distill-exp": 1500.0, "random-init": 1600.0}


def figures(**changed: float) -> Figures:
    plain = dict.fromkeys(Figures.__struct_fields__, 0.5) | changed
    return Figures(**plain)


def result(row: str, draws: dict[str, dict[str, float]], seed: int = 0, wobble: float = 0.001) -> Result:
    drawn = [
        Drawn(draw=draw, seed=s, figures=figures(**{k: v * (1 + wobble * s) for k, v in changed.items()}))
        for draw, changed in draws.items()
        for s in range(3)
    ]
    return Result(row=row, seed=seed, key="k", pictures=148, drawn=tuple(drawn))


def expected() -> list[Result]:
    """Results for which every prediction holds."""
    more = {"frechet": 380.0, "retrieval_at_1": 0.65}
    add = {"frechet": 400.0, "retrieval_at_1": 0.6, "recall": 0.3}
    few = {"euler 1": add, "euler 4": more, "euler_ancestral 4": more, "renoise 4": more}
    told = {"told-image": 0.55, "told-text": 0.5, "told-none": 0.4}
    weights = {"add-sds": {"frechet": 450.0, "retrieval_at_1": 0.7}, "add-nfsd": {"frechet": 460.0}}
    found = [result("add", few, seed) for seed in range(3)]
    found += [
        result(r, {"euler 1": {"retrieval_at_1": v}}, seed) for r, v in told.items() for seed in range(3)
    ]
    found += [result(r, {"euler 1": v}) for r, v in weights.items()]
    found += [result("adv-only", {"euler 1": {"frechet": 410.0, "retrieval_at_1": 0.5, "sharpness": 0.05}})]
    found += [result("distill-exp", {"euler 1": {"frechet": 1500.0, "sharpness": 0.01}})]
    found += [result("random-init", {"euler 1": {"frechet": 1600.0}})]
    teacher = {TEACHER_50: {"recall": 0.6}, DPM_4: {"frechet": 900.0}, TEACHER_1: {"frechet": 1200.0}}
    return [*found, result("teacher", teacher)]


def outcomes(found: list[Result]) -> dict[str, str]:
    return {v.id: v.outcome for v in judge_all(Table(found))}


def changed(row: str, draw: str | None = None, **values: float) -> list[Result]:
    """Return the expected results with figures of one row (and draw) replaced."""

    def mend(r: Result) -> Result:
        if r.row != row:
            return r
        drawn = [
            msgspec.structs.replace(d, figures=msgspec.structs.replace(d.figures, **values))
            if draw in (None, d.draw)
            else d
            for d in r.drawn
        ]
        return msgspec.structs.replace(r, drawn=tuple(drawn))

    return [mend(r) for r in expected()]


def test_every_prediction_can_hold() -> None:
    assert outcomes(expected()) == {p.id: "holds" for p in PREDICTIONS}


def test_every_prediction_is_open_without_results() -> None:
    assert set(outcomes([]).values()) == {"open"}


@pytest.mark.parametrize(
    ("id", "found", "outcome"),
    [
        ("P1", changed("add", "euler 1", frechet=600.0), "fails"),
        ("P1", changed("teacher", DPM_4, frechet=700.0), "fails"),
        ("P2", changed("distill-exp", frechet=420.0), "fails"),
        ("P2", changed("distill-exp", sharpness=0.06), "fails"),
        ("P3", changed("random-init", frechet=700.0), "fails"),
        ("P4", changed("adv-only", retrieval_at_1=0.7), "fails"),
        ("P4", changed("adv-only", frechet=300.0), "fails"),
        ("P4", changed("adv-only", retrieval_at_1=0.601), "tie"),
        ("P5", changed("told-none", retrieval_at_1=0.7), "fails"),
        ("P6", changed("add-sds", frechet=300.0), "fails"),
        ("P6", changed("add-sds", frechet=400.5), "tie"),
        ("P8", changed("teacher", TEACHER_50, recall=0.1), "fails"),
        ("P8", changed("teacher", TEACHER_50, recall=0.3), "tie"),
    ],
)
def test_a_prediction_follows_its_rule(id: str, found: list[Result], outcome: str) -> None:  # noqa: A002
    assert outcomes(found)[id] == outcome


def test_more_steps_tie_when_no_sampler_gains() -> None:
    same = {"frechet": 400.0, "retrieval_at_1": 0.6}
    draws = dict.fromkeys(("euler 1", "euler 4", "euler_ancestral 4", "renoise 4"), same)
    assert outcomes([result("add", draws)])["P7"] == "tie"


@pytest.mark.parametrize(
    ("good", "bad", "outcome"),
    [(1, 0, "open"), (0, 1, "open"), (1, 1, "open"), (2, 0, "holds"), (0, 2, "fails"), (2, 1, "holds")],
)
def test_the_order_of_conditions_stays_open_until_no_further_seed_can_change_it(
    good: int, bad: int, outcome: str
) -> None:
    held = [r for r in expected() if r.seed < good]
    broken = [
        msgspec.structs.replace(r, seed=good + r.seed)
        for r in changed("told-none", retrieval_at_1=0.7)
        if r.seed < bad
    ]
    assert outcomes([*held, *broken])["P5"] == outcome


def test_shipped_rows_decode_and_name_what_the_predictions_need() -> None:
    rows = load_rows()
    needed = {
        "add",
        "adv-only",
        "distill-exp",
        "random-init",
        "told-none",
        "told-text",
        "told-image",
        "teacher",
    }
    assert needed | {"add-sds", "add-nfsd"} <= {row.id for row in rows}
    assert {row.part for row in rows} <= set(page.PARTS)
    drawn = {row.id: set(row.draws) for row in rows}
    assert {TEACHER_50, DPM_4, TEACHER_1} <= drawn["teacher"]
    assert {"euler 1", "euler 4", "euler_ancestral 4", "renoise 4"} <= drawn["add"]


def test_rows_of_a_chain_of_halving_lead_to_what_is_drawn() -> None:
    by_name = {row.id: row for row in load_rows()}
    assert [link.objective.__struct_config__.tag for link in by_name["guided"].chain] == [
        "guided-1",
        "guided-2",
    ]
    assert [link.objective.__struct_config__.tag for link in by_name["instaflow"].chain] == [
        "reflow",
        "instaflow",
    ]


@pytest.mark.parametrize(
    ("text", "draw"),
    [
        ("euler 4", Draw(sampler="euler", steps=4)),
        ("ddim 25 guidance 3", Draw(sampler="ddim", steps=25, guidance=3.0)),
        ("euler_ancestral 4 sgm", Draw(sampler="euler_ancestral", steps=4, spacing="sgm")),
    ],
)
def test_draws_are_read(text: str, draw: Draw) -> None:
    assert Draw.parse(text) == draw


@pytest.mark.parametrize("text", ["", "euler", "euler four", "eular 4", "euler 4 guidance", "euler 4 fast"])
def test_a_draw_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="wanted SAMPLER STEPS"):
        Draw.parse(text)


def test_a_rows_key_follows_its_recipe_and_budget_not_its_title() -> None:
    row = Row(id="a", title="A", part="2", draws=("euler 1",))
    budget = {"steps": 10}
    renamed, redrawn = (msgspec.structs.replace(row, **c) for c in ({"title": "B"}, {"draws": ("euler 2",)}))
    assert row.key(budget) == renamed.key(budget)
    assert len({row.key(budget), redrawn.key(budget), row.key({"steps": 11})}) == 3


def test_a_changed_default_makes_a_result_stale_and_a_new_option_does_not() -> None:
    row, budget = load_rows()[0], TableConfig().budget()
    then, now = row.resolved(budget), row.resolved(budget)
    del then["row"]["chain"][0]["objective"]["r1"]
    assert still_holds(then, now)
    then["row"]["chain"][0]["objective"]["adv"] = 0.25
    assert not still_holds(then, now)
    assert not still_holds(now | {"budget": {"steps": 1}}, now)
    assert stated(row)["chain"][0]["objective"]["type"] == "add"
    assert "r1" not in stated(row)["chain"][0]["objective"]


def test_unknown_and_repeated_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"wanted rows among add, teacher.*got nothing-such"):
        choose(load_rows(), ("nothing-such",))
    file = tmp_path / "rows.yaml"
    file.write_text("- {id: a, title: A, part: '2'}\n- {id: a, title: B, part: '2'}\n")
    with pytest.raises(ValueError, match="every id once, got a again"):
        load_rows(file)
    file.write_text("- {id: a, title: A, part: '2', colour: red}\n")
    with pytest.raises(ValueError, match="colour"):
        load_rows(file)


def test_results_are_read_back_and_a_broken_one_is_named(tmp_path: Path) -> None:
    for made in expected():
        save(made, tmp_path)
    assert sorted(load(tmp_path), key=lambda r: r.name) == sorted(expected(), key=lambda r: r.name)
    (tmp_path / "add-0.json").write_text('{"row": "add"')
    with pytest.raises(ValueError, match=r"add-0\.json: wanted a result"):
        load(tmp_path)


def test_ranges_that_touch_are_not_above() -> None:
    low, high = (Spread(mean=m, low=m - 1, high=m + 1, count=3) for m in (1.0, 3.0))
    assert not high.above(low)
    assert Spread(mean=4.0, low=3.5, high=4.5, count=3).above(low)


def test_references_are_real_pictures_decoded_and_blurred() -> None:
    import torch

    from flashbulb.distill.checkpoint import embedded
    from flashbulb.distill.metrics.detail import sharpness

    real = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = {name: seen(name, real, embedded("teacher")) for name in REFERENCES}
    assert torch.equal(found["real pictures"], real)
    fine = {name: float(sharpness(pictures).mean()) for name, pictures in found.items()}
    for what in ("real pictures", "through the autoencoder"):
        assert fine[f"{what}, blurred"] < fine[f"{what}, blurred a little"] < fine[what]
    assert fine["through the autoencoder"] < fine["real pictures"]
    assert all(pictures.shape == real.shape for pictures in found.values())


def test_the_page_shows_every_row_verdict_and_absence(tmp_path: Path) -> None:
    rows = load_rows()
    for made in expected():
        save(made, tmp_path / "results")
    html = page.write(tmp_path, rows, {"dino": "facebook/dino-vits16 is not on this machine"}, TableConfig())
    text, summary = html.read_text(), (tmp_path / "SUMMARY.md").read_text()
    for said in (text, summary):
        assert "ADD, both losses, exp" in said
        assert "facebook/dino-vits16 is not on this machine" in said
        assert "LCM: not run yet" in said
        assert said.count("holds") >= len(PREDICTIONS)
    assert "400 ± 0" in summary
    assert "<script" not in text
    assert 'src="http' not in text


def test_known_results_are_taken_over_where_recipe_and_budget_are_the_same(tmp_path: Path) -> None:
    config = TableConfig(
        rows=("add", "lcm"), out=str(tmp_path / "out"), known=str(tmp_path / "known"), minutes=1e-9
    )
    keys = {row.id: row.key(config.budget()) for row in load_rows()}
    save(msgspec.structs.replace(result("add", {"euler 1": {}}), key=keys["add"]), tmp_path / "known")
    save(result("lcm", {"renoise 1": {}}), tmp_path / "known")
    (tmp_path / "known" / "add-0.webp").write_bytes(b"picture")
    summary = run(config).with_name("SUMMARY.md").read_text()
    assert [r.row for r in load(tmp_path / "out" / "results")] == ["add"]
    assert "LCM: not run yet" in summary
    assert (tmp_path / "out" / "grids" / "add-0.webp").is_file()
    with pytest.raises(NotADirectoryError, match="wanted a folder with results"):
        run(msgspec.structs.replace(config, known=str(tmp_path / "nowhere")))


def test_measured_results_are_of_the_shipped_rows() -> None:
    """A result whose row has changed is to be measured again or deleted."""
    rows, budget = {row.id: row for row in load_rows()}, TableConfig().budget()
    found = load(FILE.parent / "measured")
    assert found
    for made in found:
        assert made.key == rows[made.row].key(budget), made.name
        assert still_holds(made.recipe, rows[made.row].resolved(budget)), made.name
    (shipped,) = (made for made in found if made.row == "student")
    student = Checkpoint.open(rows["student"].checkpoint)
    assert shipped.sha256 == student.sha256()
    assert shipped.teacher_evaluations == asked_of_teachers(student) > 0


def test_a_result_of_another_checkpoint_is_not_taken_over(tmp_path: Path) -> None:
    config = TableConfig(rows=("student",), out=str(tmp_path / "out"), minutes=1e-9)
    (row,) = choose(load_rows(), config.rows)
    right = Checkpoint.open(row.checkpoint).sha256()
    for number, (sha256, taken) in enumerate({"": 1, right: 1, "0" * 64: 0}.items()):
        known, out = tmp_path / f"known-{number}", tmp_path / f"out-{number}"
        made = result("student", {"euler 1": {}})
        save(msgspec.structs.replace(made, key=row.key(config.budget()), sha256=sha256), known)
        run(msgspec.structs.replace(config, known=str(known), out=str(out)))
        assert len(load(out / "results")) == taken, sha256
