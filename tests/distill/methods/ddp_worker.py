"""Gradients of every method in several processes, each on its own sample."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist
from torch.multiprocessing.spawn import start_processes

from bevkd2.d2 import EventStorage, build_model, comm
from tests.distill.methods.catalog import CATALOG, Entry
from tests.distill.methods.harness import build_detector, build_pair, distill_losses, make_batch
from tests.limits import PROGRAM_SECONDS
from tests.modeling.mono.pgd_model import make_image, small_cfg
from tests.tolerance import as_float64, float64_twin

NUSCENES = "PGD with velocities and attributes"
RELATIVE = 1e-9
"""Far above the rounding of float64, and far below what a wrong count makes."""


def joint_cases() -> list[tuple[Entry | None, str]]:
    """The detectors' own losses (None), and the methods that do not depend on how a batch is divided.

    SMOKE's box loss is a sum over the images of a process, as published, and so depends on it.
    """
    methods = [
        (entry, detector)
        for entry in CATALOG
        for detector in entry.detectors
        if entry.joint and detector in ("BEVFormer", "PGD")
    ]
    return [(None, "BEVFormer"), (None, "PGD"), (None, NUSCENES), *methods]


def loss_and_gradient(entry: Entry | None, detector: str, *seeds: int) -> tuple[Tensor, Tensor]:
    """The sum of the losses of a batch, and its gradient on all that is trained, in float64."""
    if entry is None:
        return _detection(detector, *seeds)
    model = build_pair(
        detector,
        entry.method,
        student_width=entry.student_width,
        options=entry.options,
        **entry.settings,
    )
    for detector_of_pair in (model, *model.teachers):
        detector_of_pair.double()
    batch = as_float64(make_batch(detector, *seeds))
    torch.manual_seed(0)
    with float64_twin():
        loss = torch.stack(list(distill_losses(model, batch).values())).sum()
        loss.backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in trained]
        return loss.detach(), torch.cat(gradients)


def _detection(detector: str, *seeds: int) -> tuple[Tensor, Tensor]:
    if detector == NUSCENES:
        torch.manual_seed(2)
        model = build_model(small_cfg("PGD", 8, nuscenes=True))
        batch = [make_image(seed, nuscenes=True) for seed in seeds]
    else:
        model, batch = build_detector(detector, 8, 2), make_batch(detector, *seeds)
    model, batch = model.double().train(), as_float64(batch)
    torch.manual_seed(0)
    with float64_twin(), EventStorage():
        loss = torch.stack(list(model(batch).values())).sum()
        loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return loss.detach(), torch.cat(gradients)


def in_processes(folder: Path, seeds: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Runs a process for each seed, forked from this one.

    Returns:
        Loss and gradient of each of the ``joint_cases``, averaged over the processes.
    """
    start_processes(_forked, (folder, seeds), nprocs=len(seeds), start_method="fork")
    return torch.load(folder / "found.pt")


def compare(folder: Path, seeds: list[int]) -> dict[str, list[str]]:
    """How each case in several processes differs from one process."""
    folder.mkdir(parents=True)
    found = in_processes(folder, seeds)
    return {
        f"{entry or 'detection losses'}, {detector}": _differences(
            pair, loss_and_gradient(entry, detector, *seeds)
        )
        for (entry, detector), pair in zip(joint_cases(), found, strict=True)
    }


def _differences(found: tuple[Tensor, Tensor], joint: tuple[Tensor, Tensor]) -> list[str]:
    errors = [((a - b).norm() / b.norm().clamp(min=1e-30)).item() for a, b in zip(found, joint, strict=True)]
    return [
        f"{name} differs by {error:.1e}"
        for name, error in zip(("loss", "gradient"), errors, strict=True)
        if not error <= RELATIVE
    ]


def _forked(rank: int, folder: Path, seeds: Sequence[int]) -> None:
    torch.set_num_threads(1)  # the threads of the parent are not forked: an op would wait for them for ever
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=len(seeds),
        timeout=timedelta(seconds=PROGRAM_SECONDS),
    )
    comm.create_local_process_group(len(seeds))
    found = []
    for entry, detector in joint_cases():
        loss, gradient = loss_and_gradient(entry, detector, seeds[rank])
        for tensor in (loss, gradient):
            dist.all_reduce(tensor)
            tensor /= len(seeds)
        found.append((loss, gradient))
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()
