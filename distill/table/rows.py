"""Rows of the table: which distillations make a student, and how pictures are drawn from it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec

from flashbulb.distill.objectives import AnyObjective
from flashbulb.distill.samplers import SamplerName
from flashbulb.distill.table.references import REFERENCES
from flashbulb.distill.timesteps import TimestepName

FILE = Path(__file__).parent / "rows.yaml"


class Draw(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One way of drawing pictures from a student, written ``SAMPLER STEPS [guidance G] [SPACING]``."""

    sampler: SamplerName
    steps: int
    guidance: float = 1.0
    spacing: TimestepName = "trailing"

    @classmethod
    def parse(cls, text: str) -> Draw:
        """Read ``euler 4``, ``ddim 25 guidance 3`` or ``euler_ancestral 4 sgm``.

        Raises:
            ValueError: for anything else.
        """
        words = text.split()
        found: dict[str, Any] = dict(zip(("sampler", "steps"), words[:2], strict=False))
        rest = words[2:]
        while rest:
            word = rest.pop(0)
            if word == "guidance" and rest:
                found["guidance"] = rest.pop(0)
            elif word in get_args(TimestepName):
                found["spacing"] = word
            else:
                raise ValueError(f"wanted SAMPLER STEPS [guidance G] [SPACING], got {text!r}")
        try:
            return msgspec.convert(found, cls, strict=False)
        except msgspec.ValidationError as error:
            raise ValueError(f"wanted SAMPLER STEPS [guidance G] [SPACING], got {text!r}: {error}") from error


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One distillation of a row's chain."""

    objective: AnyObjective
    """What the student learns from."""
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """Its length, as a share of the table's steps."""


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One line of the table."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]+$")]
    """Name; predictions refer to it."""
    title: str
    """What people read."""
    part: str
    """Table of arXiv 2311.17042 that it answers to, or ``knobs`` or ``ours``."""
    chain: tuple[Link, ...] = ()
    """Distillations, each the teacher of the next; none judges ``checkpoint`` as it is."""
    checkpoint: str = "embedded:teacher"
    """Teacher of the first distillation, or what is judged."""
    draws: tuple[str, ...] = ("euler 1",)
    """Ways of drawing pictures, see `Draw.parse`, or references; the first is the row's own figure."""
    needs: str = ""
    """Hub id of a network that must be in the local cache; without it the row is left out, and says so."""

    def __post_init__(self) -> None:
        for text in self.draws:
            if text not in REFERENCES:
                Draw.parse(text)
        if not self.draws:
            raise ValueError(f"row {self.id}: wanted at least one way of drawing, got none")

    def resolved(self, budget: dict[str, Any]) -> dict[str, Any]:
        """Return everything that the row's figures depend on, defaults included."""
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode({"row": self, "budget": budget}))
        for word in ("title", "part"):
            plain["row"].pop(word)
        return plain

    def key(self, budget: dict[str, Any]) -> str:
        """Return the hash of what the row says beside defaults, so that a new option leaves it alone."""
        said = stated(self)
        for word in ("title", "part"):
            said.pop(word)
        text = msgspec.json.encode({"row": said, "budget": budget}, order="sorted")
        return hashlib.sha256(text).hexdigest()[:16]


def stated(value: Any) -> Any:
    """Return a configuration as plain data without the fields that are as by default."""
    if isinstance(value, list | tuple):
        return [stated(v) for v in value]
    if not isinstance(value, msgspec.Struct):
        return value
    tag = value.__struct_config__.tag
    found = {} if tag is None else {"type": tag}
    for field in msgspec.structs.fields(value):
        now = getattr(value, field.name)
        if now != field.default:
            found[field.name] = stated(now)
    return found


def still_holds(then: Any, now: Any) -> bool:
    """Tell whether a resolved recipe of earlier says what the present one does, new options left aside."""
    if isinstance(then, dict) and isinstance(now, dict):
        return all(name in now and still_holds(value, now[name]) for name, value in then.items())
    if isinstance(then, list) and isinstance(now, list):
        return len(then) == len(now) and all(still_holds(a, b) for a, b in zip(then, now, strict=True))
    return bool(then == now)


def load_rows(file: Path = FILE) -> tuple[Row, ...]:
    """Read rows from YAML.

    Raises:
        ValueError: for a file that holds no rows, or one name twice.
    """
    try:
        rows = msgspec.yaml.decode(file.read_bytes(), type=tuple[Row, ...])
    except msgspec.ValidationError as error:
        raise ValueError(f"{file}: {error}") from error
    names = [row.id for row in rows]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{file}: wanted every id once, got {', '.join(sorted(twice))} again")
    return rows


def choose(rows: tuple[Row, ...], names: tuple[str, ...]) -> tuple[Row, ...]:
    """Return the rows of these names, all for none.

    Raises:
        ValueError: for a name that no row has.
    """
    known = {row.id: row for row in rows}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"wanted rows among {', '.join(known)}; got {', '.join(unknown)}")
    return tuple(known[name] for name in names) if names else rows
