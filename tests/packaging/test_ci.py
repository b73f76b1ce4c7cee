"""CI installs what single tests need as root, or through sudo where that asks for no password."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CI = Path(__file__).parents[2] / ".ci"
PROVIDE = f"eval \"$(sed -n '/^has()/,/^}}/p' {CI / 'run'})\"; provide no-such-program some-package"
ANSWERS = {
    "id": "echo 1001",
    "apt-get": 'echo "apt-get $*" >>"$LOG"; case "$*" in *indextargets*) echo ;; esac',
    "dpkg": "true",
}
WORKS = 'echo "sudo $*" >>"$LOG"; test "$3" = chown && exit; shift; exec "$@"'
ASKS = "echo 'sudo: a password is required' >&2; exit 1"
Run = Callable[..., tuple[str, str]]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command as somebody who is not root; return what it printed, and what it called."""

    def run(*command: str, sudo: str) -> tuple[str, str]:
        log = tmp_path / "log"
        log.touch()
        (tmp_path / "bin").mkdir()
        for name, body in {**ANSWERS, "sudo": sudo}.items():
            path = tmp_path / "bin" / name
            path.write_text(f"#!/bin/sh\n{body}\n")
            path.chmod(0o755)
        env = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "LOG": str(log)}
        found = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        return found.stdout, log.read_text()

    return run


def test_a_program_is_installed_through_sudo(run: Run) -> None:
    printed, called = run("bash", "-c", PROVIDE, sudo=WORKS)
    assert printed == ""
    assert "apt-get -qq update" in called
    assert "apt-get -qq install -y --no-install-recommends some-package" in called
    assert called.count("sudo -n env") == 3


def test_where_sudo_asks_for_a_password_it_says_why_nothing_is_installed(run: Run) -> None:
    printed, called = run("bash", "-c", PROVIDE, sudo=ASKS)
    assert printed.startswith("skipped: installing some-package takes apt-get, and root or sudo without")
    assert called == ""


def test_the_daemon_is_fetched_through_sudo(run: Run, tmp_path: Path) -> None:
    copy = shutil.copy(CI / "adbd", tmp_path / "adbd")
    _, called = run("bash", str(copy), sudo=WORKS)
    assert "--download-only adbd" in called
    assert f"sudo -n env chown -R 1001:1001 {tmp_path}/.adbd" in called


def test_where_sudo_asks_for_a_password_it_says_why_there_is_no_daemon(run: Run, tmp_path: Path) -> None:
    copy = shutil.copy(CI / "adbd", tmp_path / "adbd")
    printed, called = run("bash", str(copy), sudo=ASKS)
    assert printed == "skipped: fetching adbd takes root or sudo without a password\n"
    assert called == ""
