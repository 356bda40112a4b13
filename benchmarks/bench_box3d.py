#!/usr/bin/env python3
"""Compares overlaps and suppression of rotated boxes with shapely, eager torch and torchvision.

    python -m benchmarks.bench_box3d [--quick] [--threads N] [--cases NMS] [--device cuda]

Boxes have the sizes of cars and pedestrians, in float64. A scene is 100 m wide, and most of its pairs are far
apart; a heap is 6 m wide, and most of its pairs overlap. The polygons of shapely are made before, and one
call intersects all pairs; eager torch is tests/ops/references/boxes.py. torchvision suppresses boxes without
rotation: there our op gets the same boxes. A case leaves out the baselines that cannot compute it: shapely
supports neither heights nor CUDA.
"""

import dataclasses
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from benchmarks.bench import main
from benchmarks.harness import Contest, Contestant, Options, Watch
from benchmarks.references import (
    box3d_iou_reference,
    rotated_intersection_reference,
    rotated_iou_reference,
    rotated_nms_reference,
)
from bevkd2.ops import batched_rotated_nms, box3d_iou, rotated_intersection, rotated_iou

EAGER, SHAPELY, TORCHVISION, PART = "eager torch", "shapely", "torchvision", "forward"
SCENE, HEAP = 100.0, 6.0  # metres
THRESHOLD = 0.2
Op = Callable[..., Tensor]


@dataclasses.dataclass(frozen=True)
class Case:
    """A case: overlaps of n boxes with n others, or the suppression of n boxes."""

    n: int
    extent: float
    ours: Op
    eager: Op | None = None
    columns: int = 5
    turned: bool = True
    labels: int = 0
    """0: overlaps; else suppression of as many classes."""

    def baselines(self) -> list[str]:
        """Returns the baselines on the CPU."""
        shapely_can = self.labels == 0 and self.columns == 5
        found = [SHAPELY] if shapely_can else []
        found += [EAGER] if self.eager is not None else []
        return found + ([] if self.turned else [TORCHVISION])


CASES = {
    "intersection, scene": Case(200, SCENE, rotated_intersection, rotated_intersection_reference),
    "intersection, heap": Case(100, HEAP, rotated_intersection, rotated_intersection_reference),
    "IoU, scene": Case(200, SCENE, rotated_iou, rotated_iou_reference),
    "3D IoU, scene": Case(200, SCENE, box3d_iou, box3d_iou_reference, columns=7),
    "NMS, 200 boxes": Case(200, SCENE, batched_rotated_nms, rotated_nms_reference, labels=3),
    "NMS, 1000 unrotated": Case(1000, SCENE, batched_rotated_nms, turned=False, labels=3),
    "NMS, 10000 unrotated": Case(10000, SCENE, batched_rotated_nms, turned=False, labels=3),
}


def random_boxes(case: Case, n: int, seed: int) -> Tensor:
    """Returns (n, 5 or 7) boxes."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand((n, case.columns), generator=generator, dtype=torch.float64)
    dims = case.columns // 2
    boxes[:, :dims] *= torch.tensor([case.extent, case.extent, 2.0], dtype=torch.float64)[:dims]
    boxes[:, dims : 2 * dims] = 0.6 + 4 * boxes[:, dims : 2 * dims]
    boxes[:, -1] *= 2 * torch.pi if case.turned else 0
    return boxes


def polygons(boxes: Tensor) -> np.ndarray:
    """Returns the shapely polygons of planar boxes."""
    import shapely  # here and below: it may be missing on a machine with a GPU

    x, y, length, width, angle = boxes.T.numpy()
    along = 0.5 * length * np.stack([np.cos(angle), np.sin(angle)])
    across = 0.5 * width * np.stack([-np.sin(angle), np.cos(angle)])
    corners = np.stack([along + across, across - along, -along - across, along - across])
    return shapely.polygons((corners + np.stack([x, y])).transpose(2, 0, 1))


def contests(options: Options) -> list[Contest]:
    """Returns all cases."""
    return [_contest(name, case, options) for name, case in CASES.items()]


def _contest(name: str, case: Case, options: Options) -> Contest:
    n = min(case.n, 20) if options.quick else case.n

    def make() -> list[Contestant]:
        if case.labels:
            return _suppression(case, n, options.device)
        return _overlaps(case, n, options.device)

    measured = options.device == "cpu" and not options.quick
    return Contest(
        family="Rotated boxes",
        case=name,
        dtype="float64",
        make=make,
        required={(baseline, PART): 1.0 for baseline in case.baselines()} if measured else {},
        tolerance=1e-6,
        memory=case.n <= 1000,
    )


def _overlaps(case: Case, n: int, device: str) -> list[Contestant]:
    boxes = random_boxes(case, n, 0), random_boxes(case, n, 1)
    there = [rows.to(device) for rows in boxes]
    found = [_contestant("bevkd2", case.ours, *there)]
    if device == "cpu" and SHAPELY in case.baselines():
        shapes = [polygons(rows) for rows in boxes]
        areas = [rows[:, 2:4].prod(1) for rows in boxes]
        found.append(_contestant(SHAPELY, _with_shapely, case, *shapes, *areas))
    if case.eager is not None:
        found.append(_contestant(EAGER, case.eager, *there))
    return found


def _with_shapely(case: Case, a: np.ndarray, b: np.ndarray, size_a: Tensor, size_b: Tensor) -> Tensor:
    import shapely

    shared = torch.from_numpy(shapely.area(shapely.intersection(a[:, None], b[None])))
    return shared if case.ours is rotated_intersection else shared / (size_a[:, None] + size_b - shared)


def _suppression(case: Case, n: int, device: str) -> list[Contestant]:
    boxes = random_boxes(case, n, 0)
    generator = torch.Generator().manual_seed(2)
    scores = torch.rand(n, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, case.labels, (n,), generator=generator)
    boxes, scores, labels = (tensor.to(device) for tensor in (boxes, scores, labels))
    found = [_contestant("bevkd2", case.ours, boxes, scores, labels, THRESHOLD)]
    if case.eager is not None:
        found.append(_contestant(EAGER, case.eager, boxes, scores, labels, THRESHOLD))
    if not case.turned:
        half = boxes[:, 2:4] / 2
        sides = torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], dim=1)
        found.append(_contestant(TORCHVISION, batched_nms, sides, scores, labels, THRESHOLD))
    return found


def _contestant(name: str, op: Op, *arguments: object) -> Contestant:
    def run(watch: Watch) -> Tensor:
        return watch(PART, lambda: op(*arguments))

    return Contestant(name, run)


if __name__ == "__main__":
    sys.exit(main(("bench_box3d",)))
