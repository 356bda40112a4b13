import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from bevkd2.d2 import comm
from tests.limits import PROGRAM_SECONDS


def test_without_a_process_group():
    assert (comm.get_world_size(), comm.get_rank(), comm.is_main_process()) == (1, 0, True)
    assert (comm.get_local_size(), comm.get_local_rank()) == (1, 0)
    assert comm.all_gather("x") == comm.gather("x") == ["x"]
    losses = {"a": torch.ones(())}
    assert comm.reduce_dict(losses) is losses
    assert 0 <= comm.shared_random_seed() < 2**31
    comm.synchronize()


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def test_two_processes():
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "WORLD_SIZE": "2",
    }
    worker = str(Path(__file__).with_name("comm_worker.py"))
    jobs = [
        subprocess.Popen([sys.executable, worker], env={**environ, "RANK": rank}, stderr=subprocess.PIPE)
        for rank in "01"
    ]
    errors = [job.communicate(timeout=PROGRAM_SECONDS)[1].decode() for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], "\n".join(errors)
