"""Draw from rows: which sample it is, its caption, its picture, and what happens when it is unreadable."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from flashbulb.distill.data.base import BadSample, DataOptions, Rows
from flashbulb.distill.data.order import Order, Ticket, tickets
from flashbulb.distill.data.pictures import prepare

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
T = TypeVar("T")
KEPT = 8
"""Batches read ahead that are kept: as many as a step may have draws and micro-batches."""


class Drawn(NamedTuple):
    """One sample as it is trained on: picture (size, size, 3) of bytes, caption."""

    picture: npt.NDArray[np.uint8]
    caption: str


class RowSource:
    """A source of captioned pictures that stands on rows."""

    def __init__(self, rows: Rows, size: int, options: DataOptions) -> None:
        """Draw pictures of ``size`` pixels from ``rows``.

        Raises:
            ValueError: when there are no samples, or more incomplete ones than ``options`` allow.
        """
        self.rows, self.size, self.options = rows, size, options
        self.order = Order(rows.sizes, options.mix)
        self.bad = BadLog(options.max_bad)
        for name, reason in rows.incomplete:
            self.bad.add(name, reason)
        if not self.order.total:
            raise ValueError("wanted at least one captioned picture, got none that is complete")
        self.read = Ahead(self._drawn, options.workers)

    def draw(self, count: int, rng: random.Random) -> tuple[torch.Tensor, list[str]]:
        """Return pictures (count, 3, size, size) in [-1, 1] and their captions."""
        return self._batch(tickets(rng, count))

    def draw_each(self, rngs: Sequence[random.Random]) -> tuple[torch.Tensor, list[str]]:
        """Return one picture and caption for each generator."""
        return self._batch([tickets(rng, 1)[0] for rng in rngs])

    def captions(self, count: int, rng: random.Random) -> list[str]:
        """Return the captions alone that `draw` would return, were all pictures readable."""
        return [self._first_readable(ticket, self._caption) for ticket in tickets(rng, count)]

    def _batch(self, wanted: list[Ticket]) -> tuple[torch.Tensor, list[str]]:
        import torch

        drawn = self.read(wanted)
        pictures = torch.from_numpy(np.stack([d.picture for d in drawn])).permute(0, 3, 1, 2)
        return pictures.float() / 127.5 - 1, [d.caption for d in drawn]

    def _drawn(self, ticket: Ticket) -> Drawn:
        return self._first_readable(ticket, self._prepared)

    def _first_readable(self, ticket: Ticket, read: Callable[[int, random.Random], T]) -> T:
        """Read the ticket's sample, or the next one that can be read: the same one in every run."""
        index = self.order(ticket)
        for offset in range(self.order.total):
            at = (index + offset) % self.order.total
            try:
                return read(at, ticket.rng())
            except BadSample as error:
                self.bad.add(self.rows.name(at), str(error))
        raise ValueError(f"wanted one readable sample, got none of {self.order.total}")

    def _caption(self, index: int, rng: random.Random) -> str:
        return rng.choice(self.rows.captions(index))

    def _prepared(self, index: int, rng: random.Random) -> Drawn:
        caption = self._caption(index, rng)
        options, data = self.options, self.rows.picture(index)
        return Drawn(prepare(data, self.size, crop=options.crop, flip=options.flip, rng=rng), caption)


class BadLog:
    """Samples that could not be read: each is named once, and there may be so many."""

    def __init__(self, limit: int) -> None:
        self.limit, self.names, self._lock = limit, set[str](), threading.Lock()

    def add(self, name: str, reason: str) -> None:
        """Note an unreadable sample.

        Raises:
            ValueError: when it is one too many.
        """
        with self._lock:
            known = name in self.names
            self.names.add(name)
            count = len(self.names)
        if count > self.limit:
            raise ValueError(
                f"{name}: {reason}; {count} unreadable samples, more than data_options.max_bad = "
                f"{self.limit}: mend or remove it, or allow more"
            )
        if not known:
            log.warning("passed over %s: %s (%d of at most %d)", name, reason, count, self.limit)


class Ahead:
    """Reads tickets, with threads that already read what the next step will ask for."""

    def __init__(self, read: Callable[[Ticket], Drawn], workers: int) -> None:
        self.one = read
        self.pool = ThreadPoolExecutor(workers, "pictures") if workers else None
        self.begun: dict[Ticket, Future[Drawn]] = {}

    def __call__(self, wanted: list[Ticket]) -> list[Drawn]:
        """Return what the tickets stand for, in their order."""
        if self.pool is None:
            return [self.one(ticket) for ticket in wanted]
        now = [self._begin(ticket) for ticket in wanted]
        for ticket in wanted:
            self.begun.pop(ticket, None)
        for ticket in wanted:
            if ticket.stream >= 0:
                self._begin(ticket.following())
        for stale in list(self.begun)[: -KEPT * len(wanted)]:
            self.begun.pop(stale).cancel()
        return [future.result() for future in now]

    def _begin(self, ticket: Ticket) -> Future[Drawn]:
        """Return the reading of a ticket, begun now or before."""
        assert self.pool is not None
        if ticket not in self.begun:
            self.begun[ticket] = self.pool.submit(self.one, ticket)
        return self.begun[ticket]
