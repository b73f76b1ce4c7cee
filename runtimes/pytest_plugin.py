"""A pytest plugin: ``pytest --flashbulb bundle/`` makes one test of each gate of each program of a bundle.

pytest imports this file in every run of every project that has flashbulb installed, so it imports nothing
but pytest.  The rest is in `flashbulb.runtimes.pytest_bundle`, which is imported when the flag is given.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the flags."""
    group = parser.getgroup("flashbulb", "check the programs of a flashbulb bundle")
    group.addoption(
        "--flashbulb", metavar="BUNDLE", help="folder that `flashbulb export` wrote: one test per gate of it"
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
        help="for the eager engine: where the checkpoint is, if not where it was at export",
    )
    group.addoption(
        "--flashbulb-threads", metavar="N", type=int, default=1, help="threads of each engine (1)"
    )
    group.addoption(
        "--flashbulb-out",
        metavar="DIR",
        help="folder for pictures, report and summary; by default flashbulb/ beside the JUnit XML",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and the tests of a bundle where one is named."""
    config.addinivalue_line(
        "markers", "flashbulb: needs `--flashbulb BUNDLE` for its fixtures; skipped without the flag"
    )
    if config.getoption("--flashbulb"):
        from flashbulb.runtimes.pytest_bundle import BundlePlugin

        config.pluginmanager.register(BundlePlugin.of(config), "flashbulb-bundle")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what says that it needs a bundle when none is named."""
    if item.get_closest_marker("flashbulb") and not item.config.getoption("--flashbulb"):
        pytest.skip("needs --flashbulb BUNDLE")
