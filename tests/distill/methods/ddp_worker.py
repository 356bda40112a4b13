"""One process of the job that test_ddp.py starts: gradients of every method on this process's samples."""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist

from bevkd2.d2 import comm
from tests.distill.methods.catalog import CATALOG, Entry
from tests.distill.methods.harness import build_pair, distill_losses, make_batch
from tests.tolerance import as_float64, float64_twin


def joint_cases() -> list[tuple[Entry, str]]:
    """The entries whose loss does not depend on how a batch is divided, on BEVFormer and on PGD."""
    return [
        (entry, detector)
        for entry in CATALOG
        for detector in entry.detectors
        if entry.joint and detector in ("BEVFormer", "PGD")
    ]


def loss_and_gradient(entry: Entry, detector: str, *seeds: int) -> tuple[Tensor, Tensor]:
    """The sum of the method's losses of a batch, and its gradient on all that is trained, in float64."""
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


def main(folder: Path, seeds: list[int]) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    comm.create_local_process_group(2)
    found = []
    for entry, detector in joint_cases():
        loss, gradient = loss_and_gradient(entry, detector, seeds[rank])
        for tensor in (loss, gradient):
            dist.all_reduce(tensor)
            tensor /= 2
        found.append((loss, gradient))
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]])
