"""What became of all faults: a table of fault x gate, as JSON and as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from mutants.judge import Verdict

HASHES = "hashes"
"""The gate of files that nobody signed anew."""
RECORDED = "recorded"
"""All gates together, where the structure record is made anew as well."""


def write(found: Sequence[Verdict], head: dict[str, Any], folder: Path) -> None:
    """Write `mutation.json` and `mutation.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    value = {**head, "summary": summary(found), "faults": msgspec.to_builtins(list(found))}
    (folder / "mutation.json").write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    (folder / "mutation.md").write_text(markdown(found, head))


def summary(found: Sequence[Verdict]) -> dict[str, Any]:
    """Count what was planted, caught, equivalent and survived, in all and per gate."""
    real = [v for v in found if not v.equivalent]
    signed = [v.hashes for v in found if v.hashes is not None]
    recorded = [v for v in real if v.recorded is not None]
    return {
        "planted": len(found),
        "equivalent": sum(v.equivalent for v in found),
        "caught": sum(v.caught for v in real),
        "survived": [v.name for v in found if v.survived],
        "died": [v.name for v in found if "died" in v.gates],
        "unsigned": len(signed),
        "unsigned_caught_by_hashes": sum(signed),
        "recorded": len(recorded),
        "recorded_missed": [v.name for v in recorded if v.unrecorded],
        "seconds": round(sum(v.seconds for v in found), 1),
        "gates": {
            gate: {"caught": n, "alone": alone(real)[gate]} for gate, n in per_gate(real).most_common()
        },
    }


def per_gate(found: Sequence[Verdict]) -> Counter[str]:
    """Count the faults that each gate caught."""
    return Counter(gate for v in found for gate in v.gates)


def alone(found: Sequence[Verdict]) -> Counter[str]:
    """Count the faults that only one gate caught."""
    return Counter(next(iter(v.gates)) for v in found if len(v.gates) == 1)


def markdown(found: Sequence[Verdict], head: dict[str, Any]) -> str:
    """Return the whole report for people."""
    total = summary(found)
    parts = ["# Faults planted, and the gates that caught them\n"]
    parts.append("\n".join(f"- {key}: {value}" for key, value in head.items()))
    parts.append(
        f"\n{total['planted']} faults: {total['caught']} caught, {total['equivalent']} equivalent, "
        f"**{len(total['survived'])} survived**. Not signed anew, {total['unsigned_caught_by_hashes']} of "
        f"{total['unsigned']} are caught by their hashes. With a structure record made anew, "
        f"**{len(total['recorded_missed'])}** of {total['recorded']} faults in programs go through.\n"
    )
    parts += ["## By kind and format\n", _kinds(found), "\n## By gate\n", _gates(found)]
    parts += ["\n## Survivors\n", _list([v for v in found if v.survived])]
    parts += [
        "\n## Missed when the structure record is made anew\n",
        _list([v for v in found if v.unrecorded]),
    ]
    parts += ["\n## Equivalent\n", _list([v for v in found if v.equivalent])]
    parts += ["\n## Fault x gate\n", "`x`: caught; `X`: the only gate that caught it.\n", _cells(found)]
    return "\n".join(parts) + "\n"


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"


def _head(cells: Sequence[str]) -> list[str]:
    return [_row(cells), _row(["---"] * len(cells))]


def _kinds(found: Sequence[Verdict]) -> str:
    formats = list(dict.fromkeys(v.format for v in found))
    lines = _head(["kind", *formats, "planted", "caught", "equivalent", "survived"])
    for kind in sorted({v.kind for v in found}):
        of = [v for v in found if v.kind == kind]
        counts = Counter(v.format for v in of)
        lines.append(_row([kind, *(counts[f] or "" for f in formats), *_counts(of)]))
    counts = Counter(v.format for v in found)
    return "\n".join([*lines, _row(["**all**", *(counts[f] for f in formats), *_counts(found)])])


def _counts(of: Sequence[Verdict]) -> tuple[int, int, int, int]:
    return (
        len(of),
        sum(v.caught and not v.equivalent for v in of),
        sum(v.equivalent for v in of),
        sum(v.survived for v in of),
    )


def _gates(found: Sequence[Verdict]) -> str:
    real = [v for v in found if not v.equivalent]
    single, kinds = alone(real), {}
    for gate in per_gate(real):
        kinds[gate] = Counter(f"{v.format}/{v.kind}" for v in real if list(v.gates) == [gate])
    lines = _head(["gate", "caught", "the only one", "what only it caught"])
    for gate, count in per_gate(real).most_common():
        words = ", ".join(f"{k} {n}" for k, n in kinds[gate].most_common(8))
        lines.append(_row([gate, count, single[gate], words]))
    return "\n".join(lines)


def _list(found: Sequence[Verdict]) -> str:
    return "\n".join(f"- `{v.name}`: {v.about}" for v in found) or "None."


def _cells(found: Sequence[Verdict]) -> str:
    gates = [gate for gate, _ in per_gate(found).most_common()]
    lines = _head(["fault", HASHES, RECORDED, *gates, "verdict"])
    for v in found:
        mark = "X" if len(v.gates) == 1 else "x"
        verdict = "survived" if v.survived else "equivalent" if v.equivalent else "caught"
        mark_of = {None: "", True: "x", False: "**missed**"}
        recorded = None if v.recorded is None or v.equivalent else not v.unrecorded
        lines.append(
            _row(
                [
                    f"`{v.name}`",
                    mark_of[v.hashes],
                    mark_of[recorded],
                    *(mark if g in v.gates else "" for g in gates),
                    verdict,
                ]
            )
        )
    return "\n".join(lines)
