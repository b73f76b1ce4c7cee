"""One step: micro-batches, skipped steps, loss scaling, and what memory-saving must not change."""

import json

import msgspec
import pytest
import torch

from flashbulb.distill.descent import CLIP, Descent
from flashbulb.distill.loop import LoopConfig, State, run_loop
from flashbulb.distill.precision import LossScale, autocast, computes_bf16, computing_in, resolved
from flashbulb.distill.rng import StepRng

LOOP = LoopConfig(steps=6, batch=8, ema=0.5, warmup=0, decay=0, log_every=1, precision="no")


def train(out, *, poison=None, **changes):
    """Fit a line; ``poison(step, loss)`` may spoil a loss."""
    config = msgspec.structs.replace(LOOP, **changes)
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    descend, state = Descent(config), State({"net": model}, {"net": optimizer}, averaged=("net",))

    def update(step, rng):
        x = rng.normal((descend.batch, 4))
        with autocast(x.device):
            y = model(x).float()
        loss = 0.1 * (y - x.sum(1, keepdim=True)).square().mean()  # too flat to be clipped
        loss = loss if poison is None else poison(step, loss)
        descend(loss, optimizer)
        return {"loss": loss.item()}

    run_loop(config, state, update, out, descend)
    return state


def test_micro_batches_make_the_step_of_the_whole_batch(tmp_path):
    whole, parts = train(tmp_path / "whole"), train(tmp_path / "parts", accumulate=4)
    torch.testing.assert_close(
        whole.modules["net"].state_dict(), parts.modules["net"].state_dict(), rtol=1e-5, atol=1e-6
    )
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "stats.jsonl").read_text().splitlines()]
        for run in ("whole", "parts")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"batch that 1 processes times 3 micro-batches divide, got 8"):
        Descent(msgspec.structs.replace(LOOP, accumulate=3))


def test_a_second_step_of_an_optimizer_is_refused_while_gradients_accumulate():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    descend = Descent(msgspec.structs.replace(LOOP, accumulate=2))
    next(descend.micro_batches(0, 0))
    descend(weight.square().sum(), optimizer)
    with pytest.raises(ValueError, match="one critic step"):
        descend(weight.square().sum(), optimizer)


def test_a_loss_without_gradient_is_refused():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ValueError, match="no gradient"):
        Descent(LOOP)(torch.ones((), requires_grad=True), optimizer)


def test_the_gradient_is_clipped_and_its_norm_told():
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    norm = Descent(LOOP)(weight.square().sum() / 2, optimizer)
    assert norm == pytest.approx(5.0)
    moved = torch.tensor([3.0, 4.0]) - weight.detach()
    torch.testing.assert_close(moved, CLIP * torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("spoiled", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path, spoiled):
    def poison(step, loss):
        if step != 2:
            return loss
        return loss * float("nan") if spoiled == "loss" else (loss - loss.detach()).clamp(min=0).sqrt() + 1.0

    before = train(tmp_path / "before", steps=2)
    after = train(tmp_path / "after", steps=3, poison=poison)
    assert (before.skipped, after.skipped) == (0, 1)
    for kept in ("modules", "ema"):
        first, second = (getattr(state, kept)["net"] for state in (before, after))
        if kept == "modules":
            first, second = first.state_dict(), second.state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_skipped_steps_are_bounded(tmp_path):
    with pytest.raises(FloatingPointError, match="3 steps with a non-finite"):
        train(tmp_path, max_skipped=2, poison=lambda step, loss: loss * float("inf"))


def test_a_micro_batch_that_is_not_finite_spoils_its_step_only(tmp_path):
    seen = []

    def poison(step, loss):
        seen.append(step)
        return loss * float("nan") if len(seen) == 3 else loss

    state = train(tmp_path, accumulate=2, poison=poison)
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert state.skipped == 1
    assert all(value.isfinite().all() for value in state.modules["net"].state_dict().values())


def test_half_precision_scales_its_loss_and_an_overflow_is_not_a_skipped_step(tmp_path):
    state = train(tmp_path, precision="fp16", steps=40, poison=lambda step, loss: loss * 20 ** (step < 1))
    assert state.skipped == 0
    assert 1 < state.scale.scale < 2.0**16  # float16 ends at 65504: the first scale was too much
    assert (state.modules["net"].weight - 1).abs().max() < 0.2  # it has learned nevertheless


def test_the_loss_scale_is_resumed(tmp_path):
    train(tmp_path, precision="fp16", steps=3, poison=lambda step, loss: loss * 1e35)
    assert train(tmp_path, precision="fp16", steps=4).scale.scale == 2.0**13


def test_the_loss_scale_grows_after_good_steps_and_never_falls_below_one():
    scale = LossScale(enabled=True, growth_interval=3)
    for _ in range(3):
        scale.update(overflowed=False)
    assert scale.scale == 2.0**17
    for _ in range(40):
        scale.update(overflowed=True)
    assert scale.scale == 1
    assert not scale.excuses()


@pytest.mark.parametrize(
    ("chosen", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_networks_compute_in_the_chosen_precision(chosen, dtype):
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with computing_in(chosen), autocast(x.device):
        assert layer(x).dtype == dtype
    with autocast(x.device):
        assert layer(x).dtype == (torch.bfloat16 if computes_bf16("cpu") else torch.float32)


def test_parts_of_a_batch_draw_what_the_whole_one_draws():
    def draws(rng, count):
        kinds = rng.uniform(count), rng.integers(3, 50, count), rng.stratified(count), rng.normal((count, 3))
        return [*kinds, torch.tensor([own.random() for own in rng.each(count)])], rng.shared.random()

    whole, decision = draws(StepRng(5, 7), 12)
    parts = [draws(StepRng(5, 7, part, 3), 4) for part in range(3)]
    for index, numbers in enumerate(whole):
        assert torch.equal(numbers, torch.cat([drawn[index] for drawn, _ in parts]))
    assert {told for _, told in parts} == {decision}
    assert not torch.equal(whole[3], draws(StepRng(5, 8), 12)[0][3])
    assert sorted((whole[2] * 12).long().tolist()) == list(range(12))
    with pytest.raises(ValueError, match=r"part in 0\.\.2"):
        StepRng(0, 0, 3, 3)


def test_normal_numbers_are_normal():
    from scipy import stats

    drawn = StepRng(0, 0).normal((200, 50))
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 0.01
    rows = torch.corrcoef(drawn) - torch.eye(200)
    assert rows.abs().max() < 0.7  # rows come from seeds of their own


@pytest.fixture
def networks(tiny_sd):
    from flashbulb.distill.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(tiny_sd)
    return checkpoint.load("unet").requires_grad_(True), checkpoint.load("vae")


def gradient(unet, vae, decode_batch):
    from flashbulb.distill.denoiser import Denoiser, Schedule
    from flashbulb.distill.objectives.base import World

    schedule = Schedule({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})
    world = World(
        student=Denoiser(unet, schedule), teacher=None, vae=vae, null_states=torch.zeros(1, 77, 32),
        real=None, decode_batch=decode_batch,
    )  # fmt: skip
    rng = StepRng(0, 0)
    unet.zero_grad()
    with computing_in("no"):
        x0 = world.student(rng.normal((3, 4, 8, 8)), torch.tensor([10, 500, 999]), rng.normal((3, 77, 32)))
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            pictures = world.decode(x0)
        pictures.square().mean().backward()
    return {name: weight.grad.clone() for name, weight in unet.named_parameters()}, sum(kept)


def test_decoding_in_parts_keeps_less_and_gives_the_same_gradient(networks):
    whole, much = gradient(*networks, 0)
    parts, little = gradient(*networks, 2)
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-7)
    assert little < much / 10


def test_checkpointing_gives_the_same_gradient(networks):
    unet, vae = networks
    plain, _ = gradient(unet, vae, 0)
    calls = []
    unet.mid_block.resnets[1].register_forward_pre_hook(lambda *_: calls.append(1))
    unet.enable_gradient_checkpointing()
    again, _ = gradient(unet, vae, 0)
    torch.testing.assert_close(plain, again, rtol=1e-4, atol=1e-7)
    assert len(calls) == 2  # once forward, once again in the backward pass


def test_tensorboard_has_the_curves_of_the_statistics(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path, tensorboard=True, steps=3)
    train(tmp_path, tensorboard=True, steps=5)
    board = reading.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    curve = {event.step: event.value for event in board.Scalars("loss")}
    assert curve == pytest.approx({line["step"]: line["loss"] for line in lines})


@pytest.mark.parametrize(("has", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bf16_only_where_the_processor_computes_it(monkeypatch, has, dtype):
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": has, "name": "x"}
    )
    computes_bf16.cache_clear()
    try:
        with autocast(torch.device("cpu")):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
        assert resolved("auto", "cpu") == ("bf16" if has else "no")
        assert resolved("fp16", "cpu") == "fp16"
    finally:
        computes_bf16.cache_clear()


def test_what_float16_cannot_hold_is_computed_in_float32():
    cpu = torch.device("cpu")
    with computing_in("fp16"):
        for wide, dtype in ((False, torch.float16), (True, torch.float32)):
            with autocast(cpu, wide=wide):
                assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    with computing_in("bf16"), autocast(cpu, wide=True):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
