"""The maps that the head of FCOS3D and PGD puts out."""

from __future__ import annotations

import dataclasses

from torch import Tensor


@dataclasses.dataclass
class DenseOutputs:
    """Lists with one map a level, finest first; B images, h x w cells, K classes.

    A cell (x, y) of a level with stride s stands at the pixel (x * s + s // 2, y * s + s // 2). Distances in
    the image plane are in strides of the level.
    """

    logits: list[Tensor]
    """(B, K, h, w) before the sigmoid."""
    boxes: list[Tensor]
    """(B, 7 or 9, h, w): dx, dy (location minus projected centre), direct depth (m), length, height, width
    (m: the published order), local yaw (rad, modulo pi: ``direction`` tells the half), then vx, vz (m/s)."""
    direction: list[Tensor]
    """(B, 2, h, w) logits of the half turn that the yaw lies in."""
    centerness: list[Tensor]
    """(B, 1, h, w) logits."""
    depth_bins: list[Tensor] | None = None
    """(B, bins, h, w) logits of the depth distribution (PGD)."""
    uncertainty: list[Tensor] | None = None
    """(B, 1, h, w) log of the depth's scale (PGD on KITTI)."""
    keypoints: list[Tensor] | None = None
    """(B, 16, h, w) x, y of the eight projected corners minus the location, squashed by tanh: 1 is the finest
    level's longest distance, scaled with the stride (PGD on KITTI)."""
    boxes2d: list[Tensor] | None = None
    """(B, 4, h, w) distances to left, top, right, bottom of the 2D box, not negative (PGD)."""
    attributes: list[Tensor] | None = None
    """(B, 9, h, w) logits (nuScenes)."""
