"""A method of features on random maps, without a detector."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import bevkd2.distill  # noqa: F401  (registers)
from bevkd2.d2 import ShapeSpec
from bevkd2.distill import DISTILL_REGISTRY
from bevkd2.modeling import Knowledge
from bevkd2.modeling.detector import DecoderShape, FeatureShapes
from tests.distill.methods.harness import method_node

STRIDES, SHAPES = (8, 16), ((6, 8), (3, 4))
SIZE = (48.0, 64.0)
BOXES = ((9.0, 5.0, 40.0, 30.0), (33.0, 20.0, 60.0, 46.0), (3.0, 30.0, 12.0, 38.0))


@dataclasses.dataclass
class ImageTargets:
    """Targets with 2D boxes alone."""

    boxes2d: list[Tensor]

    def image_boxes(self) -> list[Tensor]:
        """Returns (n, 4) of each image."""
        return self.boxes2d


def feature_shapes(channels: int) -> FeatureShapes:
    """Of a neck of two levels, of a detector of object queries: features are all that it shares."""
    return FeatureShapes(
        backbone={},
        fpn=[ShapeSpec(channels=channels, stride=stride) for stride in STRIDES],
        decoder=DecoderShape(1, 1, 1),
    )


def build(name: str, channels: int = 4, teacher_channels: int = 6, **settings: Any) -> Any:
    """A method with reproducible weights, in double precision."""
    torch.manual_seed(0)
    cls = DISTILL_REGISTRY.get(name)
    return cls(
        method_node(name, **settings), feature_shapes(channels), feature_shapes(teacher_channels)
    ).double()


def knowledge(
    channels: int, seed: int, rows: int = 2, sizes: Sequence[tuple[float, float]] = ()
) -> Knowledge:
    """Random maps that collect gradients; ``sizes`` are the images' without padding."""
    generator = torch.Generator().manual_seed(seed)
    maps = [
        torch.randn(rows, channels, *shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in SHAPES
    ]
    given = list(sizes) or [SIZE] * rows
    return Knowledge(fpn=maps, fpn_strides=list(STRIDES), image_sizes=torch.tensor(given))


def targets(rows: int = 2, boxes: Sequence[Sequence[float]] = BOXES) -> ImageTargets:
    """The boxes in the first image, the last of them in the others."""
    first = torch.tensor(boxes).reshape(-1, 4)
    return ImageTargets([first, *[first[-1:]] * (rows - 1)])


def total(losses: Tensor | dict[str, Tensor]) -> Tensor:
    """The sum of a method's losses."""
    return losses if isinstance(losses, Tensor) else sum(losses.values(), torch.zeros(()))
