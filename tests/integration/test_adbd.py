"""The whole loop through Android's own daemon, which runs here in a network namespace of its own.

The daemon gives a root shell to whoever connects, so it may only run where nobody can: the namespace has a
loopback device and nothing else, and the daemon is kept from sockets of the hypervisor.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flashbulb.runtimes.devices import qemu, toolchain
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.records import read_report

pytest.importorskip("onnxruntime")
pytest.importorskip("executorch")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PLACES = os.pathsep.join([str(ROOT / ".ci/.adbd/bin"), "/usr/sbin", "/usr/lib/android-sdk/platform-tools"])
SERIAL = "127.0.0.1:5555"
ENGINES = {"ort": "ort", "executorch": "pte"}
"""Their files' suffixes."""
BALLAST_BYTES = 256 << 20
"""Large enough that a copy takes a second."""
LOOP = """
set -u
ip link set lo up
mkdir -p "$1/data" "$1/home"
export HOME="$1/home" TMPDIR="$1"
[ -d /data ] && made="" || { mkdir /data && made=1; }
mount -t tmpfs tmpfs /data && mkdir -p /data/local/tmp
mount -o bind,ro /proc/sys /proc/sys
start() {
  LD_PRELOAD="$2" "$3" >>"$1/adbd.log" 2>&1 & echo $! >"$1/daemon"
  tries=0
  until adb connect SERIAL 2>&1 | grep -q "connected to" || [ $((tries += 1)) = 100 ]; do :; done
}
lose() {
  until [ -s "$1/run.json" ] || ls /data/local/tmp/flashbulb-*/"$4"; do sleep 0.1; done 2>/dev/null
  [ "$4" != runner.log ] || sleep 2
  kill -9 "$(cat "$1/daemon")"
  adb disconnect SERIAL
  sleep 2
  start "$@"
  touch "$1/found-again"
}
start "$@"
[ -z "$4" ] || lose "$@" >"$1/lost.log" 2>&1 & losing=$!
folder=$1
shift 4
"$@"
code=$?
wait $losing
adb -s SERIAL shell -T ls /data/local/tmp | grep -q flashbulb && code=70
adb kill-server
kill "$(cat "$folder/daemon")"
umount /data; [ -z "$made" ] || rmdir /data
exit $code
""".replace("SERIAL", SERIAL)
NO_VSOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/socket.h>
int socket(int domain, int type, int protocol) {
  int (*next)(int, int, int) = (int (*)(int, int, int))dlsym(RTLD_NEXT, "socket");
  if (domain != AF_VSOCK) return next(domain, type, protocol);
  errno = EAFNOSUPPORT;
  return -1;
}
"""


def absent() -> str | None:
    """Say what this machine lacks to run the daemon apart."""
    if os.geteuid() != 0:
        return "a namespace of one's own takes root"
    for program in ("adb", "unshare", "ip", "cc"):
        if shutil.which(program) is None:
            return f"no {program}"
    return None if daemon() else "no adbd: run .ci/adbd"


def daemon() -> str | None:
    return shutil.which("adbd") or shutil.which("adbd", path=PLACES)


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What would be pushed to a phone, except that the processor is imitated."""
    if reason := absent() or qemu.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("runners")
    model = qemu.MODELS[1]
    imitated = f'exec {qemu._program()} -cpu {model.name} -L "{qemu._root(folder.parent, model)}"'
    for engine in ENGINES:
        try:
            program = toolchain.runner(engine)
        except EngineError as error:
            pytest.skip(f"no runtime for Arm here: {error}")
        shutil.copy(program, folder / f"arm-{engine}")
        for library in program.parent.glob("*.so*"):
            shutil.copy(library, folder)
        (folder / f"flashbulb-{engine}").write_text(f'#!/bin/sh\n{imitated} ./arm-{engine} "$@"\n')
    return folder


@pytest.fixture(scope="module")
def bundle(runners: Path, sticker_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adbd") / "a bundle; with $(odd) 'name'"
    return Path(shutil.copytree(sticker_bundle, out))


def through_the_daemon(folder: Path, *words: str, lost: str = "") -> subprocess.CompletedProcess[str]:
    """Run `flashbulb` beside the daemon; exit code 70 when something was left on the device.

    Args:
        folder: for whatever the daemon needs.
        words: what to run.
        lost: end the daemon and its connection once, when this file is being written there, and start it
            again; the runners' log tells that one of them works.
    """
    (folder / "vsock.c").write_text(NO_VSOCK)
    shim = folder / "vsock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, folder / "vsock.c", "-ldl"], check=True)
    start = ["unshare", "-nm", "bash", "-c", LOOP, "loop", str(folder), str(shim), str(daemon())]
    start.append(lost)
    return subprocess.run(
        [*start, sys.executable, "-m", "flashbulb.apps.cli", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / ".src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_push_judge_pull_and_clean_up(runners: Path, bundle: Path, tmp_path: Path, engine: str):
    words = ["--device", f"adb:{SERIAL}", "--runners", str(runners), "--engine", engine, "--cases", "2"]
    done = through_the_daemon(tmp_path, "check", str(bundle), *words, "--out", str(tmp_path / "check.json"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = read_report(tmp_path / "check.json")
    assert report.ok and report.device.kind == "adb" and report.device.attributes["serial"] == SERIAL
    assert report.device.attributes["features"] == "neon,dotprod,fp16"
    assert {r.gate for r in report.sanity if r.verdict == "pass"} >= {
        f"structure.unet.{ENGINES[engine]}",
        f"weights.unet.{ENGINES[engine]}",
        "rule",
        "floors",
        "pushed",
        "load",
        "fused",
        "device_files",
    }
    quantities = {r.quantity for r in report.parity if r.verdict == "pass"}
    assert quantities == {"text_encoder", "unet", "vae_decoder", "generator", "x0", "image"}


@pytest.mark.parametrize("lost", [False, True], ids=["kept", "lost"])
def test_every_program_is_timed_and_nothing_is_left(runners: Path, bundle: Path, tmp_path: Path, lost: bool):
    """The processor is imitated, so that no figure counts: each must be taken, and say how."""
    words = ["--device", f"adb:{SERIAL}", "--runners", str(runners), "--engine", "ort", "--threads", "1"]
    words += ["--runs", "10", "--seconds", "1", "--out", str(tmp_path / "run.json")]
    done = through_the_daemon(tmp_path, "bench", str(bundle), *words, lost="runner.log" if lost else "")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = " ".join(done.stderr.split())
    again = said.count("starting it again") + said.count("trying again")
    assert ((tmp_path / "found-again").exists(), again > 0) == (lost, lost), done.stderr[-3000:]
    report = read_report(tmp_path / "run.json")
    assert report.ok and report.device.kind == "adb"
    assert {r.gate for r in report.sanity if r.verdict == "pass"} == {"pushed", "device_files"}
    assert {r.target for r in report.latency} == {"text_encoder", "unet", "vae_decoder", "generator"}
    for record in report.latency:
        assert record.engine == f"ort@{SERIAL}" and record.runs == 10
        assert 0 < record.min_ms <= record.p50_ms <= record.p90_ms <= record.p99_ms
        assert min(record.load_ms, record.first_ms, record.cpu_p50_ms, record.artifact_bytes) > 0
        assert record.peak_rss_bytes > record.baseline_rss_bytes > 0
        assert (record.cores, record.cold, record.verdict) == ("all", False, "skip")  # no dumpsys, no drop
        assert "not judged: the device does not tell its thermal status" in record.sentence


def test_a_copy_that_is_cut_short_is_made_again(runners: Path, bundle: Path, tmp_path: Path):
    ballast = runners / "libballast.so"
    ballast.write_bytes(os.urandom(BALLAST_BYTES))
    words = ["--device", f"adb:{SERIAL}", "--runners", str(runners), "--engine", "ort", "--threads", "1"]
    words += ["--runs", "5", "--seconds", "1", "--out", str(tmp_path / "run.json")]
    try:
        done = through_the_daemon(tmp_path, "bench", str(bundle), *words, lost=ballast.name)
    finally:
        ballast.unlink()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = " ".join(done.stderr.split())
    assert "pushing libballast.so" in said and "trying again" in said, done.stderr[-3000:]
    (pushed,) = [r for r in read_report(tmp_path / "run.json").sanity if r.gate == "pushed"]
    assert pushed.verdict == "pass" and (tmp_path / "found-again").exists()


def test_a_device_that_is_not_there(runners: Path, bundle: Path, tmp_path: Path):
    words = ["--device", "adb:127.0.0.1:5999", "--runners", str(runners), "--engine", "ort"]
    done = through_the_daemon(tmp_path, "check", str(bundle), *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "looking for 127.0.0.1:5999" in " ".join(done.stderr.split())
