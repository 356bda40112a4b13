"""Gradients of every method in several processes, each on its own sample."""

import dataclasses
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.multiprocessing.spawn import start_processes

from bevkd2.d2 import EventStorage, build_model, comm
from bevkd2.distill import Distiller
from bevkd2.engine import create_ddp_model
from bevkd2.modeling.mono import SMOKE
from tests.distill.methods.catalog import CATALOG, Entry
from tests.distill.methods.harness import build_detector, build_pair, make_batch
from tests.limits import PROGRAM_SECONDS
from tests.modeling.mono.pgd_model import make_image, small_cfg
from tests.tolerance import as_float64, float64_twin

NUSCENES = "PGD with velocities and attributes"
RELATIVE = 1e-9
"""Far above the rounding of float64, and far below what a wrong count makes."""
WRAPPED = {"BEVFormer": "DeFeat", "PGD": "DKD", "SMOKE": "DKD"}
"""The method of each detector that runs through DistributedDataParallel; its loss is divided by a count."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is computed in one process and in several."""

    detector: str
    """Of ``harness.DETECTORS``, or ``NUSCENES``."""
    entry: Entry | None = None
    """The method; None: the detector's own losses."""
    wrapped: bool = False
    """All losses of the distillation, the detector's too, and gradients that DistributedDataParallel
    averages. Else the losses of ``entry`` alone, and gradients that are averaged here."""

    @property
    def settings(self) -> dict[str, Any]:
        """Keys of the method's node that differ from the defaults."""
        if self.entry is None:
            return {}
        return {**self.entry.settings, **(self.entry.joint_settings or {})}

    def __str__(self) -> str:
        """Returns the test's identifier."""
        if self.entry is None:
            return f"detection losses, {self.detector}"
        shown = str(dataclasses.replace(self.entry, settings=self.settings))
        return f"{shown}, {self.detector}" + (", DistributedDataParallel" if self.wrapped else "")


def joint_cases() -> list[Case]:
    """The detectors' own losses, every method that does not depend on how a batch is divided, or has settings
    with which it does not, and a whole distillation of each detector.

    SMOKE's box losses, published as sums over the images of a process, are multiplied by the number of
    processes: the mean of them over the processes is then the sum of one process with the joint batch.
    """
    methods = [
        Case(detector, entry)
        for entry in CATALOG
        for detector in entry.detectors
        if not entry.divided or entry.joint_settings is not None
    ]
    wrapped = [
        Case(detector, next(entry for entry in CATALOG if entry.method == method), wrapped=True)
        for detector, method in WRAPPED.items()
    ]
    return [*(Case(name) for name in ("BEVFormer", "PGD", NUSCENES, "SMOKE")), *methods, *wrapped]


def loss_and_gradient(case: Case, *seeds: int) -> tuple[Tensor, Tensor]:
    """The sum of the losses of a batch, and its gradient on all that is trained, in float64.

    Every process draws the same random numbers, those of seed 0: what a method draws once for a batch, such
    as the queries of KDDETR, is then the same in all.
    """
    model = _model(case).double().train()
    _undivided(model)
    batch = as_float64(
        [make_image(seed, nuscenes=True) for seed in seeds]
        if case.detector == NUSCENES
        else make_batch(case.detector, *seeds)
    )
    run = create_ddp_model(model) if case.wrapped else model
    torch.manual_seed(0)
    with float64_twin(), EventStorage():
        losses = run(batch)
        if case.entry is not None and not case.wrapped:
            losses = {key: value for key, value in losses.items() if key.startswith("loss_distill_")}
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in trained]
        return loss.detach(), torch.cat(gradients)


def _model(case: Case) -> Any:
    """A detector, or a Distiller with the method of the case."""
    if case.detector == NUSCENES:
        torch.manual_seed(2)
        return build_model(small_cfg("PGD", 8, nuscenes=True))
    if case.entry is None:
        return build_detector(case.detector, 8, 2)
    entry = case.entry
    model = build_pair(
        case.detector, entry.method, student_width=entry.student_width, options=entry.options, **case.settings
    )
    for teacher in model.teachers:
        teacher.double()
    return model


def _undivided(model: Any) -> None:
    """Fixes what depends on how a batch is divided: batch statistics of methods, and SMOKE's sums."""
    if isinstance(model, Distiller):
        for module in model.methods.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        model = model.student
    if isinstance(model, SMOKE):
        box = model.loss_weights.box * comm.get_world_size()
        model.loss_weights = dataclasses.replace(model.loss_weights, box=box)


def compare(folder: Path, seeds: list[int]) -> dict[str, list[str]]:
    """How each case in several processes differs from one process."""
    folder.mkdir(parents=True)
    found = in_processes(folder, seeds)
    return {
        str(case): _differences(pair, loss_and_gradient(case, *seeds))
        for case, pair in zip(joint_cases(), found, strict=True)
    }


def in_processes(folder: Path, seeds: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Runs a process for each seed, forked from this one.

    Returns:
        Loss and gradient of each of the ``joint_cases``, averaged over the processes.
    """
    start_processes(_forked, (folder, seeds), nprocs=len(seeds), start_method="fork")
    return torch.load(folder / "found.pt")


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
    for case in joint_cases():
        loss, gradient = loss_and_gradient(case, seeds[rank])
        for tensor in (loss,) if case.wrapped else (loss, gradient):
            dist.all_reduce(tensor)
            tensor /= len(seeds)
        found.append((loss, gradient))
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()
