"""Faults in the XNNPACK graphs of a `.pte`, in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mutants.constants import Open, planted, values
from mutants.fault import Planter
from mutants.pte_view import BINARY, OPS, PteView
from mutants.view import View

TRANSPOSED = 1
"""XNNPACK's flag of a weight whose rows are inputs."""


def delegate_faults(planter: Planter, open_: Open, view: PteView) -> None:
    """Add the faults of one method's operations."""
    _epsilons(planter, open_, view)
    for old, new in (("Gelu", "Tanh"), ("Sigmoid", "Tanh"), ("ReciprocalSquareRoot", "SquareRoot")):
        kind = "gelu-mode" if old == "Gelu" else "op-replaced"
        _retype(planter, open_, view, kind, old, new)
    _retype(planter, open_, view, "op-replaced", "Add", "Maximum")
    _swap(planter, open_, view, "Subtract", (0, 1))
    _swap(planter, open_, view, "Concatenate2", (1, 2))
    _swap(planter, open_, view, "Add", (0, 1), kind="same-program")
    _pads(planter, open_, view)
    axes_faults(planter, open_, view)
    flag_faults(planter, open_, view)
    _perms(planter, open_, view)
    _clamps(planter, open_, view)


def _epsilons(planter: Planter, open_: Open, view: PteView) -> None:
    small = [
        n for n, c in view.consts.items() if c.size == 1 and 0 < float(c.values.read().reshape(-1)[0]) < 1e-3
    ]
    for factor in (10, 1000):
        for name in planter.pick(f"eps/{factor}", small, 1):
            about = f"eps {name} times {factor}"
            planter.add("eps", about, planted(open_, values(name, lambda a, f=factor: a * f)))


def _retype(planter: Planter, open_: Open, view: PteView, kind: str, old: str, new: str) -> None:
    """Give a node another kind whose table has the same fields."""
    assert (old in BINARY) == (new in BINARY)
    for index in planter.pick(f"{kind}/{old}", [i for i, _ in view.of(old)], 1):

        def edit(view: View, index: int = index) -> None:
            assert view.nodes[index].ref[0].put(0, "B", OPS.index(new))

        about = f"{old} {view.nodes[index].outputs[0]} became {new}"
        planter.add(kind, about, planted(open_, edit))


def _fields(index: int, how: Callable[[Any], None]) -> Callable[[View], None]:
    return lambda view: how(view.nodes[index].ref[1])


def _swap(
    planter: Planter, open_: Open, view: PteView, op: str, fields: tuple[int, int], kind: str = "operands"
) -> None:
    def swap(table: Any) -> None:
        one, other = (table.number(f) for f in fields)
        assert table.put(fields[0], "I", other)
        assert table.put(fields[1], "I", one)

    places = [i for i, n in view.of(op) if all(n.ref[1].at(f) is not None for f in fields)]
    for index in planter.pick(f"{kind}/{op}", places, 1):
        about = f"inputs of {op} {view.nodes[index].outputs[0]} swapped"
        planter.add(kind, about, planted(open_, _fields(index, swap)))


def _pads(planter: Planter, open_: Open, view: PteView) -> None:
    def swap(table: Any) -> None:
        # A zero is not stored, so the padding is moved to the sides by one of two and none of it dropped.
        assert table.put(0, "I", 2)

    places = [i for i, n in view.of("Conv2d") if n.ref[1].number(0) == 1]
    for index in planter.pick("pads", places, 1):
        about = f"upper padding of Conv2d {view.nodes[index].outputs[0]} from 1 to 2"
        planter.add("pads", about, planted(open_, _fields(index, swap)))


def axes_faults(planter: Planter, open_: Open, view: PteView) -> None:
    """Join along another axis; zero is not stored, and cannot be turned into another."""
    joins = [i for i, n in enumerate(view.nodes) if n.op.startswith("Concatenate") and n.ref[1].number(0) > 1]
    joins = joins or [
        i for i, n in enumerate(view.nodes) if n.op.startswith("Concatenate") and n.ref[1].number(0)
    ]
    for index in planter.pick("axis", joins, 1):
        old = view.nodes[index].ref[1].number(0)
        new = old - 1 if old > 1 else old + 1

        def turn(table: Any, new: int = new) -> None:
            assert table.put(0, "I", new)

        about = f"axis of {view.nodes[index].op} {view.nodes[index].outputs[0]} from {old} to {new}"
        planter.add("axis", about, planted(open_, _fields(index, turn)))


def flag_faults(planter: Planter, open_: Open, view: PteView) -> None:
    """Take the weight of a product as transposed, or no longer, where its flags are stored: zero is not."""
    for index in planter.pick(
        "transpose-flag", [i for i, n in view.of("FullyConnected") if n.ref[1].number(4)], 1
    ):

        def turn(table: Any) -> None:
            assert table.put(4, "I", table.number(4) ^ TRANSPOSED)

        about = f"transpose flag of FullyConnected {view.nodes[index].outputs[0]} turned"
        planter.add("transpose-flag", about, planted(open_, _fields(index, turn)))


def _perms(planter: Planter, open_: Open, view: PteView) -> None:
    def turn(table: Any) -> None:
        perm = table.numbers(1)
        table.put_numbers(1, "I", [*perm[:-3], perm[-2], perm[-3], perm[-1]])

    places = [i for i, n in view.of("StaticTranspose") if len(n.ref[1].numbers(1)) == 4]
    for index in planter.pick("perm", places, 2):
        about = f"two axes of StaticTranspose {view.nodes[index].outputs[0]} swapped"
        planter.add("perm", about, planted(open_, _fields(index, turn)))


def _clamps(planter: Planter, open_: Open, view: PteView) -> None:
    for index, node in view.of("Clamp"):
        bounds = node.ref[0].table(3)
        if bounds is not None and bounds.at(1) is not None:

            def edit(view: View, index: int = index) -> None:
                view.nodes[index].ref[0].table(3).put(1, "f", 255.0)

            planter.add("picture-range", "upper bound of the last clamp from 1 to 255", planted(open_, edit))
