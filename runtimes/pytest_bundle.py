"""The tests, fixtures and files of ``pytest --flashbulb=bundle/``.  Imported only when the flag is given."""

from __future__ import annotations

import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest

from flashbulb.export.bundle import MANIFEST, Bundle, BundleError, read_bundle, verify
from flashbulb.runtimes.choice import Refusal, choose
from flashbulb.runtimes.engines import engine_names
from flashbulb.runtimes.engines.base import Array, EngineError, Session
from flashbulb.runtimes.inspection import Inspection
from flashbulb.runtimes.picture_diff import file_name, save_diff
from flashbulb.runtimes.questions import Question
from flashbulb.runtimes.records import (
    ParityRecord,
    Report,
    SanityRecord,
    host,
    now,
    runtime_versions,
    write_report,
)
from flashbulb.runtimes.stage import identity
from flashbulb.runtimes.summary import decibels, markdown, publish

ROOT = "flashbulb"
"""First word of the tests' addresses, as in ``flashbulb::ort::unet::parity``."""
Record = SanityRecord | ParityRecord


class GateFailure(Exception):
    """What a gate says to people; shown without a traceback, for the fault is in no line of Python."""


class BundlePlugin:
    """What is registered with pytest when a bundle is named."""

    def __init__(self, root: Path, out: Path, inspection: Inspection | None, unreadable: str = "") -> None:
        self.root, self.out, self.inspection, self.unreadable = root, out, inspection, unreadable
        self.refusals = inspection.choice.refusals if inspection else ()
        self.records: list[Record] = []
        self.pictures: list[Path] = []

    @classmethod
    def of(cls, config: pytest.Config) -> BundlePlugin:
        """Read the bundle that the flags name.

        Raises:
            pytest.UsageError: when there is no bundle there, or no such engine.
        """
        root = (config.invocation_params.dir / config.getoption("--flashbulb")).resolve()
        if not (root / MANIFEST).is_file():
            raise pytest.UsageError(
                f"--flashbulb wants the folder that `flashbulb export` wrote, got {root} without a {MANIFEST}"
            )
        names = config.getoption("--flashbulb-engine")
        if unknown := sorted(set(names) - set(engine_names())):
            raise pytest.UsageError(f"--flashbulb-engine wants one of {list(engine_names())}, got {unknown}")
        try:
            bundle = read_bundle(root)
        except BundleError as error:  # a failed test, so that it stands in the JUnit XML as well
            return cls(root, out_folder(config), None, str(error))
        checkpoint = config.getoption("--flashbulb-checkpoint")
        choice = choose(bundle, names, checkpoint)
        threads = max(1, config.getoption("--flashbulb-threads"))
        return cls(root, out_folder(config), Inspection(bundle, choice, threads, checkpoint))

    def pytest_configure(self, config: pytest.Config) -> None:
        """Offer the fixtures."""
        config.pluginmanager.register(fixtures(self), "flashbulb-fixtures")

    @pytest.hookimpl(tryfirst=True)
    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        """Never import a Python file, nor a conftest, out of a bundle: it is data from strangers."""
        inside = collection_path == self.root or self.root in collection_path.parents
        return True if inside else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """Put the gates behind the project's own tests."""
        gates: Gates = Gates.from_parent(session, name=ROOT, nodeid=ROOT, path=self.root, plugin=self)
        found: list[Any] = list(gates.collect())
        report = pytest.CollectReport(gates.nodeid, "passed", None, result=found)
        session.ihook.pytest_collectreport(report=report)  # so that they are counted as collected
        items.extend(found)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Any:
        """Send a gate's records along with its report, also out of a worker of pytest-xdist."""
        report = yield
        if isinstance(item, Gate) and report.when == "call":
            report.flashbulb_records = msgspec.to_builtins(item.records)
            report.flashbulb_pictures = [str(p) for p in item.pictures]
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the records."""
        found = msgspec.convert(getattr(report, "flashbulb_records", []), list[_Told])
        told = [t.parity or t.sanity for t in found if t.parity or t.sanity]
        self.records += [r for r in told if r not in self.records]  # type: ignore[misc]
        self.pictures += [Path(p) for p in getattr(report, "flashbulb_pictures", [])]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the report and its summary; a worker of pytest-xdist leaves that to its controller."""
        if hasattr(session.config, "workerinput") or not self.records:
            return
        self.records += [r.record() for r in self.refusals]
        report = self.report()
        write_report(report, self.out / "report.json")
        publish(markdown(report), self.out / "summary.md")

    def report(self) -> Report:
        """Gather the records."""
        return Report(
            command="check",
            created=now(),
            bundle=identity(self.inspection.bundle) if self.inspection else None,
            device=host(),
            versions=runtime_versions(),
            sanity=tuple(r for r in self.records if isinstance(r, SanityRecord)),
            parity=tuple(r for r in self.records if isinstance(r, ParityRecord)),
        )

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say where everything lies."""
        if self.records:
            terminalreporter.write_sep("-", "flashbulb")
            for path in (self.out / "report.json", self.out / "summary.md", *self.pictures):
                terminalreporter.write_line(os.path.relpath(path))


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    """A record on its way between two processes."""

    parity: ParityRecord | None = None
    sanity: SanityRecord | None = None


class Gates(pytest.Collector):
    """All gates of one bundle."""

    def __init__(self, *, plugin: BundlePlugin, **rest: Any) -> None:
        super().__init__(**rest)
        self.plugin = plugin

    def collect(self) -> Iterator[Gate]:
        """Make one test per question, and one per engine that cannot run here."""
        plugin = self.plugin
        for question in (
            plugin.inspection.parts if plugin.inspection else (Question("bundle", "", "manifest"),)
        ):
            yield self.gate(question, None)
        for refusal in plugin.refusals:
            yield self.gate(Question(refusal.engine, "", "load"), refusal)

    def gate(self, question: Question, refusal: Refusal | None) -> Gate:
        """Make one test."""
        made: Gate = Gate.from_parent(
            self,
            name=question.gate,
            nodeid=f"{ROOT}::{question}",
            plugin=self.plugin,
            question=question,
            refusal=refusal,
        )
        return made


class Gate(pytest.Item):
    """One gate of one program on one engine."""

    def __init__(
        self, *, plugin: BundlePlugin, question: Question, refusal: Refusal | None, **rest: Any
    ) -> None:
        super().__init__(**rest)
        self.plugin, self.question, self.refusal = plugin, question, refusal
        self.extra_keyword_matches.update(question)  # what -k looks at
        self.records: list[_Told] = []
        self.pictures: list[Path] = []

    def runtest(self) -> None:
        """Answer the question."""
        if self.refusal:
            (fail if self.refusal.wanted else pytest.skip)(self.refusal.sentence)
        if self.question.gate == "manifest":
            if self.plugin.unreadable:
                fail(self.plugin.unreadable)
            return
        assert self.plugin.inspection is not None
        self.judge(self.plugin.inspection)

    def judge(self, inspection: Inspection) -> None:
        """Ask, keep the records, and fail with what people need to know; what was not judged is no pass."""
        question = self.question
        if reason := inspection.obstacle(question):
            pytest.skip(reason)
        found = inspection.answers(question)
        self.records = [_Told(parity=r) if isinstance(r, ParityRecord) else _Told(sanity=r) for r in found]
        failed = [r for r in found if r.verdict == "fail"]
        if failed:
            fail("\n".join([*self.lines(failed, found), *self.save_picture(inspection, failed)]))
        if not found and question.gate not in ("contract", "other"):
            if stop := inspection.stop(question):
                pytest.skip(stop)
            fail(f"{question}: the gate left no record, which proves nothing; please report it")
        if found and all(r.verdict == "skip" for r in found):
            pytest.skip("; ".join(dict.fromkeys(r.sentence for r in found)))

    def lines(self, failed: list[Record], found: tuple[Record, ...]) -> list[str]:
        """Write the failed sentences, and for parity all cases beside one another."""
        lines = [r.sentence for r in failed]
        cases = [r for r in found if isinstance(r, ParityRecord)]
        if cases:
            lines += [
                "",
                f"{'case':<6}{'tensor':<12}{'value':<16}{'at least':<10}{'largest error':<15}prompt",
            ]
        for r in cases:
            error = "-" if r.max_abs is None else f"{r.max_abs:.2g}"
            mark = "x" if r.verdict == "fail" else " "
            least = f"{r.threshold_db:.1f}"
            head = f"{r.case:<4}{mark:<2}{r.tensor:<12}{decibels(r):<16}{least:<10}{error:<15}"
            lines.append(f"{head}{r.prompt[:60]!r}")
        return lines

    def save_picture(self, inspection: Inspection, failed: list[Record]) -> list[str]:
        """Save the picture of the worst failed case, and say where."""
        cases = [r for r in failed if isinstance(r, ParityRecord)]
        worst = min(cases, key=lambda r: -float("inf") if r.value_db is None else r.value_db, default=None)
        pair = inspection.pictures(self.question, worst.case if worst else 0)
        if pair is None:
            return []
        path = save_diff(*pair, self.plugin.out / file_name(*self.question))
        self.pictures.append(path)
        self.user_properties.append(("picture", str(path)))
        return ["", f"expected, got and difference x8: {os.path.relpath(path)}"]

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show a gate's words alone; a fault of ours keeps its traceback."""
        if isinstance(excinfo.value, GateFailure):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Say what is tested."""
        return self.plugin.root, None, f"{ROOT} {' '.join(part for part in self.question if part)}"


def fixtures(plugin: BundlePlugin) -> types.ModuleType:
    """Make the fixtures `bundle`, `golden` and `engine`; a project's own ones of these names win."""
    inspection = plugin.inspection

    @pytest.fixture(scope="session")
    def bundle() -> Bundle:
        """The bundle, with every file held to its hash."""
        if inspection is None:
            pytest.fail(plugin.unreadable, pytrace=False)
        try:
            verify(inspection.bundle)
        except BundleError as error:
            pytest.fail(str(error), pytrace=False)
        return inspection.bundle

    @pytest.fixture(scope="session")
    def golden(bundle: Bundle) -> tuple[dict[str, Array], ...]:
        """The golden tensors: one dictionary by tensor name per case."""
        return bundle.golden()

    @pytest.fixture(scope="session", params=list(inspection.engines) if inspection else [])
    def engine(bundle: Bundle, request: pytest.FixtureRequest) -> Session:
        """A loaded engine; the test runs once for each that the bundle serves."""
        assert inspection is not None
        try:
            return inspection.session(request.param)
        except EngineError as error:
            pytest.fail(f"{request.param}: {error}", pytrace=False)

    module = types.ModuleType("flashbulb_fixtures")
    vars(module).update(bundle=bundle, golden=golden, engine=engine)
    return module


def fail(words: str) -> NoReturn:
    """Fail a gate."""
    raise GateFailure(words)


def out_folder(config: pytest.Config) -> Path:
    """Return where files go: as told, or beside the JUnit XML, or beside where pytest was called."""
    here = config.invocation_params.dir
    if told := config.getoption("--flashbulb-out"):
        return here / str(told)
    junit = getattr(config.option, "xmlpath", None)
    return (
        (here / os.path.expandvars(Path(junit).expanduser())).parent / ROOT
        if junit
        else here / "flashbulb-out"
    )
