"""Coded weights are what their codes decode to: a wrong step or a poorer table is no rounding.

What normalisations add under their roots, and the form of gelu, are the checkpoint's.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from flashbulb.export.anatomy.listing import Constant, Listing, Node
from flashbulb.runtimes.sources import TANH, Sources, Wanted, epsilon_trait, traits
from flashbulb.runtimes.weights import Verdict, judge_weights

RNG = np.random.default_rng(0)
CODES = RNG.integers(-127, 128, (16, 24)).astype(np.int8)
STEPS = RNG.uniform(0.5, 2.0, (16, 1)).astype(np.float32) / 100
TABLE = np.sort(RNG.standard_normal(16)).astype(np.float32)
ENTRIES = RNG.integers(0, 16, (16, 24))


def judged(weight: np.ndarray, stored: Constant) -> Verdict:
    sources = Sources({"unet/w": Wanted("unet/w", weight.astype(np.float32))})
    return judge_weights(Listing((), {"w": stored}), sources, "unet")


def stepped(codes: np.ndarray, steps: np.ndarray, dtype: str) -> Constant:
    steps = steps.astype(dtype)
    return Constant(lambda: codes.astype(dtype) * steps, scale=lambda: steps)


def widened(codes: np.ndarray, steps: np.ndarray) -> Constant:
    """The float16 values of a reader that hands the steps out as float32."""
    steps = steps.astype("float16")
    return Constant(lambda: codes.astype("float16") * steps, scale=lambda: steps.astype("float32"))


def tabled(entries: np.ndarray, table: np.ndarray, dtype: str) -> Constant:
    return Constant(lambda: table.astype(dtype)[entries], table=lambda: table.astype(dtype))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_codes_of_the_checkpoint_pass_in_any_float_type(dtype: str) -> None:
    assert judged(CODES * STEPS, stepped(CODES, STEPS, dtype)).problems == []
    assert judged(CODES * STEPS, widened(CODES, STEPS)).problems == []
    assert judged(TABLE[ENTRIES], tabled(ENTRIES, TABLE, dtype)).problems == []


def coarse() -> Constant:
    """The same weights in twenty times as large steps."""
    return stepped(np.round(CODES / 20), STEPS * 20, "float16")


def silenced() -> Constant:
    """One channel of zeros, with a step so large that zero is the nearest code."""
    codes, steps = CODES.copy(), STEPS.copy()
    codes[3], steps[3] = 0, 10.0
    return stepped(codes, steps, "float16")


def one_code() -> Constant:
    codes = CODES.copy()
    codes[5, 7] += 1 if codes[5, 7] < 0 else -1
    return stepped(codes, STEPS, "float16")


def nudged_step() -> Constant:
    """One step's last bit in float16."""
    steps = STEPS.astype("float16")
    steps.view("u2")[3, 0] ^= 1
    return stepped(CODES, steps, "float16")


def nudged_entry() -> Constant:
    """The last bit of the largest entry of a table in float16."""
    table = TABLE.astype("float16")
    table.view("u2")[15] ^= 1
    return tabled(ENTRIES, table, "float16")


def test_the_last_bit_of_a_step_or_an_entry_is_seen() -> None:
    step, entry = judged(CODES * STEPS, nudged_step()), judged(TABLE[ENTRIES], nudged_entry())
    assert step.wrong > 12
    assert entry.wrong == (ENTRIES == 15).sum() > 0


@pytest.mark.parametrize(("fault", "wrong"), [(coarse, 200), (silenced, 20), (one_code, 1)])
def test_other_codes_or_steps_fail(fault, wrong: int) -> None:
    found = judged(CODES * STEPS, fault())
    assert found.wrong >= wrong
    assert "unet/w" in found.problems[0]


def test_a_poorer_table_fails() -> None:
    """Each weight at the nearest of two entries."""
    table = TABLE[[3, 12]]
    entries = np.abs(TABLE[ENTRIES][..., None] - table).argmin(-1)
    assert judged(TABLE[ENTRIES], tabled(entries, table, "float16")).wrong > 200


def test_one_entry_elsewhere_fails() -> None:
    table = TABLE.copy()
    table[4] += 0.01
    assert judged(TABLE[ENTRIES], tabled(ENTRIES, table, "float16")).wrong == (ENTRIES == 4).sum()


def single(*epsilons: float) -> Listing:
    """Normalisations that are one operation each."""
    return Listing(
        tuple(
            Node("LayerNormalization", ("x",), (f"y{i}",), "", {"epsilon": e}) for i, e in enumerate(epsilons)
        ),
        {},
    )


def parts(*epsilons: float) -> Listing:
    """Normalisations from a sum and a root, as XNNPACK has them; a sum without a root is none."""
    nodes, held = [Node("Add", ("x", "e9"), ("z",), "")], {"e9": np.float32(7.0)}
    for i, epsilon in enumerate(epsilons):
        nodes.append(Node("Add", (f"x{i}", f"e{i}"), (f"s{i}",), ""))
        nodes.append(Node("ReciprocalSquareRoot", (f"s{i}",), (f"r{i}",), ""))
        held[f"e{i}"] = np.float32(epsilon)
    return Listing(tuple(nodes), {n: Constant(lambda v=v: v.reshape(1, 1)) for n, v in held.items()})


def floors(*epsilons: float) -> Listing:
    """Normalisations as Core ML packages have them: roots of epsilons in float16."""
    nodes = [Node("fill_like", ("x", f"e{i}"), (f"y{i}",), "") for i in range(len(epsilons))]
    held = {f"e{i}": np.sqrt(np.float32(e)).astype("f2") for i, e in enumerate(epsilons)}
    return Listing(tuple(nodes), {n: Constant(lambda v=v: v.reshape(())) for n, v in held.items()})


def traits_judged(listing: Listing, component: str = "unet") -> Verdict:
    of_unet, of_decoder = ({1e-5: 2, 1e-6: 1}, {1e-6: 2})
    told = {"unet": of_unet, "vae_decoder": of_decoder}
    counts = {n: Counter({epsilon_trait(k): v for k, v in c.items()}) for n, c in told.items()}
    return judge_weights(listing, Sources({}, counts), component)


@pytest.mark.parametrize("form", [single, parts, floors])
def test_epsilons_of_the_checkpoint_pass(form) -> None:
    assert traits_judged(form(1e-5, 1e-6, 1e-5)).problems == []
    assert traits_judged(form(1e-5, 1e-6)).problems == []  # a converter dropped one
    assert traits_judged(form(1e-5, 1e-6, 1e-5, 1e-6, 1e-6), "generator").problems == []
    assert traits_judged(form(0.5), "text_encoder").problems == []  # nothing is known of it


@pytest.mark.parametrize("form", [single, parts, floors])
@pytest.mark.parametrize(
    ("held", "wrong"), [((1e-5, 1e-6, 1e-4), 1), ((1e-6, 1e-6, 1e-5), 1), ((1e-3,) * 3, 3)]
)
def test_another_epsilon_fails(form, held: tuple[float, ...], wrong: int) -> None:
    found = traits_judged(form(*held))
    assert found.wrong == wrong
    assert len(found.problems) == 1
    assert "operations have epsilon" in found.problems[0]


@pytest.mark.parametrize(
    "node",
    [
        Node("Gelu", ("x",), ("y",), "", {"approximate": "tanh"}),
        Node("gelu", ("x", "mode"), ("y",), "", {"mode": "TANH_APPROXIMATION"}),
        Node("com.microsoft.FastGelu", ("x",), ("y",), ""),
    ],
)
def test_gelu_by_tanh_fails_where_the_checkpoint_has_the_exact_one(node: Node) -> None:
    (problem,) = traits_judged(Listing((node,), {})).problems
    assert problem == "1 operations have gelu by tanh, 0 in the checkpoint"
    known = Sources({}, {"unet": Counter({TANH: 1})})
    assert judge_weights(Listing((node,), {}), known, "unet").problems == []


def test_traits_are_counted_in_the_modules_of_a_checkpoint() -> None:
    from torch import nn
    from transformers.activations import ACT2FN

    part = nn.Sequential(
        nn.LayerNorm(4), nn.GroupNorm(2, 4, eps=1e-6), nn.GELU(), nn.GELU("tanh"), nn.LayerNorm(4)
    )
    part.append(ACT2FN["gelu_pytorch_tanh"])
    assert traits(part) == {"epsilon 1e-05": 2, "epsilon 1e-06": 1, TANH: 2}


@pytest.mark.parametrize(("added", "problems"), [(1e-12, 0), (2.0**-24, 0), (1e-11, 1), (6e-7, 1)])
def test_what_core_ml_adds_under_a_root_of_its_own_is_known(added: float, problems: int) -> None:
    held = {"e": Constant(lambda: np.float32(added).reshape(()))}
    assert len(traits_judged(Listing((Node("rsqrt", ("x", "e"), ("y",), ""),), held)).problems) == problems


@pytest.mark.parametrize(("epsilon", "wrong"), [(2.0**-24, 0), (1e-12, 0), (1e-5, 1)])
def test_an_affine_that_is_written_as_a_normalisation_adds_nothing_under_its_root(epsilon: float, wrong: int):
    node = Node("batch_norm", ("x", "mean", "variance", "e"), ("y",), "")
    held = {"mean": np.zeros(4, "f4"), "variance": np.ones(4, "f4"), "e": np.full((), epsilon, "f4")}
    constants = {k: Constant(lambda v=v: v) for k, v in held.items()}
    assert traits_judged(Listing((node,), constants)).wrong == wrong
