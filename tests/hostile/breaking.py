"""How files are broken at random, and what is told of their readers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import strategies as st


class Target(NamedTuple):
    """A reader, and how its files are broken."""

    name: str
    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    """What it may raise."""
    files: st.SearchStrategy[bytes]


LEAVES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**9, 10**30, 0.0, -0.0, 1e308, 5e-324, "",
    "../x", "/etc/passwd", "a" * 5000, "\x00", "\u202e", "é", "e\u0301", "NaN", "C:\\x", "con", [], {}, [[]],
    {"": ""}, [0] * 50, ["os", "system"], "__class__", "0" * 64, [None, None], "..", ".", "manifest.json",
    "a/b/c", "\ud7ff",
]  # fmt: skip
TOKENS = [
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"null", b"{}", b"[]", b'"\\ud800"', b"\xff\xfe", b"\x00",
    b",", b":", b'"schema_version":1,', b"[" * 300, b'{"a":' * 300, b"9" * 5000, b"\xef\xbb\xbf", b"-", b"'",
]  # fmt: skip
OPERATIONS = ("replace", "delete", "add", "grow", "swap")
CHOICES = st.integers(0, 2**32 - 1)
TREE_CHANGES = st.lists(
    st.tuples(CHOICES, st.sampled_from(OPERATIONS), st.integers(0, len(LEAVES) - 1)), max_size=4
)
BYTE_CHANGES = st.lists(
    st.tuples(CHOICES, st.sampled_from(("flip", "cut", "token", "repeat", "drop")), st.integers(0, 255)),
    max_size=3,
)
JUNK = st.binary(max_size=64)


def places(value: Any) -> list[tuple[Any, Any]]:
    """List every (container, key) of a JSON value."""
    found, queue = [], [value]
    while queue:
        item = queue.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
        for key in keys:
            found.append((item, key))
            queue.append(item[key])
    return found


def change_tree(value: Any, changes: list[tuple[int, str, int]]) -> Any:
    """Break a JSON value at some places."""
    value = copy.deepcopy(value)
    for where, operation, which in changes:
        spots = places(value)
        if not spots:
            break
        holder, key = spots[where % len(spots)]
        leaf = copy.deepcopy(LEAVES[which])
        if operation == "replace":
            holder[key] = leaf
        elif operation == "delete":
            del holder[key]
        elif operation == "add" and isinstance(holder, dict):
            holder["surprise"] = leaf
        elif operation == "grow" and isinstance(holder[key], list):
            holder[key] = holder[key] * (which + 2)
        elif operation == "swap":
            other, name = spots[(where // 7919) % len(spots)]
            holder[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(holder[key])
    return value


def change_bytes(data: bytes, changes: list[tuple[int, str, int]]) -> bytes:
    """Break a file at some places."""
    for where, operation, which in changes:
        at = where % (len(data) + 1)
        if operation == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (which or 1)]) + data[at + 1 :]
        elif operation == "cut":
            data = data[:at]
        elif operation == "token":
            data = data[:at] + TOKENS[which % len(TOKENS)] + data[at:]
        elif operation == "repeat":
            data = data[:at] + data[max(0, at - which) : at] * 3 + data[at:]
        elif operation == "drop":
            data = data[:at] + data[at + which + 1 :]
    return data


def broken_json(sound: Any) -> st.SearchStrategy[bytes]:
    """Break a JSON file as a tree, as bytes, or both; now and then it is only junk."""

    def build(tree: list[Any], raw: list[Any]) -> bytes:
        return change_bytes(json.dumps(change_tree(sound, tree)).encode("utf-8", "surrogatepass"), raw)

    return st.one_of(
        st.builds(build, TREE_CHANGES, BYTE_CHANGES), st.builds(build, TREE_CHANGES, st.just([])), JUNK
    )


def broken_safetensors(sound: bytes) -> st.SearchStrategy[bytes]:
    """Break a safetensors file in its header, its length, or its bytes."""
    size = int.from_bytes(sound[:8], "little")
    header, body = json.loads(sound[8 : 8 + size]), sound[8 + size :]

    def build(tree: list[Any], raw: list[Any], lie: int, keep: int) -> bytes:
        text = change_bytes(json.dumps(change_tree(header, tree)).encode("utf-8", "surrogatepass"), raw)
        length = len(text) + lie if lie > -len(text) else 2**63 + lie
        return length.to_bytes(8, "little") + text + body[: len(body) - keep]

    lies = st.one_of(st.just(0), st.just(0), st.integers(-(2**40), 2**40), st.integers(-8, 8))
    cuts = st.one_of(st.just(0), st.just(0), st.integers(0, 16))
    whole = st.builds(change_bytes, st.just(sound), BYTE_CHANGES)
    return st.one_of(
        st.builds(build, TREE_CHANGES, st.just([]), lies, cuts),
        st.builds(build, TREE_CHANGES, BYTE_CHANGES, lies, cuts),
        whole,
    )
