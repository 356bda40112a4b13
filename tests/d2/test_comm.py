from pathlib import Path

import torch
from torch.multiprocessing.spawn import start_processes

from bevkd2.d2 import comm
from tests.d2 import comm_worker


def test_without_a_process_group():
    assert (comm.get_world_size(), comm.get_rank(), comm.is_main_process()) == (1, 0, True)
    assert (comm.get_local_size(), comm.get_local_rank()) == (1, 0)
    assert comm.all_gather("x") == comm.gather("x") == ["x"]
    losses = {"a": torch.ones(())}
    assert comm.reduce_dict(losses) is losses
    assert 0 <= comm.shared_random_seed() < 2**31
    comm.synchronize()


def test_two_processes(tmp_path: Path):
    start_processes(comm_worker.main, (tmp_path / "meeting",), nprocs=2, start_method="fork")
