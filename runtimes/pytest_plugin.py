"""A pytest plugin: ``pytest --flashbulb=bundle/`` makes one test of each gate of each program of a bundle.

pytest imports this file in every run of every project that has flashbulb installed, so it imports nothing
but pytest.  The rest is in `flashbulb.runtimes.pytest_bundle`, which is imported when the flag is given.

A bundle is data from strangers, and pytest takes a folder among its words for tests: it reads the folder's
ini file before it loads any plugin, and with it whatever that file names.  So the flags that name a
stranger's folder want ``=``, and a bundle with anything in it by which code could run is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

STRANGERS = ("--flashbulb", "--flashbulb-checkpoint")
"""Flags whose value is a stranger's folder."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the flags."""
    group = parser.getgroup("flashbulb", "check the programs of a flashbulb bundle")
    group.addoption(
        "--flashbulb",
        metavar="BUNDLE",
        help="folder that `flashbulb export` wrote: one test per gate of it; wants `=` before the folder",
    )
    group.addoption(
        "--flashbulb-engine",
        metavar="NAME",
        action="append",
        default=[],
        help="engine to test, a failure where it cannot run; may be repeated; "
        "by default all that the bundle serves and this machine has",
    )
    group.addoption(
        "--flashbulb-checkpoint",
        metavar="PATH",
        help="for the eager engine: where the checkpoint is, if not where it was at export; wants `=`",
    )
    group.addoption(
        "--flashbulb-threads", metavar="N", type=int, default=1, help="threads of each engine (1)"
    )
    group.addoption(
        "--flashbulb-out",
        metavar="DIR",
        help="folder for pictures, report and summary; by default flashbulb/ beside the JUnit XML",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Refuse what could run code out of a bundle, before pytest looks for a conftest in it.

    Raises:
        pytest.UsageError: for a flag without ``=``, tests asked of the bundle, or programs in it.
    """
    for flag in STRANGERS:
        if flag in args:
            raise pytest.UsageError(
                f"wanted {flag}=FOLDER, got {flag} FOLDER: pytest takes a separate word for a folder of "
                "tests and reads its configuration, which can run code; write the `=`"
            )
    told = early_config.known_args_namespace.flashbulb
    if told:
        root = (early_config.invocation_params.dir / told).resolve()
        for fault in bundle_faults(root, early_config):
            raise pytest.UsageError(f"--flashbulb={told}: {fault}")


def bundle_faults(root: Path, config: pytest.Config) -> Iterator[str]:
    """Yield what could have pytest run code out of a bundle."""
    from flashbulb.export.bounds import runs

    named = [config.invocation_params.dir / word for word in config.known_args_namespace.file_or_dir]
    for path in (config.invocation_params.dir, config.rootpath, *named):
        if path.resolve().is_relative_to(root):
            yield f"wanted pytest to be called outside of the bundle, got {path}; call it from elsewhere"
    for folder, names, files in os.walk(root):
        for name in sorted(filter(runs, (*names, *files))):
            path = (Path(folder) / name).relative_to(root)
            yield f"wanted what `flashbulb export` wrote, got {path} in it, by which code could run"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and the tests of a bundle where one is named."""
    config.addinivalue_line(
        "markers", "flashbulb: needs `--flashbulb=BUNDLE` for its fixtures; skipped without the flag"
    )
    if config.getoption("--flashbulb"):
        from flashbulb.runtimes.pytest_bundle import BundlePlugin

        config.pluginmanager.register(BundlePlugin.of(config), "flashbulb-bundle")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what says that it needs a bundle when none is named."""
    if item.get_closest_marker("flashbulb") and not item.config.getoption("--flashbulb"):
        pytest.skip("needs --flashbulb=BUNDLE")
