"""Flags over recipes over defaults, for the shapes of config that the stages use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from flashbulb.apps.cli.arguments import UsageError, blank, find_choices, read_recipe, resolve


class Palettize(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="palettize"):
    """Look colours up."""

    bits: Annotated[int, msgspec.Meta(ge=1, le=8)] = 6
    """Bits of an index."""


class Quantize(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="quantize"):
    """Round."""

    symmetric: bool = True
    """Zero stays zero."""


class Inner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Part of a config."""

    rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    """How fast."""
    method: Palettize | Quantize = Palettize()
    """How."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything at once."""

    checkpoint: str
    """Where from."""
    steps: Annotated[int, msgspec.Meta(gt=0)] = 10
    """How many."""
    inner: Inner = Inner()
    """More."""
    maybe: Palettize | Quantize | None = None
    """Or not."""
    many: tuple[Palettize | Quantize, ...] = (Palettize(),)
    """Several."""
    words: tuple[str, ...] = ("a",)
    """Words."""
    part: Inner | None = None
    """A whole part, or not."""


def parse(*words: str, default: Any = None) -> Any:
    return resolve(Config, default or blank(Config, checkpoint="here"), words, program="flashbulb x")


def test_flags_override_defaults() -> None:
    found = parse("--steps", "3", "--inner.rate", "0.5", "--words", "x", "y")
    assert (found.steps, found.inner.rate, found.words, found.checkpoint) == (3, 0.5, ("x", "y"), "here")


def test_choices_are_derived_from_the_types() -> None:
    found = dict(find_choices(Config))
    assert set(found) == {"inner.method", "maybe", "many", "part", "part.method"}
    assert found["part"].words() == ["default", "none"]
    assert found["maybe"].words() == ["palettize", "quantize", "none"]
    assert found["many"].many


def test_a_variant_is_chosen_by_its_tag_and_then_set() -> None:
    found = parse("--inner.method", "quantize", "--inner.method.no-symmetric")
    assert found.inner.method == Quantize(symmetric=False)


def test_a_sequence_of_variants_is_chosen_in_order() -> None:
    found = parse("--many", "quantize", "palettize", "--many.1.bits", "4")
    assert found.many == (Quantize(), Palettize(bits=4))


def test_an_optional_variant_comes_and_goes() -> None:
    there = parse("--maybe=palettize")
    assert there.maybe == Palettize()
    assert parse("--maybe", "none", default=there).maybe is None


def test_choosing_the_present_variant_keeps_its_values() -> None:
    present = Config(checkpoint="x", many=(Palettize(bits=2),))
    assert parse("--many", "palettize", "quantize", default=present).many[0] == Palettize(bits=2)


def test_a_part_is_put_in_and_taken_out() -> None:
    there = parse("--part", "default", "--part.method", "quantize", "--part.rate", "2")
    assert there.part == Inner(rate=2.0, method=Quantize())
    assert parse("--part", "none", default=there).part is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--part.method", "quantize"], "say --part default before it"),
        (["--steps", "0"], "`int` >= 1"),
        (["--steps", "many"], "--steps"),
        (["--many.0.bits", "9"], "<= 8"),
        (["--maybe", "zip"], "wants one of palettize, quantize, none, got 'zip'"),
        (["--many"], "got nothing"),
        (["--unknown", "1"], "--unknown"),
    ],
)
def test_a_wrong_flag_is_one_clear_line(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*words)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(UsageError, match="wanted --checkpoint STR; see flashbulb x --help"):
        resolve(Config, blank(Config), ["--steps", "1"], program="flashbulb x")


def test_a_recipe_is_decoded_and_overridden(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "checkpoint: there\nsteps: 7\n"
        "inner: {rate: 1e-2, method: {type: quantize}}\nmany: [{type: quantize}]\n"
    )
    recipe = read_recipe(file, Config)
    assert parse("--steps", "8", default=recipe) == Config(
        checkpoint="there", steps=8, inner=Inner(rate=0.01, method=Quantize()), many=(Quantize(),)
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("checkpoint: a\nstepz: 1\n", "stepz"),
        ("checkpoint: a\nsteps: -1\n", ">= 1"),
        ("steps: 1\n", "checkpoint"),
        ("- a\n", "wanted a mapping"),
        ("a: [\n", "cannot be read as YAML"),
        ("checkpoint: a\nmaybe: {type: zip}\n", "zip"),
    ],
)
def test_a_wrong_recipe_is_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_recipe(file, Config)
    assert said in str(caught.value)
    assert "r.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recipe"):
        read_recipe(tmp_path / "none.yaml", Config)
