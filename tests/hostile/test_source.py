"""Nothing in the source runs data: no pickle, no eval, no shell, no unsafe YAML, no unpacked archive."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("distill", "compress", "export", "runtimes", "apps")
MODULES = ("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
"""Modules whose loading runs what they load."""
CALLS = (
    "eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "os.system", "os.popen",
    "os.spawnl", "os.execl", "subprocess.getoutput", "subprocess.getstatusoutput", "commands.getoutput",
    "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "shutil.unpack_archive", "torch.hub.load",
    "torch.jit.load", "pty.spawn", "runpy.run_path",
)  # fmt: skip
FROM = ("os.system", "os.popen", "yaml.unsafe_load", "subprocess.getoutput", "shutil.unpack_archive")


def faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and description of each construct that could run data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{a.name}" for a in node.names]
            errors_only = all(a.name.endswith("Error") for a in node.names)  # catching one runs nothing
            if (node.module or "").split(".")[0] in MODULES and not errors_only:
                yield node.lineno, str(node.module)
            yield from ((node.lineno, name) for name in whole if name in FROM)
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, words) for words in call_faults(node))


def call_faults(node: ast.Call) -> Iterator[str]:
    name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
    if name in CALLS:
        yield name
    if name == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if name in ("yaml.load", "yaml.load_all") and "Safe" not in given.get("Loader", ""):
        yield "yaml.load without a safe loader"
    if given.get("shell", "False") != "False":
        yield "a shell"
    if given.get("allow_pickle", "False") != "False":
        yield "allow_pickle"
    if given.get("trust_remote_code", "False") != "False":
        yield "trust_remote_code"
    if given.get("weights_only") == "False":
        yield "weights_only=False"
    if name.endswith(".extractall") and given.get("filter") != "'data'":
        yield "extractall"


def sources() -> list[Path]:
    found = [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]
    return [p for p in found if "node_modules" not in p.parts]


def test_the_source_runs_no_data() -> None:
    files = sources()
    assert len(files) > 100
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in files
        for line, what in faults(ast.parse(path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import loads", "import dill as d", "eval('1')", "exec(x)",
        "os.system(x)", "torch.load(f)", "torch.load(f, weights_only=False)", "yaml.load(x)",
        "yaml.load(x, Loader=yaml.Loader)", "archive.extractall(p, filter='fully_trusted')",
        "subprocess.run(x, shell=True)", "from os import system", "np.load(f, allow_pickle=True)",
        "archive.extractall(p)", "A.from_pretrained(x, trust_remote_code=True)", "yaml.unsafe_load(x)",
        "subprocess.Popen(x, shell=bool(1))", "import pickle, os",
    ],
)  # fmt: skip
def test_each_forbidden_form_is_found(line: str) -> None:
    assert list(faults(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()", "torch.load(f, weights_only=True)", "yaml.safe_load(x)", "import pickletools",
        "yaml.load(x, Loader=yaml.CSafeLoader)", "subprocess.run(['a', 'b'])", "re.compile('a')",
        "tarfile.open(x).extractall(p, filter='data')",
    ],
)  # fmt: skip
def test_what_is_harmless_is_let_through(line: str) -> None:
    assert not list(faults(ast.parse(line)))
