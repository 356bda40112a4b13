"""Several machines, on one: the torchrun line of docs/multi_machine.md, and the Slurm script."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bevkd2.data.synthetic import WorldConfig, generate
from bevkd2.engine.launch import _free_port
from tests.cli.test_train import ROOT, SMALL
from tests.docs.pages import commands
from tests.limits import PROGRAM_SECONDS

pytestmark = pytest.mark.slow
DEMO = ROOT / "configs" / "demo" / "student.yaml"

# Runs the command once per machine, as srun does, and returns the highest status. In the job's first run, it
# sends SIGUSR1 to all as soon as there are losses, as `#SBATCH --signal` does before the time limit.
SRUN = """#!{python}
import os, signal, subprocess, sys, time
from pathlib import Path

state, losses = Path({state!r}), Path({output!r}) / "metrics.json"
tasks = [
    subprocess.Popen(sys.argv[1:], env={{**os.environ, "SLURM_NODEID": str(node), "SLURM_GPUS_ON_NODE": "1"}})
    for node in range(int(os.environ["SLURM_NNODES"]))
]
if not state.exists():
    while not (losses.exists() and losses.stat().st_size) and all(task.poll() is None for task in tasks):
        time.sleep(0.05)
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/sh
case "$1 $2" in
    "show hostnames") echo 127.0.0.1; echo 127.0.0.2 ;;
    "requeue {job}") echo requeued >> {state} ;;
    *) exit 1 ;;
esac
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = WorldConfig(num_train_scenes=2, num_val_scenes=1, frames_per_scene=2, image_size=(88, 32))
    return generate(config, tmp_path_factory.mktemp("machines") / "world", progress=False)


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def test_the_torchrun_command_of_the_page(world: Path, tmp_path: Path) -> None:
    page = commands(ROOT / "docs" / "multi_machine.md")
    words = next(command.words for command in page if command.words[0] == "torchrun")
    assert words[1:5] == ["--nnodes", "2", "--nproc-per-node", "8"]
    small = {
        "8": "1",
        "first-machine:29500": f"127.0.0.1:{_free_port()}",
        "configs/distill_r50.yaml": str(DEMO),
        "/path/to/nuscenes": str(world),
        "output/r50": str(tmp_path),
    }
    weights = words.index("DISTILL.TEACHER.WEIGHTS")
    del words[weights : weights + 2]  # the demo's student has no teacher
    command = [sys.executable, "-m", "torch.distributed.run", *(small.get(word, word) for word in words[1:])]
    machines = [
        subprocess.Popen(
            [*command, *SMALL], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for _ in range(2)
    ]
    outputs = [machine.communicate(timeout=PROGRAM_SECONDS)[0].decode() for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert "rank 0 of 2 processes" in (tmp_path / "log.txt").read_text()
    assert (tmp_path / "log.txt.rank1").is_file() and (tmp_path / "model_final.pth").is_file()


def test_the_slurm_script_queues_the_job_again_and_resumes(world: Path, tmp_path: Path) -> None:
    state, output, programs = tmp_path / "state", tmp_path / "output", tmp_path / "bin"
    programs.mkdir()
    job = 20_000 + _free_port() % 10_000
    texts = {
        "srun": SRUN.format(python=sys.executable, state=str(state), output=str(output)),
        "scontrol": SCONTROL.format(job=job, state=state),
        "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
    }
    for name, text in texts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    variables = {"SLURM_JOB_ID": str(job), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2"}
    command = [str(ROOT / "examples" / "slurm" / "train.sbatch"), "--config-file", str(DEMO), *SMALL]
    command += ["SOLVER.MAX_ITER", "12", "SOLVER.CHECKPOINT_PERIOD", "12", "DATASETS.ROOT", str(world)]

    def run() -> int:
        return subprocess.run(
            [*command, "OUTPUT_DIR", str(output)],
            cwd=ROOT,
            env=environment(PATH=f"{programs}{os.pathsep}{os.environ['PATH']}", **variables),
            stdout=subprocess.DEVNULL,
            timeout=PROGRAM_SECONDS,
            check=False,
        ).returncode

    assert run() == 138
    assert state.read_text() == "requeued\n" and not (output / "model_final.pth").exists()
    ended = re.search(
        r"SIG\w+: ending after iteration (\d+), which is saved", (output / "log.txt").read_text()
    )
    assert ended and 0 <= int(ended[1]) < 11
    assert run() == 0
    assert state.read_text() == "requeued\n" and (output / "model_final.pth").is_file()
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    steps = [row["iteration"] for row in rows if "total_loss" in row]
    assert steps == list(range(12))
    assert (output / "log.txt.rank1").is_file()
