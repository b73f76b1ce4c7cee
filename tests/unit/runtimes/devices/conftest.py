"""A program that stands in for ``adb``: its device is a folder of this machine.

It takes the words that the real one takes, hands lines for the device to ``sh`` as the real one does, and
can be told to lose the device, before a command or during it, or to run out of storage.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.unit.runtimes.devices.apple import as_coreml, install

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.devices import adb
from flashbulb.runtimes.devices import check as check_module

FAKE = """#!{python} -IS
import os, pathlib, shutil, subprocess, sys
root = pathlib.Path({root!r})
words = sys.argv[1:]
with (root / "asked").open("a") as asked:
    asked.write(repr(words) + "\\n")
def gone(): sys.exit("adb: device 'SERIAL' not found".replace("SERIAL", words[1]))
def lose_during(how):
    # As adb 29 and the daemon of Android 14 did when one of them was ended meanwhile.
    if verb == "push":
        pathlib.Path(rest[1]).write_bytes(pathlib.Path(rest[0]).read_bytes()[:3])
        print(f"adb: error: failed to copy '{{rest[0]}}' to '{{rest[1]}}': couldn't read from device")
        sys.exit(1)
    if verb == "pull":
        pathlib.Path(rest[1]).write_bytes(pathlib.Path(rest[0]).read_bytes()[:3])
        print(f"[  4%] {{rest[0]}}")
        sys.exit(1)
    if name != "runner":
        said = subprocess.run(["sh", "-c", rest[1]], capture_output=True).stdout
        os.write(1, said[:3])
    sys.exit(int(how))  # without a word; 0 of older adb, 255 of newer
def countdown(name):
    file = root / name
    if not file.exists(): return False
    left = int(file.read_text())
    file.write_text(str(left - 1))
    return left == 0
assert words[0] == "-s", words
if words[1] != "fake:5555": gone()
verb, rest = words[2], words[3:]
if verb in ("shell", "push", "pull") and countdown("lose_after"): gone()
away = root / "away_at"
# From the first command with these words on, the device is gone for good.
if away.exists() and away.read_text() in " ".join(words[2:]):
    away.write_text("")
    gone()
at = root / "lose_at"
name = verb if verb != "shell" else "runner" if "LD_LIBRARY_PATH" in rest[1] else rest[1].split()[0]
if at.exists() and at.read_text() == name:
    at.unlink()
    how = (root / "lose_how").read_text() if (root / "lose_how").exists() else "before"
    if how == "before": gone()
    lose_during(how)
if verb == "get-state": print((root / "state").read_text() if (root / "state").exists() else "device")
elif verb == "wait-for-device": pass
elif verb == "push":
    if countdown("full_after"): sys.exit("adb: error: failed to copy: No space left on device")
    shutil.copyfile(rest[0], rest[1])
    if countdown("harm_after"): pathlib.Path(rest[1]).write_bytes(b"harmed")
elif verb == "pull": shutil.copyfile(rest[0], rest[1])
elif verb == "shell":
    assert rest[0] == "-T" and len(rest) == 2, rest
    os.execvp("sh", ["sh", "-c", rest[1]])
else: sys.exit("unknown")
"""
RUNNER = """#!{python}
import os, pathlib, sys
import numpy as np
WIDTH = 6
class STEP:
    latent_scale = 0.5
    def coefficients(): return {coefficients}
{sources}
component = pathlib.Path(sys.argv[1]).read_text().split()[-1]
function = globals()[component]
i, o = sys.stdin.buffer, sys.stdout.buffer
print("complaint of", component, file=sys.stderr, flush=True)
o.write(b"ready numpy 1|aarch64|neon|1000|1000\\n"); o.flush()
while line := i.readline():
    verb, *numbers = line.split()
    if verb != b"run":
        count = int(numbers[0]) if numbers else 1
        times = [b"%d 900\\n" % (1000 + n) for n in range(count)]
        o.write(b"ok %d\\n" % count + (b"9000000\\n" if verb == b"memory" else b"".join(times)))
        o.flush()
        continue
    inputs, outputs = numbers
    given = []
    for _ in range(int(inputs)):
        name, dtype, *sizes = i.readline().decode().split()
        shape = [int(size) for size in sizes]
        given.append(np.frombuffer(i.read(4 * int(np.prod(shape))), dtype).reshape(shape))
    names = [i.readline().strip().decode() for _ in range(int(outputs))]
    dies = pathlib.Path("dies")
    if dies.exists() and int(dies.read_text()) > 0:
        dies.write_text(str(int(dies.read_text()) - 1))
        os._exit(137)
    found = np.ascontiguousarray(function(*given), np.float32)
    o.write(f"ok 1\\n{{names[0]}} float32 {{' '.join(map(str, found.shape))}}\\n".encode() + found.tobytes())
    o.flush()
"""
ROOTED = """[ -e "{root}/rooted" ] || {{ echo "sysctl: permission denied" >&2; exit 1; }}
echo "$@" >>"{root}/dropped\""""
"""Drops the page cache of a device that gives root to a shell."""


@pytest.fixture
def fake_adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the fake in front of everything on the path; return its folder."""
    root = tmp_path / "fake"
    root.mkdir()
    program = root / "adb"
    program.write_text(FAKE.format(python=sys.executable, root=str(root)))
    program.chmod(0o755)
    # A test must not make this machine forget its own files.
    for name, line in {"sync": "exit 0", "sysctl": ROOTED.format(root=root)}.items():
        (root / name).write_text(f"#!/bin/sh\n{line}\n")
        (root / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(root), prepend=":")
    return root


@pytest.fixture
def thermal(fake_adb: Path) -> Path:
    """What the device says of its temperature: one status a line, each said once, the last for ever."""
    program = fake_adb / "dumpsys"
    said = fake_adb / "thermal"
    program.write_text(
        f'#!/bin/sh\necho "Thermal Status: $(head -n 1 "{said}")"\n'
        f'[ $(wc -l < "{said}") -gt 1 ] && sed -i 1d "{said}"\nexit 0\n'
    )
    program.chmod(0o755)
    return said


@pytest.fixture
def runners(world: SimpleNamespace, tmp_path: Path) -> Path:
    """A runner that computes what the numpy bundle's components are."""
    functions = (world.text_encoder, world.unet, world.vae_decoder, world.generator)
    step = inspect.getmodule(world.generator).STEP  # type: ignore[union-attr]
    text = RUNNER.format(
        python=sys.executable,
        coefficients=repr(tuple(map(float, step.coefficients()))),
        sources="\n".join(map(inspect.getsource, functions)),
    )
    (tmp_path / "runners").mkdir()
    (tmp_path / "runners" / "flashbulb-ort").write_text(text)
    (tmp_path / "runners" / "libneeded.so").write_bytes(b"library")
    return tmp_path / "runners"


@pytest.fixture
def phone(fake_adb: Path, runners: Path, bundle: Bundle, tmp_path: Path) -> Iterator[adb.Phone]:
    (tmp_path / "a phone's folder").mkdir()
    with adb.phone("fake:5555", str(runners), str(tmp_path / "a phone's folder")) as launcher:
        yield launcher
    assert list((tmp_path / "a phone's folder").iterdir()) == []


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the phone holds its files; a command that opens it finds that folder."""
    found = tmp_path / "there"
    found.mkdir()
    opened = adb.phone
    monkeypatch.setattr(adb, "phone", lambda serial, made: opened(serial, made, str(found)))
    return found


@pytest.fixture
def xcrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in for Apple's tool in front of everything on the path; return its folder."""
    root = tmp_path / "apple"
    install(root)
    monkeypatch.setenv("PATH", str(root), prepend=":")
    return root


@pytest.fixture
def coreml(bundle: Bundle) -> Bundle:
    return as_coreml(bundle)


@pytest.fixture
def no_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of that bundle are words, which no gate of files can take apart; test_check asks those."""
    monkeypatch.setattr(check_module, "program_gates", lambda *a: iter(()))
