"""SOLVER.ACCUMULATION_STEPS: a batch in parts, and which losses are those of the whole batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bevkd2.d2 import build_model
from bevkd2.engine import DistillTrainer, build_trainer
from bevkd2.engine.trainer import split_batch
from tests.distill.methods.harness import build_pair, make_batch
from tests.engine.toys import ToyDetector, build_toy_loader, flat, toy_cfg
from tests.tolerance import as_float64, float64_twin

RELATIVE = 1e-9  # far above the rounding of float64, far below what a wrong share makes
NO_DROPOUT = ("MODEL.BEVFORMER.DROPOUT", 0.0)

CASES = {
    "BEVFormer, spatial attention": ("BEVFormer", "SpatialAttention", {"student_width": 16}),
    "PGD, depth-guided": ("PGD", "DepthGuidedPrediction", {}),
    "SMOKE, depth-guided": ("SMOKE", "DepthGuidedPrediction", {}),
}
# Sums over the images of a part, as published, not means (MODEL.SMOKE.LOSS.BOX_WEIGHT).
SUMS = {"loss_orientation", "loss_size", "loss_location"}
# Of images with different numbers of positive locations: each part divides by its own number.
BY_COUNT = {"PGD": "all", "SMOKE": {"loss_distill_depth_guided"}}


def one_step(case: str, batch: list[dict[str, Any]], parts: int) -> tuple[dict[str, float], Tensor]:
    """The logged losses of a trainer's step, and the gradient on all that is trained, in float64."""
    detector, method, settings = CASES[case]
    model = build_pair(detector, method, **settings)
    for one in (model, *model.teachers):
        one.double()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with float64_twin():
        trainer = DistillTrainer(
            model, lambda start: [as_float64(batch)], optimizer, accumulation_steps=parts
        )
        trainer.train(0, 1)
    latest = {name: value for name, (value, _) in trainer.storage.latest().items()}
    gradients = [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()]
    return {name: value for name, value in latest.items() if name.startswith("loss_")}, torch.cat(gradients)


def with_equal_counts(detector: str) -> list[dict[str, Any]]:
    """Two samples with other images and the same objects, so that both parts count the same."""
    first, second = make_batch(detector, 1, 2)
    if detector == "BEVFormer":
        return [first, second]  # as many objects in every sample, and all queries and cells count
    return [first, {**first, "image": second["image"]}]


@pytest.mark.filterwarnings("ignore:CPU Autocast", "ignore:In CPU autocast")
@pytest.mark.parametrize("case", CASES)
def test_parts_of_equal_counts_are_the_whole_batch(case: str) -> None:
    batch = with_equal_counts(CASES[case][0])
    whole, whole_gradient = one_step(case, batch, parts=1)
    parts, gradient = one_step(case, batch, parts=2)
    assert parts.keys() == whole.keys()
    for name in whole:
        expected = whole[name] / 2 if CASES[case][0] == "SMOKE" and name in SUMS else whole[name]
        assert parts[name] == pytest.approx(expected, rel=RELATIVE), name
    if CASES[case][0] != "SMOKE":
        assert (gradient - whole_gradient).norm() <= RELATIVE * whole_gradient.norm() > 0


@pytest.mark.filterwarnings("ignore:CPU Autocast", "ignore:In CPU autocast")
@pytest.mark.parametrize("case", ["PGD, depth-guided", "SMOKE, depth-guided"])
def test_parts_divide_by_their_own_counts(case: str) -> None:
    detector = CASES[case][0]
    batch = make_batch(detector, 1, 2)
    whole, parts = (one_step(case, batch, count)[0] for count in (1, 2))
    unequal = {name for name in whole if parts[name] != pytest.approx(whole[name], rel=RELATIVE)}
    expected = BY_COUNT[detector]
    assert unequal == (set(whole) if expected == "all" else expected | SUMS)


def trained(folder: Path, *options: Any) -> nn.Module:
    cfg = toy_cfg(folder, *NO_DROPOUT, *options)
    torch.manual_seed(0)
    trainer = build_trainer(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=lambda *_: {})
    trainer.train(0, 6)
    return trainer.model


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ((), 1e-5),
        (("SOLVER.OPTIMIZER", "SGD"), 1e-6),
        (("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float16"), 1e-3),
    ],
)
def test_a_training_in_parts_is_that_of_whole_batches(
    tmp_path: Path, options: tuple[Any, ...], bound: float
) -> None:
    whole = trained(tmp_path / "whole", *options)
    parts = trained(tmp_path / "parts", *options, "SOLVER.ACCUMULATION_STEPS", 2)
    torch.manual_seed(0)
    first = flat(build_model(toy_cfg(tmp_path, *NO_DROPOUT, *options)))
    assert (flat(whole) - first).abs().max() > 20 * bound
    torch.testing.assert_close(flat(parts), flat(whole), rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("length", "parts", "sizes"), [(4, 1, [4]), (4, 2, [2, 2]), (5, 2, [3, 2]), (1, 3, [1])]
)
def test_split(length: int, parts: int, sizes: list[int]) -> None:
    split = split_batch(list(range(length)), parts)
    assert [len(part) for part in split] == sizes and [x for part in split for x in part] == list(
        range(length)
    )


@pytest.mark.parametrize(("batch", "parts"), [(4, 3), (2, 4), (4, 0)])
def test_a_batch_that_cannot_be_divided_is_named(tmp_path: Path, batch: int, parts: int) -> None:
    cfg = toy_cfg(tmp_path, "SOLVER.IMS_PER_BATCH", batch, "SOLVER.ACCUMULATION_STEPS", parts)
    with pytest.raises(ValueError, match=r"SOLVER\.ACCUMULATION_STEPS"):
        build_trainer(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=lambda *_: {})


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_processes_exchange_gradients_once_per_step(tmp_path: Path, process_group: None) -> None:
    cfg = toy_cfg(tmp_path, *NO_DROPOUT)
    gradients, exchanged = [], []
    for parts in (1, 4):
        torch.manual_seed(0)
        model = DistributedDataParallel(ToyDetector(cfg))

        def note(state, bucket):  # torch reads annotations here, and not as text
            exchanged.append(bucket.buffer().clone())
            done: torch.futures.Future[Tensor] = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        model.register_comm_hook(None, note)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        trainer = DistillTrainer(
            model, lambda start: build_toy_loader(cfg, start), optimizer, accumulation_steps=parts
        )
        trainer.train(0, 1)
        gradients.append(exchanged[-1])
    assert len(exchanged) == 2  # one a training of one step, whatever the number of parts
    torch.testing.assert_close(gradients[0], gradients[1])
