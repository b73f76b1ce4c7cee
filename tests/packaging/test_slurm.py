"""The Slurm file starts one torchrun on each machine, with its cores and the first machine to meet at."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "distill/cluster.slurm"
JOB = {
    "SLURM_JOB_NODELIST": "gpu[3-4]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "77",
}  # fmt: skip
PROGRAM = """#!{python}
import json, os, sys
with open({log!r}, "a") as file:
    print(json.dumps(sys.argv), file=file)
with open({log!r} + "-" + os.path.basename(sys.argv[0]), "w") as file:
    json.dump(dict(os.environ), file)
print("gpu3\\ngpu4")
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")


def submit(tmp_path: Path, *words: str, **job: str) -> tuple[int, list[list[str]]]:
    """Run the file as Slurm's first machine does, with programs that note what they are asked."""
    for name in ("srun", "scontrol"):
        program = tmp_path / name
        program.write_text(PROGRAM.format(python=sys.executable, log=str(tmp_path / "log")))
        program.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    environment = kept | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | JOB | job
    code = subprocess.run(["bash", SCRIPT, *words], env=environment, check=False, timeout=60).returncode
    log = tmp_path / "log"
    return code, [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []


def test_it_is_bash() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True, timeout=60)


@pytest.mark.parametrize(("told", "cores"), [({"SLURM_CPUS_PER_TASK": "48"}, "48"), ({}, "64")])
def test_srun_is_given_cores_meeting_place_and_recipe(
    tmp_path: Path, told: dict[str, str], cores: str
) -> None:
    code, (asked, ran) = submit(tmp_path, "my recipe.yaml", **told)
    assert code == 0
    assert json.loads((tmp_path / "log-srun").read_text())["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert asked[1:] == ["show", "hostnames", "gpu[3-4]"]
    begin = ran.index("torchrun")
    assert ran[1:begin] == ["--kill-on-bad-exit=1", f"--cpus-per-task={cores}"]
    assert ran[begin + 1 :] == [
        "--nnodes", "2", "--nproc-per-node", "4", "--max-restarts", "10", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", "gpu3:29500", "--rdzv-id", "77",
        "-m", "flashbulb.apps.cli", "distill", "my recipe.yaml",
    ]  # fmt: skip


def test_no_recipe_is_no_job(tmp_path: Path) -> None:
    assert submit(tmp_path) == (1, [])
