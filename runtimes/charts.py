"""Line charts as inline SVG that takes its colours from the page, so that they follow light and dark."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

WIDTH, HEIGHT = 320, 150
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 22
NOT_CURVES = ("step", "skipped", "wall_s", "images", "tick")


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """One statistic over the steps of a training."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


def read_curves(stats: Path) -> tuple[Curve, ...]:
    """Read every numeric statistic of a ``stats.jsonl``; lines that are not whole are left out."""
    rows = []
    for line in stats.read_text().splitlines() if stats.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the last line of a run that was killed while it wrote
    names = dict.fromkeys(k for row in rows for k, v in row.items() if isinstance(v, int | float))
    return tuple(_curve(name, rows) for name in names if name not in NOT_CURVES)


def _curve(name: str, rows: Sequence[Mapping[str, float]]) -> Curve:
    points = [
        (float(row.get("step", i)), float(row[name]))
        for i, row in enumerate(rows)
        if isinstance(row.get(name), int | float) and math.isfinite(row[name])
    ]
    return Curve(name=name, steps=tuple(p[0] for p in points), values=tuple(p[1] for p in points))


def smooth(values: Sequence[float]) -> list[float]:
    """Average exponentially over about a thirtieth of the curve, without the lag of the first values."""
    keep = max(0.0, 1.0 - 30.0 / max(len(values), 1))
    found, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1.0
        found.append(total / weight)
    return found


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers that span a range."""
    span = high - low
    if not span > 0.0:
        return [low]
    rough = span / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(m * size for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * size >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """Write a tick briefly: 12k, 0.05, 3e-05."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def chart(curve: Curve) -> str:
    """Draw one curve, raw and smoothed, as an SVG element."""
    xs, ys = curve.steps, curve.values
    if len(xs) < 2:
        return ""
    low, high = _range(ys)
    left, right = min(xs), max(xs)

    def at(x: float, y: float) -> str:
        px = LEFT + (x - left) / max(right - left, 1e-12) * (WIDTH - LEFT - RIGHT)
        py = TOP + (high - min(max(y, low), high)) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return f"{px:.1f},{py:.1f}"

    grid = "".join(_across(y, at(left, y), at(right, y)) for y in ticks(low, high))
    grid += "".join(_below(x, at(x, low)) for x in ticks(left, right))
    keep = max(1, len(xs) // 400)
    raw = " ".join(at(x, y) for x, y in list(zip(xs, ys, strict=True))[::keep])
    mean = " ".join(at(x, y) for x, y in list(zip(xs, smooth(ys), strict=True))[::keep])
    title = f"{curve.name} from {label(ys[0])} to {label(ys[-1])}"
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_escape(title)}">{grid}'
        f'<polyline class="raw" points="{raw}"/><polyline class="mean" points="{mean}"/></svg>'
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Cut the one percent of wildest values at each end, so that a spike does not flatten the curve."""
    ordered = sorted(values)
    cut = len(ordered) // 100
    low, high = ordered[cut], ordered[-1 - cut]
    room = 0.05 * (high - low) or max(abs(high) * 0.1, 1e-6)
    return low - room, high + room


def _across(value: float, start: str, end: str) -> str:
    (x1, y1), (x2, _) = start.split(","), end.split(",")
    text = f'<text x="{LEFT - 5}" y="{float(y1) + 3:.1f}" class="tick end">{label(value)}</text>'
    return f'<line class="grid" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y1}"/>{text}'


def _below(value: float, where: str) -> str:
    x = where.split(",")[0]
    return f'<text x="{x}" y="{HEIGHT - 6}" class="tick middle">{label(value)}</text>'


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
