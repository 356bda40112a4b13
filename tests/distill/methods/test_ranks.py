"""Normalisers of dense heads are those of the batch of all processes; test_ddp.py has the features'."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def test_two_processes_of_one_image_are_one_process_of_two() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
    }
    worker = str(Path(__file__).with_name("rank_worker.py"))
    jobs = [
        subprocess.Popen([sys.executable, worker], env={**environ, "RANK": rank}, stderr=subprocess.PIPE)
        for rank in "01"
    ]
    errors = [job.communicate(timeout=300)[1].decode() for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], "\n".join(errors)
