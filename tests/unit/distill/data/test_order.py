"""The order of samples: all of them once an epoch, whoever draws, a function of (seed, step)."""

import random

import pytest

from flashbulb.distill.data.base import DataOptions
from flashbulb.distill.data.captioned import open_source
from flashbulb.distill.data.order import Order, Turn, shuffled, tickets
from flashbulb.distill.loop import StepRng

SIZES = (4, 3, 5)


def turn(step, part=0, parts=1, seed=0):
    return Turn(1000 * step + part, seed=seed, step=step, part=part, parts=parts)


def drawn(order, steps, count, parts, seed=0):
    """Return the samples of each step, over all parts in turn."""
    return [
        [order(t) for part in range(parts) for t in turn(step, part, parts, seed).tickets(count)]
        for step in range(steps)
    ]


@pytest.mark.parametrize(("parts", "count"), [(1, 12), (2, 6), (3, 2), (4, 1), (2, 5)])
def test_every_sample_is_seen_once_an_epoch_over_all_parts(parts, count):
    order = Order(SIZES, 2)
    seen = [i for step in drawn(order, 36 // (parts * count) + 1, count, parts) for i in step]
    for epoch in range(2):
        assert sorted(seen[12 * epoch : 12 * (epoch + 1)]) == list(range(12))
    assert seen[:12] != seen[12:24]


def test_the_order_does_not_depend_on_how_a_batch_is_divided():
    order = Order(SIZES, 2)
    whole = drawn(order, 5, 6, 1)
    assert whole == drawn(order, 5, 3, 2) == drawn(order, 5, 1, 6)
    assert whole != drawn(order, 5, 6, 1, seed=1)
    assert len({tuple(step) for step in whole}) == 5


def test_a_batch_may_be_larger_than_the_data():
    seen = drawn(Order(SIZES, 1), 1, 30, 1)[0]
    assert sorted(seen[:12]) == sorted(seen[12:24]) == list(range(12))


def test_reading_stays_among_few_shards():
    sizes, mix = (10,) * 20, 3
    order = shuffled(sizes, mix, 0, 0, 0)
    for start in range(0, 180, 30):
        assert len({int(i) // 10 for i in order[start : start + 30]}) == mix
    assert [int(i) for i in order[:30]] != sorted(int(i) for i in order[:30])
    assert sorted(order.tolist()) == list(range(200))


def test_a_second_draw_of_a_step_is_a_line_of_its_own():
    order = Order((100,), 1)
    lines = [[], []]
    for step in range(25):
        rng = turn(step)
        for line in lines:
            line.extend(order(t) for t in rng.tickets(4))
    assert sorted(lines[0]) == sorted(lines[1]) == list(range(100))
    assert lines[0] != lines[1]


def test_a_generator_without_a_turn_draws_freely_and_reproducibly():
    order = Order(SIZES, 2)
    first = [order(t) for t in tickets(random.Random(3), 600)]
    assert first == [order(t) for t in tickets(random.Random(3), 600)]
    assert set(first) == set(range(12))
    assert max(first.count(i) for i in range(12)) < 90


def rows(count, part=0, parts=1, step=5):
    """Return the order's samples of the rows of two draws of one step."""
    order, rng = Order((100,), 1), StepRng(7, step, part, parts)
    return [[order(t) for own in rng.each(count) for t in tickets(own, 1)] for _ in range(2)]


def test_the_rows_of_a_training_step_stand_in_line_whoever_draws_them():
    whole, halves = rows(6), [rows(3, part, 2) for part in (0, 1)]
    for draw in range(2):
        assert whole[draw] == halves[0][draw] + halves[1][draw]
    assert whole[0] != whole[1]
    epoch = [i for step in range(25) for i in rows(4, step=step)[0]]
    assert sorted(epoch) == list(range(100))
