"""Two processes with one sample each learn what one process with both learns."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distill.methods.ddp_worker import RELATIVE, joint_cases, loss_and_gradient
from tests.limits import PROGRAM_SECONDS

ROOT = Path(__file__).parents[3]
SEEDS = (1, 2)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Losses and gradients, averaged over two gloo processes, by case."""
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distill.methods.ddp_worker", str(folder), *map(str, SEEDS)],
            cwd=ROOT,
            env={
                **os.environ,
                **{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT)},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=PROGRAM_SECONDS)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)[-3000:]
    return torch.load(folder / "found.pt")


@pytest.mark.filterwarnings("ignore:In CPU autocast")  # float64_twin makes float32 look like another dtype
@pytest.mark.parametrize(
    "number", range(len(joint_cases())), ids=lambda i: f"{joint_cases()[i][0] or 'own'}-{joint_cases()[i][1]}"
)
def test_two_processes_are_one_with_the_joint_batch(two_processes, number):
    loss, gradient = two_processes[number]
    entry, detector = joint_cases()[number]
    joint_loss, joint_gradient = loss_and_gradient(entry, detector, *SEEDS)
    assert loss.dtype == gradient.dtype == torch.float64
    assert loss.item() == pytest.approx(joint_loss.item(), rel=RELATIVE)
    assert (gradient - joint_gradient).norm() <= RELATIVE * joint_gradient.norm()
