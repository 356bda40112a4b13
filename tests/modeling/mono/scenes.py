"""Small annotated batches and random outputs of a dense head for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from bevkd2.modeling.mono.assign import assign_locations
from bevkd2.modeling.mono.fcos3d.head import DenseOutputs
from bevkd2.modeling.mono.grid import DenseGrid
from bevkd2.modeling.mono.inputs import MonoTargets
from bevkd2.structures import CameraBoxes3D, project_points, projected_boxes2d

IMAGE_SIZE = (64, 96)
STRIDES = [8, 16]
RANGES = [(-1.0, 24.0), (24.0, 1e8)]
GRID = DenseGrid.of_image(IMAGE_SIZE, STRIDES, "cpu")
SHAPES = GRID.shapes
# x, y, z of the gravity centre, l, w, h, ry, vx, vz: two near objects and a far one.
NEAR = [-1.0, 0.4, 10.0, 3.9, 1.6, 1.5, 0.3, 1.0, -2.0]
LARGE = [1.5, 0.2, 7.0, 6.0, 2.2, 3.0, 0.1, 0.5, 4.0]
FAR = [3.0, -0.5, 20.0, 0.8, 0.6, 1.7, 2.0, 0.0, 0.3]


def camera(dtype: torch.dtype = torch.float32, translation: bool = True) -> Tensor:
    """A calibration, with a translation as KITTI's or without as nuScenes'."""
    matrix = torch.eye(4, dtype=dtype)
    matrix[0, 0] = matrix[1, 1] = 70.0
    matrix[:2, 2] = torch.tensor([48.0, 32.0])
    if translation:
        matrix[:3, 3] = torch.tensor([4.4, 0.2, 0.003])
    return matrix


def annotations(
    images: Sequence[Sequence[Sequence[float]]],
    columns: int = 9,
    attributes: bool = True,
    dtype: torch.dtype = torch.float32,
    translation: bool = True,
) -> MonoTargets:
    """Targets of one image for every list of boxes, assigned to the levels of this module."""
    cam2img = camera(dtype, translation)
    boxes = [CameraBoxes3D(torch.tensor(rows, dtype=dtype).reshape(-1, 9)[:, :columns]) for rows in images]
    projected = [project_points(b.center, cam2img) for b in boxes]
    targets = MonoTargets(
        boxes=boxes,
        labels=[torch.arange(len(b)) % 3 for b in boxes],
        boxes2d=[projected_boxes2d(b, cam2img, IMAGE_SIZE) for b in boxes],
        centers2d=[uv for uv, _ in projected],
        depths=[depth for _, depth in projected],
        attributes=[torch.arange(len(b)) for b in boxes] if attributes else None,
        image_sizes=torch.tensor([IMAGE_SIZE] * len(images), dtype=torch.float32),
        cam2img=cam2img.expand(len(images), 4, 4),
        grid=GRID,
        affine_augmented=torch.zeros(len(images), dtype=torch.bool),
    )
    targets.assigned = assign_locations(targets, RANGES)
    return targets


def random_outputs(
    batch: int, *, kitti: bool, dtype: torch.dtype = torch.float32, seed: int = 0
) -> DenseOutputs:
    """Plausible maps, as leaves: of PGD's KITTI setting, or of its nuScenes setting."""
    generator = torch.Generator().manual_seed(seed)

    def maps(channels: int, mean: Sequence[float] = (0.0,), spread: float = 0.5) -> list[Tensor]:
        center = torch.tensor(mean, dtype=dtype)[:, None, None]
        levels = [torch.randn(batch, channels, *shape, generator=generator, dtype=dtype) for shape in SHAPES]
        return [(center + spread * level).requires_grad_() for level in levels]

    return DenseOutputs(
        logits=maps(3),
        boxes=maps(7 if kitti else 9, [0, 0, 12, 4, 1.6, 1.8, 0.5] + ([] if kitti else [0, 0]), 0.3),
        direction=maps(2),
        centerness=maps(1),
        depth_bins=maps(8),
        uncertainty=maps(1) if kitti else None,
        keypoints=maps(16) if kitti else None,
        boxes2d=maps(4, [1.5], 0.2),
        attributes=None if kitti else maps(9),
    )


def maps_of(outputs: DenseOutputs) -> dict[str, list[Tensor]]:
    """The lists of maps that there are, by name."""
    fields = {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    return {name: maps for name, maps in fields.items() if maps is not None}


def leaves(outputs: DenseOutputs) -> dict[str, Tensor]:
    """All maps by name and level."""
    return {
        f"{name}/{level}": tensor
        for name, levels in maps_of(outputs).items()
        for level, tensor in enumerate(levels)
    }
