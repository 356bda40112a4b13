"""Knowledge and targets made by hand, for methods that are tested without a detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bevkd2.d2 import ShapeSpec
from bevkd2.distill import DISTILL_REGISTRY
from bevkd2.modeling.detector import BEVShape, FeatureShapes
from bevkd2.modeling.knowledge import BEVKnowledge, Knowledge, MonoKnowledge
from bevkd2.modeling.mono.grid import DenseGrid
from bevkd2.modeling.mono.inputs import MonoTargets
from bevkd2.structures import CameraBoxes3D
from tests.distill.methods.harness import method_node

STRIDE = 8
NO_SHAPES = FeatureShapes(backbone={}, fpn=[])


def build_method(
    method: str, student: FeatureShapes = NO_SHAPES, teacher: FeatureShapes | None = None, **settings: Any
) -> Any:
    """A method with its own parameters in float64; the teacher's shapes are the student's unless given."""
    cls = DISTILL_REGISTRY.get(method)
    return cls(method_node(method, **settings), student, student if teacher is None else teacher).double()


def fpn_shapes(channels: int, levels: int = 1) -> FeatureShapes:
    """Levels of stride 8, 16, ..."""
    fpn = [ShapeSpec(channels=channels, stride=STRIDE * 2**level) for level in range(levels)]
    return FeatureShapes(backbone={}, fpn=fpn)


def fpn_knowledge(levels: Sequence[Tensor]) -> Knowledge:
    """Features of images without padding."""
    first = levels[0]
    size = torch.tensor([STRIDE * float(first.shape[-2]), STRIDE * float(first.shape[-1])])
    strides = [STRIDE * 2**level for level in range(len(levels))]
    return Knowledge(fpn=list(levels), fpn_strides=strides, image_sizes=size.expand(len(first), 2))


def bev_shapes(channels: int, grid: tuple[int, int], layers: int = 1) -> FeatureShapes:
    """A bird's-eye view."""
    return FeatureShapes(backbone={}, fpn=[], bev=BEVShape(channels, grid, layers))


def bev_knowledge(embed: Tensor, grid: tuple[int, int], **fields: Any) -> BEVKnowledge:
    """A bird's-eye view (B, H*W, C) of cells of 1 m about the origin."""
    rows, columns = grid
    return BEVKnowledge(
        bev_embed=embed,
        bev_shape=grid,
        bev_range=(-columns / 2, -rows / 2, columns / 2, rows / 2),
        **fields,
    )


def dense_knowledge(logits: Tensor, width: int | None = None) -> MonoKnowledge:
    """Predictions on one level of one row; cells beyond ``width`` pixels are padding."""
    batch, locations, _ = logits.shape
    width = STRIDE * locations if width is None else width
    return MonoKnowledge(
        logits=logits,
        grid=DenseGrid.of_levels([(1, locations)], [STRIDE], "cpu"),
        fpn_strides=[STRIDE],
        image_sizes=torch.tensor([[float(STRIDE), float(width)]]).expand(batch, 2),
    )


def dense_targets(assigned: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> MonoTargets:
    """The objects of locations on one row, and the classes of the objects."""
    sizes = torch.tensor([[float(STRIDE), float(STRIDE * len(assigned[0]))]]).expand(len(assigned), 2)
    return MonoTargets(
        boxes=[CameraBoxes3D.empty()] * len(assigned),
        labels=[torch.tensor(of_image, dtype=torch.int64) for of_image in labels],
        boxes2d=[],
        centers2d=[],
        depths=[],
        attributes=None,
        image_sizes=sizes,
        cam2img=torch.eye(4),
        affine_augmented=torch.zeros(len(assigned), dtype=torch.bool),
        grid=DenseGrid.of_levels([(1, len(assigned[0]))], [STRIDE], "cpu"),
        assigned=torch.tensor(assigned),
    )


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Reproducible numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    """The loss's gradient at the student's features or logits, which must be finite."""
    (found,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(loss) and torch.isfinite(found).all()
    return found
