"""The page stands alone, is well-formed, shows what failed, and hides nothing hostile."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes import report as module
from flashbulb.runtimes.charts import chart, label, read_curves, smooth, ticks
from flashbulb.runtimes.engines import Mil
from flashbulb.runtimes.gates import bundle_gates, engine_gates
from flashbulb.runtimes.pictures import Drawn, rows
from flashbulb.runtimes.records import (
    ParityRecord,
    Report,
    SanityRecord,
    host,
    now,
    read_report,
    write_report,
)
from flashbulb.runtimes.report import (
    ReportConfig,
    human_bytes,
    human_ms,
    joined,
    missing_engines,
    render,
    report,
)
from flashbulb.runtimes.stage import identity


def checked(bundle: Bundle, world: SimpleNamespace, **fault) -> Report:
    found = [*bundle_gates(bundle), *engine_gates(bundle, world.Engine(fault=fault), 1)]
    return Report(
        command="check",
        created=now(),
        bundle=identity(bundle),
        device=host(),
        versions={"flashbulb": "0"},
        sanity=tuple(r for r in found if isinstance(r, SanityRecord)),
        parity=tuple(r for r in found if isinstance(r, ParityRecord)),
    )


class Balance(html.parser.HTMLParser):
    """Refuses tags that do not match."""

    void = frozenset({"meta", "img", "br", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(bundle: Bundle, records: Report, grid=(), **config) -> str:
    settings = ReportConfig(bundle=str(bundle.root), **config)
    prompts = [c.prompt for c in bundle.manifest.golden.cases]
    return render(settings, bundle, records, prompts, list(range(len(prompts))), grid, [])


def test_the_page_is_well_formed_and_fetches_nothing(
    bundle: Bundle, world: SimpleNamespace, tmp_path: Path
) -> None:
    stats = tmp_path / "stats.jsonl"
    stats.write_text("".join(json.dumps({"step": i, "loss": 1 / (i + 1)}) + "\n" for i in range(50)))
    pictures = tuple(np.full((16, 16, 3), 0.1 * i, np.float32) for i in range(4))
    grid = rows([Drawn(label=module.STUDENT, note="", images=pictures)], module.STUDENT)
    text = page(
        bundle,
        checked(bundle, world),
        grid,
        stats={"Distillation": str(stats)},
        figures={"J": [{"pictures of": "student", "k": 0.5}]},
    )
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert sum(tag == "img" for tag, _ in parser.seen) == 4
    links = [v for _, a in parser.seen for k, v in a.items() if k in ("src", "href") and v]
    assert all(v.startswith(("data:", "#")) for v in links)
    assert not re.search(r"url\(|@import|<script", text)
    assert "Distillation" in text
    assert "All" in text and "conditions hold" in text


def test_failures_come_first(bundle: Bundle, world: SimpleNamespace) -> None:
    text = page(bundle, checked(bundle, world, unet=lambda s, h: world.unet(s, h * 0)))
    assert "conditions failed" in text
    assert text.index("What failed") < text.index("Parity with PyTorch")
    assert "another prompt changes the picture by 0 rms" in text


def test_text_from_a_bundle_cannot_write_the_page(bundle: Bundle, world: SimpleNamespace) -> None:
    edited = world.edit(bundle, lambda m: m.update(name="<script>alert(1)</script>"))
    assert "<script>" not in page(edited, checked(edited, world))


def test_a_picture_that_is_not_finite_is_shown_as_such() -> None:
    broken = np.full((4, 4, 3), np.nan, np.float32)
    fine = np.zeros((4, 4, 3), np.float32)
    found = rows(
        [Drawn(label="a", note="", images=(fine,)), Drawn(label="b", note="", images=(broken,))], "a"
    )
    assert found[1].pictures == ("",)
    assert found[1].means == (None,)


def test_differences_are_in_steps_of_a_byte() -> None:
    base, other = np.zeros((4, 4, 3), np.float32), np.full((4, 4, 3), 3 / 255, np.float32)
    found = rows([Drawn(label="a", note="", images=(base,)), Drawn(label="b", note="", images=(other,))], "a")
    assert found[1].means == (3.0,)


def test_report_writes_both_files_and_joins_records(
    bundle: Bundle, world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available", lambda *_: {"ort": "not here"})
    check = write_report(checked(bundle, world), tmp_path / "check.json")
    steps = []
    config = ReportConfig(bundle=str(bundle.root), out=str(tmp_path / "r/report.html"), reports=(str(check),))
    out = report(config, lambda *a: steps.append(a))
    assert out.read_text().startswith("<!doctype html>")
    assert read_report(out.with_suffix(".json")).parity == read_report(check).parity


def test_a_report_of_another_bundle_is_refused(bundle: Bundle, world: SimpleNamespace) -> None:
    found = checked(bundle, world)
    assert found.bundle
    other = msgspec.structs.replace(found.bundle, manifest_sha256="b" * 64)
    with pytest.raises(ValueError, match="of 2 bundles"):
        joined(bundle, [msgspec.structs.replace(found, bundle=other)])


def test_an_engine_is_missed_by_what_it_opens_not_by_its_own_name(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mil` opens what the backend `coreml` wrote."""
    monkeypatch.setattr(Mil, "absent_module", lambda self: "torch")

    def words() -> list[str]:
        return [w.partition(":")[0] for w in missing_engines(bundle, None)]

    assert "mil" not in words()
    artifacts = (msgspec.structs.replace(a, backend="coreml") for a in bundle.manifest.artifacts)
    manifest = msgspec.structs.replace(bundle.manifest, artifacts=tuple(artifacts))
    bundle = Bundle(root=bundle.root, manifest=manifest)
    assert "mil" in words()


def test_curves_survive_a_killed_run_and_nan(tmp_path: Path) -> None:
    stats = tmp_path / "stats.jsonl"
    lines = [
        json.dumps({"step": i, "loss": float("nan") if i == 3 else i * 1.0, "wall_s": 1}) for i in range(9)
    ]
    stats.write_text("\n".join(lines) + '\n{"step": 9, "lo')
    (curve,) = read_curves(stats)
    assert curve.name == "loss"
    assert curve.steps == (0, 1, 2, 4, 5, 6, 7, 8)
    assert "<polyline" in chart(curve)
    assert read_curves(tmp_path / "none.jsonl") == ()


@pytest.mark.parametrize("values", [[1.0] * 5, [0.0, 1e-9], [-1e6, 1e6], [1.0, 2.0, 1e9] * 200])
def test_charts_of_awkward_ranges_have_finite_points(values: list[float]) -> None:
    from flashbulb.runtimes.charts import Curve

    svg = chart(Curve(name='a"<b', steps=tuple(float(i) for i in range(len(values))), values=tuple(values)))
    assert "nan" not in svg.replace("name", "")
    assert "inf" not in svg
    assert "<b" not in svg


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.0, 1.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [label(v) for v in (2000.0, 12000.0, 0.05)] == ["2000", "12k", "0.05"]
    assert all(-3.0 <= t <= 17.0 for t in ticks(-3.0, 17.0))
    assert smooth([1.0] * 10) == pytest.approx([1.0] * 10)


def test_units() -> None:
    assert [human_bytes(v) for v in (0, 999, 1500, 45_300_000, None)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "45.3 MB",
        "–",
    ]
    assert [human_ms(v) for v in (0.123, 12.34, 1234.5)] == [
        "0.12",
        "12.3",
        "1234" if round(1234.5) == 1234 else "1235",
    ]


def test_a_variant_of_the_weights_is_not_counted_beside_them(tmp_path: Path):
    folder = tmp_path / "vae"
    folder.mkdir()
    checkpoint = SimpleNamespace(path=tmp_path)
    (folder / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"0" * 50)
    assert module.folder_weights(checkpoint, "vae_decoder") == 50
    for part in ("00001-of-00002", "00002-of-00002"):
        (folder / f"diffusion_pytorch_model-{part}.safetensors").write_bytes(b"0" * 100)
    assert module.folder_weights(checkpoint, "vae_decoder") == 200
