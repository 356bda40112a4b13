"""One process of the job that test_ranks.py starts: losses of dense heads of one image of a batch of two."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

from bevkd2.distill import Distiller
from tests.distill.methods.harness import build_pair, make_batch

METHODS = (
    ("DeFeat", {}),
    ("GID", {"LEAST_SIDE": 0.0, "RELATION_WEIGHT": 0.0}),  # a relation is one within a process
    ("TAR", {}),
)
_LOSS, _GRADIENT = 1e-6, 1e-4


def losses_and_gradient(model: Distiller, seeds: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
    """The method's losses by name, and the gradient of their sum on the student."""
    model.eval()  # statistics of the batch are no matter of the methods
    model.training = True
    found = {key: loss for key, loss in model(make_batch("PGD", *seeds)).items() if "distill" in key}
    model.zero_grad()
    sum(found.values()).backward()
    gradients = [p.grad.flatten() for p in model.student.parameters() if p.grad is not None]
    return {key: loss.detach() for key, loss in found.items()}, torch.cat(gradients)


def main() -> None:
    models = {name: build_pair("PGD", name, **settings) for name, settings in METHODS}
    joint = {name: losses_and_gradient(model, (1, 2)) for name, model in models.items()}
    dist.init_process_group("gloo")
    for name, model in models.items():
        losses, gradient = losses_and_gradient(model, (1 + dist.get_rank(),))
        for key, expected in joint[name][0].items():
            mean = losses[key].clone()
            dist.all_reduce(mean)
            gap = float((mean / 2 - expected).abs())
            assert gap <= _LOSS * max(1.0, float(expected.abs())), (key, float(mean / 2), float(expected))
        dist.all_reduce(gradient)
        expected = joint[name][1]
        gap = float((gradient / 2 - expected).abs().max() / expected.abs().max())
        assert gap <= _GRADIENT, (name, gap)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
