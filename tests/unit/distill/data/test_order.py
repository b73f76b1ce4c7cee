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


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("shape", ["folder", "shards", "tables"])
def test_ranks_times_workers_see_each_sample_once(shape, ranks, workers, request, matches):
    root = request.getfixturevalue(shape)(
        **{"folder": {"count": 12}, "tables": {"counts": (7, 5)}}.get(shape, {})
    )
    sources = [open_source(str(root), 8, DataOptions(workers=workers, mix=2)) for _ in range(ranks)]
    epochs = [[], []]
    for step in range(24 // ranks):
        for rank, source in enumerate(sources):
            pictures, captions = source.draw(1, turn(step, rank, ranks))
            matches(pictures, captions)
            epochs[(step * ranks + rank) // 12].extend(captions)
    for epoch in epochs:
        assert sorted(epoch) == sorted(f"sample {i}" for i in range(12))


def test_draws_by_row_equal_the_draw_of_the_part(folder):
    """A trainer may ask row by row: each row's turn is a part of its own."""
    source = open_source(str(folder(12)), 8, DataOptions(crop="random", flip=True))
    for step in range(3):
        for part in range(2):
            whole = source.draw(3, turn(step, part, 2))
            rows = source.draw_each([turn(step, 3 * part + row, 6) for row in range(3)])
            assert whole[1] == rows[1]
            assert whole[0].equal(rows[0])


@pytest.mark.parametrize("workers", [0, 3])
def test_a_resumed_run_draws_what_the_whole_one_drew(workers, shards):
    root, options = str(shards()), DataOptions(workers=workers, crop="random", flip=True)
    source = open_source(root, 8, options)
    whole = [source.draw(4, turn(step)) for step in range(6)]
    resumed = open_source(root, 8, options)
    for step in (4, 5, 3):
        pictures, captions = resumed.draw(4, turn(step))
        assert captions == whole[step][1]
        assert pictures.equal(whole[step][0])


def test_reading_ahead_fetches_the_next_step_of_every_part_once(folder):
    """Micro-batches and several draws a step share the threads; each sample is read once and none is kept."""
    source = open_source(str(folder(60)), 8, DataOptions(workers=2))
    read, original = [], source.rows.picture
    source.rows.picture = lambda index: read.append(index) or original(index)
    for step in range(5):
        for part in range(2):
            rng = turn(step, part, 2)
            assert len(source.draw(3, rng)[1]) == len(source.draw(3, rng)[1]) == 3
    source.read.pool.shutdown()
    assert len(read) == (5 + 1) * 2 * 2 * 3
    assert len(source.read.begun) == 2 * 2 * 3
    source = open_source(str(folder(60, name="again")), 8, DataOptions(workers=2))
    for step in range(0, 100, 2):  # what was begun is never asked for
        source.draw(3, turn(step))
    assert len(source.read.begun) <= 8 * 3


def test_captions_alone_are_those_of_the_draw(folder):
    source = open_source(str(folder(12)), 8)
    assert source.captions(20, random.Random(1)) == source.draw(20, random.Random(1))[1]
