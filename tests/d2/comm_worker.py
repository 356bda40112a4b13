"""One of the two processes that test_comm.py starts."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist

from bevkd2.d2 import PROVIDER, comm
from tests.limits import PROGRAM_SECONDS


def gloo_threads() -> list[str]:
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]


def main(rank: int, meeting: Path) -> None:
    torch.set_num_threads(1)  # the threads of the parent are not forked
    timeout = timedelta(seconds=PROGRAM_SECONDS)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timeout)
    comm.create_local_process_group(2)
    comm.create_local_process_group(2)
    assert (comm.get_world_size(), comm.get_rank(), comm.is_main_process()) == (2, rank, rank == 0)
    assert (comm.get_local_rank(), comm.get_local_size()) == (rank, 2)
    assert comm.all_gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    assert comm.gather("ab"[rank]) == (["a", "b"] if rank == 0 else [])
    assert comm.gather("ab"[rank], dst=1) == (["a", "b"] if rank == 1 else [])
    torch.manual_seed(rank)
    assert len(set(comm.all_gather(comm.shared_random_seed()))) == 1
    names = ["a", "b"] if rank == 0 else ["b", "a"]
    values = {name: torch.tensor(float("ab".index(name) + rank)) for name in names}
    for average, expected in ((True, {"a": 0.5, "b": 1.5}), (False, {"a": 1.0, "b": 3.0})):
        reduced = comm.reduce_dict(values, average=average)
        assert rank != 0 or {name: value.item() for name, value in reduced.items()} == expected
    comm.synchronize()
    assert sys.platform != "linux" or gloo_threads()
    dist.destroy_process_group()
    # Threads that are left can abort the process when the interpreter ends. Detectron2 leaves some.
    assert sys.platform != "linux" or PROVIDER != "embedded" or not gloo_threads()
