"""What a dense monocular head put out at its positive locations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from bevkd2.modeling.mono.depth import depth_from_bins, fuse_depth
from bevkd2.modeling.mono.fcos3d.outputs import DenseOutputs
from bevkd2.modeling.mono.fcos3d.targets import DenseTargets
from bevkd2.modeling.mono.grid import flatten_levels


@dataclasses.dataclass
class PositiveOutputs:
    """The maps of :class:`DenseOutputs` at P locations, in float32 at least."""

    boxes: Tensor
    """(P, 7 or 9)."""
    depth: Tensor
    """(P,) metres: the fused depth, or the direct one where the head has no depth bins."""
    direction: Tensor
    """(P, 2)."""
    centerness: Tensor
    """(P,)."""
    uncertainty: Tensor | None
    """(P,)."""
    keypoints: Tensor | None
    """(P, 16)."""
    boxes2d: Tensor | None
    """(P, 4)."""
    attributes: Tensor | None
    """(P, attributes)."""


def full_precision(values: Tensor) -> Tensor:
    """float32, or double where it is double already."""
    return values if values.dtype == torch.float64 else values.float()


def outputs_at(
    outputs: DenseOutputs, targets: DenseTargets, fuse_lambda: Tensor | None, depth_bin_size: float
) -> PositiveOutputs:
    """Picks the positive locations.

    Args:
        outputs: the head's maps.
        targets: says which locations are positive.
        fuse_lambda: scalar of the depths' fusion; needed where ``outputs`` has depth bins.
        depth_bin_size: metres between bins.

    Returns:
        The maps' values; where nothing is positive, empty tensors that depend on the maps.
    """

    def pick(maps: Sequence[Tensor]) -> Tensor:
        return full_precision(flatten_levels(maps)[targets.images, targets.locations])

    def pick_optional(maps: Sequence[Tensor] | None) -> Tensor | None:
        return None if maps is None else pick(maps)

    boxes = pick(outputs.boxes)
    depth = boxes[:, 2]
    if outputs.depth_bins is not None:
        assert fuse_lambda is not None, "the head's fuse_lambda is needed to fuse its depths"
        depth = fuse_depth(depth, depth_from_bins(pick(outputs.depth_bins), depth_bin_size), fuse_lambda)
    uncertainty = pick_optional(outputs.uncertainty)
    return PositiveOutputs(
        boxes=boxes,
        depth=depth,
        direction=pick(outputs.direction),
        centerness=pick(outputs.centerness)[:, 0],
        uncertainty=None if uncertainty is None else uncertainty[:, 0],
        keypoints=pick_optional(outputs.keypoints),
        boxes2d=pick_optional(outputs.boxes2d),
        attributes=pick_optional(outputs.attributes),
    )
