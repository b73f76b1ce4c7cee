"""The training loop: identical continuation after a kill, EMA, learning rate, the NaN guard."""

import json
import weakref

import pytest
import torch

from flashbulb.distill import loop, tracking
from flashbulb.distill.descent import Descent
from flashbulb.distill.loop import LoopConfig, State, learning_rate
from flashbulb.distill.state import gathered


def run_loop(config, state, update, out):
    loop.run_loop(config, state, update, out, Descent(config))


class Killed(Exception):
    """Stands for kill -9: the loop does not see it coming."""


def make(seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    state = State({"net": model}, {"net": optimizer}, averaged=("net",))

    def update(step, rng):
        x = torch.randn(8, 4, generator=rng.torch)
        loss = (model(x) - x.flip(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss.item()}

    return state, update


def config(**changes):
    return LoopConfig(**{"steps": 12, "warmup": 2, "save_every_s": 1e-9, "log_every": 1} | changes)


def test_a_save_gathers_one_tensor_at_a_time_and_only_the_writer_keeps_any(monkeypatch):
    tensors, alive = {name: torch.randn(3, 2) for name in "abc"}, []

    def whole(tensor):
        assert [ref() for ref in alive] == [None] * len(alive), "an earlier tensor is still there"
        made = tensor.clone()
        alive.append(weakref.ref(made))
        return made

    monkeypatch.setattr("flashbulb.distill.state.whole", whole)
    kept = gathered(tensors, keep=True)
    assert list(kept) == list(tensors)
    assert all(kept[name].equal(tensor) for name, tensor in tensors.items())
    assert gathered(tensors, keep=False) == {}
    assert len(alive) == 6


def test_a_killed_run_continues_with_identical_numbers(tmp_path):
    whole, update = make()
    run_loop(config(), whole, update, tmp_path / "whole")

    broken, update = make()

    def deadly(step, rng):
        broken.tally["seen"] += 8
        if step == 7:
            raise Killed
        return update(step, rng)

    with pytest.raises(Killed):
        run_loop(config(), broken, deadly, tmp_path / "broken")
    resumed, update = make(seed=99)

    def counted(step, rng):
        resumed.tally["seen"] += 8
        return update(step, rng)

    run_loop(config(), resumed, counted, tmp_path / "broken")

    assert resumed.tally["seen"] == 12 * 8  # the step that was lost counts once
    for key, value in whole.modules["net"].state_dict().items():
        assert torch.equal(value, resumed.modules["net"].state_dict()[key])
    for key, value in whole.ema["net"].items():
        assert torch.equal(value, resumed.ema["net"][key])
    lines = [[json.loads(x)["loss"] for x in (tmp_path / run / "stats.jsonl").read_text().splitlines()]
             for run in ("whole", "broken")]  # fmt: skip
    assert lines[0] == lines[1]


def test_the_wall_clock_goes_on_after_a_resume(tmp_path):
    state, update = make()
    run_loop(config(steps=3), state, update, tmp_path)
    lines = [json.loads(x) | {"wall_s": 1000.0} for x in (tmp_path / "stats.jsonl").read_text().splitlines()]
    (tmp_path / "stats.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert tracking.seconds(tmp_path) == 1000.0
    state, update = make()
    run_loop(config(steps=5), state, update, tmp_path)
    assert 1000.0 <= tracking.seconds(tmp_path) < 1060.0


def test_a_half_written_line_of_statistics_is_dropped(tmp_path):
    state, update = make()
    run_loop(config(steps=3), state, update, tmp_path)
    with (tmp_path / "stats.jsonl").open("a") as handle:
        handle.write('{"step": 4, "lo')
    state, update = make()
    run_loop(config(steps=5), state, update, tmp_path)
    assert [json.loads(x)["step"] for x in (tmp_path / "stats.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
        4,
        5,
    ]


def test_non_finite_steps_are_counted_and_bounded(tmp_path):
    state, update = make()
    run_loop(
        config(steps=3),
        state,
        lambda s, r: {"loss": float("nan")} if s == 1 else update(s, r),
        tmp_path / "a",
    )
    assert state.skipped == 1
    state, _ = make()
    with pytest.raises(FloatingPointError, match="non-finite"):
        run_loop(config(max_skipped=2), state, lambda s, r: {"loss": float("inf")}, tmp_path / "b")


def test_learning_rate_warms_up_and_decays_to_nothing():
    cfg = LoopConfig(steps=100, warmup=10, decay=0.5)
    rates = [learning_rate(cfg, s) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:50] == [1.0] * 41
    assert rates[99] < 0.01
    assert sorted(rates[50:], reverse=True) == rates[50:]


def test_average_follows_the_weights():
    state, _ = make()
    start = state.ema["net"]["weight"].clone()
    with torch.no_grad():
        state.modules["net"].weight.add_(1)
    state.step = 10_000
    state.update_ema(0.9)
    assert torch.allclose(state.ema["net"]["weight"], start + 0.1, atol=1e-6)
