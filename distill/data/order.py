"""The order in which samples are seen: a function of (seed, step), whoever asks.

The rows of all steps stand in one line, and each epoch of the line is a shuffle of all samples. A process, a
micro-batch or a thread takes the rows that its part of the step owns. So every sample is seen exactly once an
epoch across all of them, a resumed run goes on where it was, and a run may be resumed with another number of
processes: nothing depends on it.
"""

from __future__ import annotations

import functools
import random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


class Turn(random.Random):
    """A generator that also knows whose turn it is: which part of which step.

    Attributes:
        seed: seed of the training.
        step: step of the training.
        part: which of ``parts`` equal parts of the step's batch draws.
        parts: processes times micro-batches; or, for a single row, rows of the whole batch.
        stream: counts the draws within a step; each is a line of its own.
    """

    def __init__(
        self, key: int, *, seed: int, step: int, part: int = 0, parts: int = 1, stream: int = 0
    ) -> None:
        super().__init__(key)
        self.place = (seed, step, part, parts)
        self.stream = stream

    def tickets(self, count: int) -> list[Ticket]:
        """Return the places in line of the next ``count`` rows of this part; the stream moves on."""
        seed, step, part, parts = self.place
        first, stream = (step * parts + part) * count, self.stream
        self.stream += 1
        return [Ticket(seed, stream, first + row, parts * count) for row in range(count)]


class Ticket(NamedTuple):
    """A place in line, or with ``stream`` -1 a free draw whose key is ``place``."""

    seed: int
    stream: int
    place: int
    batch: int

    def rng(self) -> random.Random:
        """Return the generator of everything random about this row besides its sample."""
        return random.Random(f"{self.seed}/{self.stream}/{self.place}")

    def following(self) -> Ticket:
        """Return the ticket of the same row one step later."""
        return self._replace(place=self.place + self.batch)


def tickets(rng: random.Random, count: int) -> list[Ticket]:
    """Return the places in line of ``count`` rows, or free draws for a generator that is in no line."""
    if isinstance(rng, Turn):
        return rng.tickets(count)
    return [Ticket(0, -1, rng.getrandbits(64), 0) for _ in range(count)]


class Order:
    """Which sample a ticket means, for samples that lie in groups of the given sizes."""

    def __init__(self, sizes: tuple[int, ...], mix: int) -> None:
        self.sizes, self.mix, self.total = sizes, mix, sum(sizes)

    def __call__(self, ticket: Ticket) -> int:
        """Return the number of the sample; free draws are even, with replacement."""
        if ticket.stream < 0:
            return ticket.place % self.total
        epoch, row = divmod(ticket.place, self.total)
        return int(shuffled(self.sizes, self.mix, ticket.seed, ticket.stream, epoch)[row])


@functools.lru_cache(maxsize=6)
def shuffled(sizes: tuple[int, ...], mix: int, seed: int, stream: int, epoch: int) -> IntArray:
    """Return one epoch: groups in random order, the samples of each ``mix`` groups shuffled together.

    The legacy generator is meant: numpy promises that its numbers never change.
    """
    random_state = np.random.RandomState([seed % 2**32, seed // 2**32 % 2**32, stream, epoch])
    ends = np.cumsum((0, *sizes))
    groups = random_state.permutation(len(sizes))
    mixed = [groups[i : i + mix] for i in range(0, len(groups), mix)]
    return np.concatenate(
        [
            random_state.permutation(np.concatenate([np.arange(ends[g], ends[g + 1]) for g in some]))
            for some in mixed
        ]
    )
