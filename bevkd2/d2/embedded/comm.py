"""What the processes of a distributed job ask about themselves and tell each other.

Groups are held weakly: torch owns them until destroy_process_group(). One that a variable of a module kept
would run its threads into the interpreter's end, where they can abort the process.
"""

import weakref
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

_local_group: weakref.ref[dist.ProcessGroup] | None = None
_cpu_groups: weakref.WeakKeyDictionary[dist.ProcessGroup, weakref.ref[dist.ProcessGroup]] = (
    weakref.WeakKeyDictionary()
)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Returns the number of processes in the job; 1 without a process group."""
    return dist.get_world_size() if _distributed() else 1


def get_rank() -> int:
    """Returns this process's number in the job; 0 without a process group."""
    return dist.get_rank() if _distributed() else 0


def is_main_process() -> bool:
    """Returns whether this process has rank 0."""
    return get_rank() == 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Makes the group of the processes on this machine; all processes must call it together.

    A second call with the same number does nothing.

    Args:
        num_workers_per_machine: processes a machine, of consecutive ranks.

    Raises:
        AssertionError: a group of another size exists, or the job does not divide into such machines.
    """
    global _local_group
    world_size, per_machine = get_world_size(), num_workers_per_machine
    existing = _local()
    if existing is not None:
        if dist.get_world_size(existing) != per_machine:
            raise AssertionError(
                "create_local_process_group was already called with another number of workers"
            )
        return
    if world_size % per_machine:
        raise AssertionError(f"{world_size} processes do not divide into machines of {per_machine}")
    for first in range(0, world_size, per_machine):
        group = dist.new_group(list(range(first, first + per_machine)))
        if isinstance(group, dist.ProcessGroup):  # not the mark that others than its members get
            _local_group = weakref.ref(group)


def _local() -> dist.ProcessGroup | None:
    return None if _local_group is None else _local_group()


def get_local_process_group() -> dist.ProcessGroup:
    """Returns the group of the processes on this machine.

    Raises:
        AssertionError: it was not created.
    """
    group = _local()
    if group is None:
        raise AssertionError(
            "the local process group is not created: start with bevkd2's launch, or call "
            "comm.create_local_process_group(num_workers_per_machine) after init_process_group()"
        )
    return group


def get_local_rank() -> int:
    """Returns this process's number on its machine; 0 without a process group."""
    return dist.get_rank(group=get_local_process_group()) if _distributed() else 0


def get_local_size() -> int:
    """Returns the number of processes on this machine; 1 without a process group."""
    return dist.get_world_size(group=get_local_process_group()) if _distributed() else 1


def synchronize() -> None:
    """Synchronizes all processes."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        dist.barrier(device_ids=[torch.cuda.current_device()])  # without it NCCL warns that it guesses
    else:
        dist.barrier()


def _cpu_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """All processes over gloo; by world group, so that none is used after a re-initialisation."""
    if dist.get_backend(world) == dist.Backend.GLOO:
        return world
    known = _cpu_groups.get(world)
    existing = None if known is None else known()
    if existing is not None:
        return existing
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup), "a group of all processes has this one in it"
    _cpu_groups[world] = weakref.ref(group)
    return group


def _object_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """The given group, or all processes over gloo, so that objects take no GPU memory."""
    if group is not None:
        return group
    assert dist.group.WORLD is not None, "there is more than one process"
    return _cpu_group(dist.group.WORLD)


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Gathers the objects of all processes on every process.

    Args:
        data: any picklable object.
        group: the processes that take part; by default all.

    Returns:
        One object a process, by rank.
    """
    if get_world_size() == 1:
        return [data]
    group = _object_group(group)
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Gathers the objects of all processes on one process.

    Args:
        data: any picklable object.
        dst: rank of the process that receives.
        group: the processes that take part; by default all.

    Returns:
        On ``dst`` one object a process, by rank; elsewhere an empty list.
    """
    if get_world_size() == 1:
        return [data]
    group = _object_group(group)
    gathered: list[Any] = [None] * dist.get_world_size(group) if dist.get_rank() == dst else []
    dist.gather_object(data, gathered or None, dst=dst, group=group)
    return gathered


def shared_random_seed() -> int:
    """Returns a random number that is the same in every process; all must call it."""
    seed: int = all_gather(int(np.random.randint(2**31)))[0]
    return seed


def reduce_dict(input_dict: dict[str, torch.Tensor], average: bool = True) -> dict[str, torch.Tensor]:
    """Sums or averages scalars over the processes, onto rank 0.

    Args:
        input_dict: name -> scalar tensor, on a device that the default backend reduces.
        average: divide the sums by the number of processes.

    Returns:
        The same names; only rank 0 has the reduced values.
    """
    world_size = get_world_size()
    if world_size == 1:
        return input_dict
    names = sorted(input_dict)  # processes may have filled their dicts in different orders
    with torch.no_grad():
        values = torch.stack([input_dict[name] for name in names])
        dist.reduce(values, dst=0)
        if average and is_main_process():
            values /= world_size
    return dict(zip(names, values, strict=True))
