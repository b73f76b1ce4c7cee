"""The gates of ``flashbulb check``: hashes first, then numbers, then pictures.  Numpy only.

An artifact passes only when each condition was asked and answered.  Thresholds come from the manifest; a
quantity without one fails, so that a manifest cannot pass by staying silent.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping

import msgspec
import numpy as np

from flashbulb.export.bundle import Bundle, BundleError, GoldenCase, verify
from flashbulb.export.noise import gaussian
from flashbulb.runtimes.engines.base import Array, Engine, EngineError, Session
from flashbulb.runtimes.parity import Subject, Threshold, judge, measure
from flashbulb.runtimes.pipeline import Pipeline, Tokenizer
from flashbulb.runtimes.records import Metric, ParityRecord, SanityRecord

log = logging.getLogger(__name__)

Golden = Mapping[str, Array]
Draw = Callable[[Mapping[str, Array], Array], Array]
Records = Iterator[SanityRecord | ParityRecord]

NOISE_TOLERANCE = 2e-6
"""Largest difference of two platforms' noise: a unit in the last place of a float32 near 5, with room."""
CONSTANTS_DB = 80.0
"""The golden x0 must follow from the golden output by the manifest's numbers up to float32 rounding."""
EAGER_DB = 60.0
"""PyTorch against its own golden vectors: another processor's float32 rounding, amplified by one step."""
CHANNEL_SHARE = 0.5
"""Another order of the channels that leaves under this share of the error is the picture's true order."""
RANGE_SLACK = 1e-6
"""What a clamp to [0, 1] may still leave outside."""


def bundle_gates(bundle: Bundle) -> Records:
    """Judge the files alone: hashes, golden vectors, tokenizer, noise, constants.

    When the hashes do not hold, nothing else is asked: no runtime should open such a file.
    """
    hashes = file_gate(bundle)
    yield hashes
    if hashes.verdict == "fail":
        return
    golden = bundle.golden()
    yield golden_gate(bundle, golden)
    yield token_gate(bundle)
    yield noise_gate(bundle, golden)
    yield constants_gate(bundle, golden)
    yield threshold_gate(bundle)


def file_gate(bundle: Bundle) -> SanityRecord:
    """Hold every file to its SHA-256, and open those that the other gates read."""
    try:
        verify(bundle)
        bundle.golden()
        for info in bundle.manifest.tokenizers:
            Tokenizer(info, bundle.root)
    except BundleError as error:
        words = f"the files are not those that were exported: {error}"
        return sanity("files", "bundle", False, words, value=1.0, threshold=0.0, unit="files")
    count = len({f.path for a in bundle.manifest.artifacts for f in a.files}) + len(bundle.manifest.files)
    words = f"all {count} files have the recorded SHA-256"
    return sanity("files", "bundle", True, words, value=0.0, threshold=0.0, unit="files")


def golden_gate(bundle: Bundle, golden: tuple[Golden, ...]) -> SanityRecord:
    """The reference itself must be finite pictures that are not of one colour."""
    least = min(_finite_std(case["image"]) for case in golden)
    floor = bundle.manifest.sanity.std_min
    words = f"the golden pictures have a standard deviation of at least {least:.2g}, wanted {floor:.2g}"
    return sanity("golden", "bundle", least >= floor, words, value=least, threshold=floor)


def token_gate(bundle: Bundle) -> SanityRecord:
    """The bundle's tokenizer must give the recorded ids."""
    tokenizers = [Tokenizer(info, bundle.root) for info in bundle.manifest.tokenizers]
    cases = bundle.manifest.golden.cases
    told = [(index, _token_fault(t, case, index)) for index, case in enumerate(cases) for t in tokenizers]
    faults = [(index, fault) for index, fault in told if fault]
    words = faults[0][1] if faults else f"the tokenizer gives the recorded ids for all {len(cases)} prompts"
    wrong = len({index for index, _ in faults})
    return sanity("tokens", "bundle", not wrong, words, value=float(wrong), threshold=0.0, unit="prompts")


def _token_fault(tokenizer: Tokenizer, case: GoldenCase, index: int) -> str:
    """Say where the ids of a prompt are not the recorded ones; empty where they are."""
    wanted = list(case.token_ids.get(tokenizer.info.input, ()))
    try:
        got = tokenizer(case.prompt)[0].tolist()
    except BundleError as error:
        return str(error)
    if got == wanted:
        return ""
    where = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), len(got))
    return (
        f"the tokenizer gives other ids than recorded for case {index} ({case.prompt[:40]!r}), "
        f"first at position {where}"
    )


def noise_gate(bundle: Bundle, golden: tuple[Golden, ...]) -> SanityRecord:
    """Seeds must become the recorded noise."""
    shape, cases = bundle.manifest.noise.shape, bundle.manifest.golden.cases
    pairs = zip(cases, golden, strict=True)
    worst = float(np.max([np.abs(gaussian(c.seed, shape) - g["noise"]).max() for c, g in pairs]))  # NaN stays
    words = f"seeds become the recorded noise up to {worst:.1e}, allowed {NOISE_TOLERANCE:.1e}"
    return sanity("noise", "bundle", worst <= NOISE_TOLERANCE, words, value=worst, threshold=NOISE_TOLERANCE)


def constants_gate(bundle: Bundle, golden: tuple[Golden, ...]) -> SanityRecord:
    """The manifest's numbers must lead from the golden output to the golden x0 and latent."""
    pipeline = Pipeline(bundle, None)
    least = np.inf
    for case in golden:
        x0 = pipeline.clean(pipeline.sample(case["noise"]), case["out"])
        for wanted, got in ((case["x0"], x0), (case.get("latent"), pipeline.latent(x0))):
            found = None if wanted is None else measure(wanted, got)
            least = min(least, np.inf if found is None or found.exact else found.snr_db or -np.inf)
    shown = "exactly" if least == np.inf else f"at {least:.1f} dB SNR"
    words = f"the one-step constants give the golden x0 {shown}, wanted {CONSTANTS_DB:.1f} dB"
    value = float(least) if np.isfinite(least) else None
    good = least >= CONSTANTS_DB
    return sanity("constants", "bundle", good, words, value=value, threshold=CONSTANTS_DB, unit="dB")


def threshold_gate(bundle: Bundle) -> SanityRecord:
    """Every artifact must have a threshold to be held to."""
    known = {(g.backend, g.precision, g.quantity) for g in bundle.manifest.gates}
    wanted = {(a.backend, a.precision, a.component) for a in bundle.manifest.artifacts}
    absent = sorted(" ".join(key) for key in wanted - known)
    words = f"no threshold for {absent}; export it again" if absent else "every artifact has a threshold"
    return sanity("thresholds", "bundle", not absent, words, value=float(len(absent)), threshold=0.0)


def engine_gates(bundle: Bundle, engine: Engine, threads: int, cases: int | None = None) -> Records:
    """Judge one engine: it loads, each component, x0 and picture agree, and the pictures are pictures.

    Args:
        bundle: whose artifacts it opens.
        engine: what opens them.
        threads: that one run may use.
        cases: how many of the golden cases to draw, where one takes long; all by default.
    """
    try:
        session = engine.load(bundle, threads=threads)
    except EngineError as error:
        yield sanity("load", engine.label, False, f"{engine.label}: {error}", value=1.0, threshold=0.0)
        return
    words = f"{engine.label} loads {', '.join(session.components)}"
    yield sanity("load", engine.label, True, words, value=0.0, threshold=0.0)
    try:
        yield from _loaded_gates(Judge(bundle=bundle, session=session), bundle.golden()[:cases])
    except EngineError as error:
        yield sanity("contract", engine.label, False, f"{engine.label}: {error}", value=1.0, threshold=0.0)


class Judge(msgspec.Struct, frozen=True, kw_only=True):
    """A session, and the thresholds that it is held to."""

    bundle: Bundle
    session: Session

    def precision(self, quantity: str) -> str:
        """Return the precision that a quantity is computed in."""
        if self.session.backend == "eager":
            return "float32"
        component = {"x0": "unet", "image": "vae_decoder"}.get(quantity, quantity)
        return self.session.artifact(component).precision

    def thresholds(self, quantity: str) -> list[Threshold]:
        """Return what the manifest demands of a quantity; eager is held to the tolerance of float32."""
        metric: Metric = "psnr_db" if quantity in ("image", "generator", "vae_decoder") else "snr_db"
        if self.session.backend == "eager":
            return [Threshold(metric=metric, minimum_db=EAGER_DB)]
        key = (self.session.backend, self.precision(quantity), quantity)
        gates = [g for g in self.bundle.manifest.gates if (g.backend, g.precision, g.quantity) == key]
        if not gates:
            raise EngineError(f"the manifest has no threshold for {' '.join(key)}; export the bundle again")
        return [Threshold(metric=g.metric, minimum_db=g.minimum_db) for g in gates]

    def compare(self, quantity: str, tensor: str, case: int, wanted: Array, got: Array) -> Records:
        """Compare one tensor with the golden one, once per threshold."""
        golden = self.bundle.manifest.golden.cases[case]
        subject = Subject(
            engine=self.session.engine,
            precision=self.precision(quantity),
            quantity=quantity,
            tensor=tensor,
            case=case,
            prompt=golden.prompt,
            seed=golden.seed,
        )
        for threshold in self.thresholds(quantity):
            yield judge(subject, threshold, wanted, got)


def _loaded_gates(judge_: Judge, golden: tuple[Golden, ...]) -> Records:
    held = judge_.session.components
    pipeline = Pipeline(judge_.bundle, judge_.session)
    for component in held:
        yield from component_gates(judge_, component, golden)
        yield from finite_gate(judge_.session, component)
    chained = {"text_encoder", "unet", "vae_decoder"} <= set(held)
    if chained:
        yield from chain_gates(judge_, pipeline, golden)
        yield from picture_gates(judge_, "pipeline", lambda i, n: pipeline.trace(i, n)["image"], golden)
    if "generator" in held:
        yield from picture_gates(judge_, "generator", pipeline.generate, golden)
    if chained and "generator" in held:
        yield fused_gate(judge_, pipeline, golden)


def component_gates(judge_: Judge, component: str, golden: tuple[Golden, ...]) -> Records:
    """Feed one component, or the fused generator, with golden inputs."""
    pipeline = Pipeline(judge_.bundle, judge_.session)
    for index, case in enumerate(golden):
        given = {"sample": pipeline.sample(case["noise"]), **case}
        for tensor, got in judge_.session.run(component, given).items():
            yield from judge_.compare(component, tensor, index, case[tensor], got)


def finite_gate(session: Session, component: str) -> Records:
    """Nothing may overflow inside a component, even where its outputs are finite again."""
    if (found := session.not_finite(component)) is None:
        return
    count, first = found
    words = f"{session.engine} {component}: all values on the way are finite"
    if count:
        words = (
            f"{session.engine} {component}: {count} values on the way are NaN or infinite, first in {first}"
        )
    yield sanity(
        f"finite.{component}",
        session.engine,
        not count,
        words,
        value=float(count),
        threshold=0.0,
        unit="values",
    )


def chain_gates(judge_: Judge, pipeline: Pipeline, golden: tuple[Golden, ...]) -> Records:
    """Run the components one after another: their errors add up, and one step amplifies them."""
    for index, case in enumerate(golden):
        found = pipeline.trace(_ids(judge_.bundle, case), case["noise"])
        for quantity in ("x0", "image"):
            yield from judge_.compare(quantity, quantity, index, case[quantity], found[quantity])


def picture_gates(judge_: Judge, path: str, draw: Draw, golden: tuple[Golden, ...]) -> Records:
    """Ask what parity alone cannot: range, variance, and that prompt and noise both matter."""
    engine, floors = judge_.session.engine, judge_.bundle.manifest.sanity
    ids = [_ids(judge_.bundle, case) for case in golden[:2]]
    first = draw(ids[0], golden[0]["noise"])
    yield range_gate(engine, path, first)
    yield channel_gate(engine, path, first, golden[0]["image"])
    std = _finite_std(first)
    words = f"{engine} {path}: the picture has a standard deviation of {std:.2g}, wanted {floors.std_min:.2g}"
    yield sanity(
        f"variance.{path}", engine, std >= floors.std_min, words, value=std, threshold=floors.std_min
    )
    if len(golden) < 2:
        yield sanity(
            f"sensitivity.{path}", engine, False, f"{engine} {path}: one golden case shows no sensitivity"
        )
        return
    for name, other, floor in (
        ("prompt", draw(ids[1], golden[0]["noise"]), floors.prompt_rms_min),
        ("noise", draw(ids[0], golden[1]["noise"]), floors.noise_rms_min),
    ):
        rms = _finite_rms(first, other)
        words = f"{engine} {path}: another {name} changes the picture by {rms:.2g} rms, wanted {floor:.2g}"
        yield sanity(f"{name}_sensitivity.{path}", engine, rms >= floor, words, value=rms, threshold=floor)


def range_gate(engine: str, path: str, image: Array) -> SanityRecord:
    """A picture lies in [0, 1]."""
    if not np.isfinite(image).all():
        return sanity(
            f"range.{path}", engine, False, f"{engine} {path}: the picture holds NaN or infinite values"
        )
    low, high = float(image.min()), float(image.max())
    outside = max(0.0, -low, high - 1.0)
    words = f"{engine} {path}: the picture spans [{low:.3f}, {high:.3f}], wanted within [0, 1]"
    good = outside <= RANGE_SLACK
    return sanity(f"range.{path}", engine, good, words, value=outside, threshold=RANGE_SLACK)


def channel_gate(engine: str, path: str, image: Array, reference: Array) -> SanityRecord:
    """No other order of the channels may bring the picture clearly nearer to the reference."""
    errors = {o: _finite_rms(reference, image[:, list(o)]) for o in itertools.permutations(range(3))}
    told, best = errors[(0, 1, 2)], min(errors, key=lambda order: errors[order])
    good = told >= 0.0 and errors[best] >= CHANNEL_SHARE * told
    shown = "RGB" if good else "".join("RGB"[best.index(i)] for i in range(3))
    words = f"{engine} {path}: the channels come in the order {shown}, wanted RGB"
    if told < 0.0:
        words = f"{engine} {path}: the picture is not finite, so that its channels have no order"
    limit = errors[best] / CHANNEL_SHARE
    return sanity(f"channels.{path}", engine, good, words, value=told, threshold=max(limit, 0.0))


def fused_gate(judge_: Judge, pipeline: Pipeline, golden: tuple[Golden, ...]) -> SanityRecord:
    """The fused generator and the components are two exports of one model: they must draw one picture."""
    engine, least = judge_.session.engine, np.inf
    for case in golden:
        ids = _ids(judge_.bundle, case)
        found = measure(pipeline.trace(ids, case["noise"])["image"], pipeline.generate(ids, case["noise"]))
        value = np.inf if found.exact else found.psnr_db
        least = min(least, -np.inf if value is None else value)
    floor = min(t.minimum_db for q in ("generator", "image") for t in judge_.thresholds(q))
    shown = "exactly" if least == np.inf else f"at {least:.1f} dB PSNR"
    words = f"{engine}: the fused generator draws the components' picture {shown}, wanted {floor:.1f} dB"
    value = float(least) if np.isfinite(least) else None
    return sanity("fused", engine, bool(least >= floor), words, value=value, threshold=floor, unit="dB")


def sanity(
    gate: str,
    engine: str,
    good: bool,
    sentence: str,
    *,
    value: float | None = None,
    threshold: float | None = None,
    unit: str = "",
) -> SanityRecord:
    """Make the record of one condition."""
    finite = value if value is not None and np.isfinite(value) else None
    return SanityRecord(
        gate=gate,
        engine=engine,
        value=finite,
        threshold=threshold,
        unit=unit,
        verdict="pass" if good else "fail",
        sentence=sentence,
    )


def _ids(bundle: Bundle, case: Golden) -> dict[str, Array]:
    return {t.input: case[t.input] for t in bundle.manifest.tokenizers}


def _finite_std(image: Array) -> float:
    return float(image.std()) if np.isfinite(image).all() else -np.inf


def _finite_rms(first: Array, other: Array) -> float:
    difference = first.astype(np.float64) - other.astype(np.float64)
    return float(np.sqrt(np.mean(difference**2))) if np.isfinite(difference).all() else -np.inf
