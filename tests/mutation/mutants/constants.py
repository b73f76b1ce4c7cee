"""Faults in the stored numbers of a program, the same for every format."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mutants.fault import Plant, Planter
from mutants.view import Array, Attention, Const, View, attentions

Open = Callable[[Path], View]
BITS = {
    2: {"sign": 15, "exponent": 12, "high mantissa": 9, "last mantissa": 0},
    4: {"sign": 31, "exponent": 25, "high mantissa": 22, "last mantissa": 0},
}
"""Bits that are flipped, by bytes of the float."""
CONVS = ("Conv", "conv", "Conv2d")
BIASED = (*CONVS, "Gemm", "Add", "linear", "FullyConnected")
MULTIPLIED = ("Mul", "mul", "Multiply", "FusedMatMul")


def planted(open_: Open, how: Callable[[View], None]) -> Plant:
    """Open, change, save."""

    def plant(root: Path) -> None:
        view = open_(root)
        how(view)
        view.save()

    return plant


def constant_faults(planter: Planter, open_: Open, view: View) -> None:
    """Add every fault of a program's constants; generators get those that its parts cannot have."""
    fused = planter.component == "generator"
    _weights(planter, open_, view, few=fused)
    _codes(planter, open_, view, few=fused)
    if not fused:
        _biases(planter, open_, view)
        _channels(planter, open_, view)
    _attention(planter, open_, view, few=fused)
    _scalars(planter, open_, view)
    if planter.component in ("text_encoder", "generator"):
        _text(planter, open_, view)
    if planter.component in ("vae_decoder", "generator"):
        _picture(planter, open_, view)


def on(name: str, how: Callable[[Const], None]) -> Callable[[View], None]:
    """Change one constant by name."""
    return lambda view: how(view.consts[name])


def values(name: str, how: Callable[[Array], Any]) -> Callable[[View], None]:
    """Change the values of one constant, in place or by what is returned."""

    def change(array: Array) -> Array:
        found = how(array)
        return array if found is None else np.asarray(found, array.dtype)

    return on(name, lambda const: const.values.change(change))


def flip(index: int, bit: int) -> Callable[[Array], Array]:
    """Return a change that flips one bit of one element."""

    def change(array: Array) -> Array:
        words = array.reshape(-1).view(f"u{array.itemsize}")
        words[index] ^= np.array(1 << bit, words.dtype)
        return words.view(array.dtype).reshape(array.shape)

    return change


def _weights(planter: Planter, open_: Open, view: View, *, few: bool) -> None:
    names, rng = view.floats(), planter.rng("weight-bit")
    width = view.consts[names[0]].values.read().itemsize
    for word, _ in list(BITS[width].items())[: 2 if few else 4]:
        name = rng.choice(names)
        const = view.consts[name]
        bit, index = BITS[const.values.read().itemsize][word], rng.randrange(const.size)
        about = f"{word} bit of element {index} of {name} flipped"
        planter.add("weight-bit", about, planted(open_, values(name, flip(index, bit))))
    if not few:
        name = planter.rng("weight-value").choice([n for n in names if view.consts[n].values.read().any()])
        index = int(np.abs(view.consts[name].values.read()).argmax())

        def more(array: Array, index: int = index) -> None:
            array.reshape(-1)[index] *= 1.5

        about = f"largest element of {name} times 1.5"
        planter.add("weight-value", about, planted(open_, values(name, more)))


def _codes(planter: Planter, open_: Open, view: View, *, few: bool) -> None:
    """Bits of tables, indices, steps and zero points."""
    coded = {n: c for n, c in view.consts.items() if c.parts}
    for part, bits in (("lut", (15, 9, 0)), ("scale", (14, 9, 0)), ("zero_point", (0,))):
        names = [n for n, c in coded.items() if part in c.parts]
        rng = planter.rng(part)
        for bit in bits[: 1 if few else 3] if names else ():
            name = rng.choice(names)
            held = view.consts[name].parts[part].read()
            index, bit = rng.randrange(held.size), bit if held.itemsize == 2 else (bit + 16) % 32
            bit = bit if held.dtype.kind == "f" else 0

            def change(const: Const, p: str = part, i: int = index, b: int = bit) -> None:
                const.parts[p].change(flip(i, b))

            about = f"bit {bit} of {part} {index} of {name} flipped"
            planter.add(f"{part}-bit", about, planted(open_, on(name, change)))
    for name in planter.pick("code-bit", coded, 1 if few else 3):
        const, rng = coded[name], planter.rng(f"code-bit/{name}")
        bit, index = rng.randrange(5), rng.randrange(const.size)
        about = f"bit {bit} of code {index} of {name} flipped"
        planter.add("code-bit", about, planted(open_, values(name, flip(index, bit))))
    tables = [n for n, c in coded.items() if "lut" in c.parts]
    for name in planter.pick("lut-order", tables, 0 if few else 1):

        def swap(const: Const) -> None:
            const.parts["lut"].change(lambda a: np.concatenate([a.reshape(-1)[[1, 0]], a.reshape(-1)[2:]]))

        planter.add(
            "lut-order", f"first two entries of the table of {name} swapped", planted(open_, on(name, swap))
        )


def used_by(view: View, ops: Iterable[str]) -> list[str]:
    """Name the constants that some kinds of operations take."""
    return list(dict.fromkeys(n for _, node in view.of(*ops) for n in node.inputs if n in view.consts))


def _biases(planter: Planter, open_: Open, view: View) -> None:
    names = [
        n
        for n in used_by(view, BIASED)
        if len(view.consts[n].shape) == 1 and view.consts[n].size >= 8 and view.consts[n].values.read().any()
    ]
    for name in planter.pick("bias-dropped", names, 2):
        about = f"{name} set to zero"
        planter.add("bias-dropped", about, planted(open_, on(name, Const.zero)))


def _channels(planter: Planter, open_: Open, view: View) -> None:
    names = [
        n for n in used_by(view, CONVS) if len(view.consts[n].shape) == 4 and view.consts[n].shape[0] > 4
    ]

    def swap(array: Array) -> None:
        array[[0, 1]] = array[[1, 0]]

    for name in planter.pick("channels-swapped", names, 2):
        about = f"first two output channels of {name} swapped"
        planter.add("channels-swapped", about, planted(open_, values(name, swap)))


def _swap_weights(one: str, other: str) -> Callable[[View], None]:
    def change(view: View) -> None:
        first, second = view.consts[one], view.consts[other]
        pairs = [(first.values, second.values)]
        pairs += [
            (first.parts[k], second.parts[k]) for k in first.parts if k in second.parts and k != "packed"
        ]
        for left, right in pairs:
            kept = left.read().copy(), right.read().copy()
            left.write(kept[1])
            right.write(kept[0])

    return change


def _heads(width: int, axis: int) -> Callable[[Array], None]:
    def swap(array: Array) -> None:
        moved = np.moveaxis(array, axis, 0)
        moved[: 2 * width] = np.concatenate([moved[width : 2 * width], moved[:width]])

    return swap


def _attention(planter: Planter, open_: Open, view: View, *, few: bool) -> None:
    found = attentions(view)
    alike = [a for a in found if view.consts[a.query].shape == view.consts[a.key].shape]
    for one in planter.pick("qk-swapped", alike, 1):
        about = f"{one.query} and {one.key} swapped"
        planter.add("qk-swapped", about, planted(open_, _swap_weights(one.query, one.key)))
    axis = 1 if planter.format in ("onnx", "ort") else 0
    headed = [a for a in found if a.head and view.consts[a.query].shape[axis] >= 2 * a.head]
    for one in planter.pick("heads-swapped", headed, 0 if few else 1):
        for name in (one.query, one.key):
            about = f"first two heads of {name} swapped"
            planter.add("heads-swapped", about, planted(open_, values(name, _heads(one.head or 1, axis))))
    square = [a.query for a in found if len(set(view.consts[a.query].shape)) == 1]
    for name in planter.pick("transposed", square, 0 if few else 1):
        planter.add("transposed", f"{name} transposed", planted(open_, values(name, np.transpose)))
    cross = [a for a in found if a.cross]
    if cross:
        _condition(planter, open_, cross)


def _condition(planter: Planter, open_: Open, cross: list[Attention]) -> None:
    def cut(view: View) -> None:
        for one in cross:
            view.consts[one.value].zero()

    about = f"values of all {len(cross)} attentions to the text set to zero"
    planter.add("condition-cut", about, planted(open_, cut))


def _scalars(planter: Planter, open_: Open, view: View) -> None:
    """A factor that is a little off: attention's, or one of the affine's."""
    names = [n for n in used_by(view, MULTIPLIED) if view.consts[n].size == 1 and not view.consts[n].parts]
    for name in planter.pick("factor", names, 1):
        held = float(view.consts[name].values.read().reshape(-1)[0])
        about = f"factor {name} of {held:.4g} times 1.02"
        planter.add("factor", about, planted(open_, values(name, lambda a: a * 1.02)))


def _text(planter: Planter, open_: Open, view: View) -> None:
    floats = {n: view.consts[n].values.read() for n in view.floats()}
    masks = [n for n, a in floats.items() if a.min() <= -1e3 and a.max() <= 0]
    for name in masks[:1]:
        planter.add("mask-dropped", f"causal mask {name} set to zero", planted(open_, on(name, Const.zero)))
    tables = [n for n, c in view.consts.items() if len(c.shape) == 2 and c.shape[0] >= 500]
    if tables:
        name = max(tables, key=lambda n: view.consts[n].shape[0])

        def same(array: Array) -> None:
            array[:] = array[:1]

        planter.add("condition-cut", f"every row of {name} the same", planted(open_, values(name, same)))


def _picture(planter: Planter, open_: Open, view: View) -> None:
    """Order of the colours, and the range that the picture comes in."""
    last = [[n for n in node.inputs if n in view.consts] for _, node in view.of(*CONVS)]
    finals = [names for names in last if len(names) == 2 and _rows(view, names) == 3]
    if not finals:
        return
    weight, bias = sorted(finals[-1], key=lambda n: -len(view.consts[n].shape))

    def reverse(view: View) -> None:
        for name in (weight, bias):
            view.consts[name].values.change(lambda a: a[::-1])

    planter.add("channel-order", "the picture's channels in the order BGR", planted(open_, reverse))
    fused = "ConvMulFusion" in weight

    def wide(view: View) -> None:
        store = view.consts[weight].parts.get("lut") or view.consts[weight].values
        store.change(lambda a: a * 2)
        view.consts[bias].values.change(lambda a: 2 * a - (0.5 if fused else 1.0))
        open_low(view)

    planter.add("picture-range", "the picture in [-1, 1] instead of [0, 1]", planted(open_, wide))


def _rows(view: View, names: list[str]) -> int:
    return max((view.consts[n].shape[0] for n in names if len(view.consts[n].shape) == 4), default=0)


def open_low(view: View) -> None:
    """Lower the bound of the last clamp to -1, where it is stored."""
    clips = [node for _, node in view.of("Clip", "clip", "Clamp")]
    for name in clips[-1].inputs[1:] if clips else ():
        const = view.consts.get(name)
        if const is not None and const.size == 1 and not const.values.read().any():
            const.values.change(lambda a: a - 1)
            return
    if clips and clips[-1].op == "Clamp":
        bounds = clips[-1].ref[0].table(3)
        if bounds is not None:
            bounds.put(0, "f", -1.0)
