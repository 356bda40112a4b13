"""Starting one process per GPU, or taking part in a job that torchrun started."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException, start_processes

from bevkd2.checkpoint.io import replace_atomically
from bevkd2.d2 import comm
from bevkd2.engine.stop import STOP_SIGNALS, StopSignals
from bevkd2.errors import USER_ERRORS, UserError, log_traceback, message_of, traceback_of

T = TypeVar("T")
DEFAULT_TIMEOUT = timedelta(minutes=30)


def usable_cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def launch(
    main_func: Callable[..., T],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple[Any, ...] = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
    device: str = "auto",
) -> T | None:
    """Calls ``main_func(*args)`` in every process of the job.

    Under torchrun the processes exist already; the process group is joined and the numbers here must not ask
    for others. Else ``num_gpus_per_machine`` processes are spawned, or none where the job has one.

    Args:
        main_func: picklable where processes are spawned.
        num_gpus_per_machine: processes on this machine.
        num_machines: machines; ``launch`` is called on each.
        machine_rank: this one's number.
        dist_url: where the processes meet, e.g. ``tcp://10.0.0.1:29500``; ``auto``: a free port of this
            machine.
        args: arguments of ``main_func``.
        timeout: how long a process waits for the others.
        device: the config's MODEL.DEVICE; ``cpu`` makes CPU processes that talk over gloo.

    Returns:
        What ``main_func`` returns, where it ran in this process; None where processes were spawned.

    Raises:
        ValueError: more processes than GPUs, no process, a machine that is not one of the job's, a
            malformed ``dist_url``, or numbers that contradict torchrun.
        ConnectionError: the processes cannot meet, as where the port is taken.
        UserError: a spawned process raised one of ``USER_ERRORS``; the first one's message and traceback.
        SystemExit: a signal ended the spawned processes.
    """
    on_cpu = device.startswith("cpu")
    _check_numbers(num_gpus_per_machine, num_machines, machine_rank)
    if "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _join_torchrun(main_func, args, num_gpus_per_machine, timeout, on_cpu)
    world_size = num_machines * num_gpus_per_machine
    if world_size == 1:
        return main_func(*args)
    if not on_cpu:
        _check_gpus(num_gpus_per_machine, f"--num-gpus {num_gpus_per_machine}")
    if dist_url != "auto" and not re.fullmatch(r"tcp://.+:\d+|file://.+|env://.*", dist_url):
        raise ValueError(
            f"--dist-url is {dist_url!r}, expected auto (one machine), or tcp://HOST:PORT of the first one"
        )
    if dist_url == "auto":
        if num_machines > 1:
            raise ValueError(
                "--dist-url auto finds a port of one machine; name the first machine's tcp://HOST:PORT"
            )
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    with tempfile.TemporaryDirectory() as failures:
        arguments = (main_func, args, num_gpus_per_machine, world_size, machine_rank, dist_url, timeout)
        try:
            _spawn((*arguments, on_cpu, failures), num_gpus_per_machine)
        except ProcessExitedException:
            for failure in sorted(Path(failures).glob("rank*")):
                raise UserError(*json.loads(failure.read_text(encoding="utf-8"))) from None
            raise
    return None


def _spawn(arguments: tuple[Any, ...], count: int) -> None:
    """Starts the processes and waits for them; a signal that ends a training is passed on to them.

    Raises:
        SystemExit: a signal ended them; the status is 128 + its number.
    """
    context: list[ProcessContext] = []

    def forward() -> None:
        for process in context[0].processes if context else ():
            process.terminate()  # not SIGINT: a Ctrl-C reaches them too, and the second one ends at once

    with StopSignals(forward) as signals:
        context.append(
            start_processes(_spawned, args=arguments, nprocs=count, join=False, start_method="spawn")
        )
        if signals.received:
            forward()
        try:
            while not context[0].join():
                pass
        except ProcessExitedException as error:
            number = signals.received or error.exit_code - 128
            if number in STOP_SIGNALS:
                raise SystemExit(128 + number) from None
            raise
        if signals.received:
            raise SystemExit(128 + signals.received)


def _spawned(
    local_rank: int,
    main_func: Callable[..., Any],
    args: tuple[Any, ...],
    per_machine: int,
    world_size: int,
    machine_rank: int,
    dist_url: str,
    timeout: timedelta,
    on_cpu: bool,
    failures: str,
) -> None:
    """Runs in a spawned process; a user's error goes to a file in ``failures``, which the parent reads."""
    if on_cpu and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores() // per_machine))  # else each takes all cores
    rank = machine_rank * per_machine + local_rank
    group = {"init_method": dist_url, "world_size": world_size, "rank": rank, "timeout": timeout}
    try:
        _run(main_func, args, group, local_rank, per_machine, on_cpu)
        # A Ctrl-C from here on would print a traceback of the exit; the parent ends this process instead.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except USER_ERRORS as error:
        log_traceback(error)
        text = json.dumps([message_of(error), traceback_of(error)]).encode()
        # The parent ends this process as soon as another has failed, so the file is whole or not there.
        replace_atomically(Path(failures, f"rank{rank:06d}"), lambda file: file.write(text))
        sys.exit(1)


def _join_torchrun(
    main_func: Callable[..., T], args: tuple[Any, ...], asked: int, timeout: timedelta, on_cpu: bool
) -> T:
    per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if asked not in (1, per_machine):
        raise ValueError(
            f"--num-gpus {asked} under a torchrun with {per_machine} processes per machine; leave --num-gpus "
            "out and set torchrun's --nproc-per-node"
        )
    if not on_cpu and (per_machine > 1 or torch.cuda.is_available()):
        _check_gpus(per_machine, f"torchrun --nproc-per-node {per_machine}")
    local_rank = int(os.environ["LOCAL_RANK"])
    gpu = not on_cpu and torch.cuda.is_available()
    return _run(main_func, args, {"timeout": timeout}, local_rank, per_machine, on_cpu=not gpu)


def _run(
    main_func: Callable[..., T],
    args: tuple[Any, ...],
    group: dict[str, Any],
    local_rank: int,
    per_machine: int,
    on_cpu: bool,
) -> T:
    """Joins the process group, calls the function, and leaves the group if it succeeded.

    After a failure the group is left to the exit of the process: taking it down would wait for ranks that may
    be in the middle of a collective call.
    """
    if not on_cpu:
        torch.cuda.set_device(local_rank)
    try:
        dist.init_process_group("gloo" if on_cpu else "nccl", **group)
    except dist.DistError as error:
        raise _no_meeting(error, group.get("init_method", "")) from error
    comm.create_local_process_group(per_machine)
    comm.synchronize()
    result = main_func(*args)
    comm.synchronize()
    dist.destroy_process_group()
    return result


def _no_meeting(error: BaseException, url: str) -> ConnectionError:
    """Describes why the processes could not form a group."""
    place = f"--dist-url {url}" if url else "torchrun's MASTER_ADDR and MASTER_PORT"
    reason = (str(error).splitlines() or ["no message"])[0]
    if "EADDRINUSE" in reason or "already in use" in reason:
        return ConnectionError(
            f"{place}: the port is taken, perhaps by another training of yours; add --dist-url auto, which "
            f"finds a free port (on one machine), or name another one ({reason})"
        )
    return ConnectionError(
        f"{place}: the processes could not meet there; name an address of the first machine (--machine-rank "
        f"0) that all machines reach, and start all of them; on one machine, use --dist-url auto ({reason})"
    )


def _check_numbers(per_machine: int, machines: int, rank: int) -> None:
    """Refuses what would start no process at all, or wait for one that never comes."""
    if per_machine < 1:
        raise ValueError(
            f"--num-gpus is {per_machine}, expected at least 1: it counts processes, on the CPU too; leave "
            "it out and add MODEL.DEVICE cpu to run without a GPU"
        )
    if machines < 1:
        raise ValueError(f"--num-machines is {machines}, expected at least 1; leave it out for one machine")
    if not 0 <= rank < machines:
        raise ValueError(
            f"--machine-rank is {rank}, expected 0 to {machines - 1}, a number of its own for each of the "
            f"{machines} machines (--num-machines)"
        )


def _check_gpus(wanted: int, by: str) -> None:
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted > visible:
        raise ValueError(
            f"{by} asks for {wanted} GPUs, but PyTorch sees {visible}; lower it, look at nvidia-smi and "
            f"CUDA_VISIBLE_DEVICES, or add MODEL.DEVICE cpu for {wanted} processes on the CPU"
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
