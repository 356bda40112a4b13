"""Overlaps of rotated boxes in plain PyTorch.

The corners of the polygon that two boxes share are corners of one box inside the other, or crossings of their
edges: 24 candidates per pair, of which the true ones are sorted by angle around their mean. The layouts of
boxes are those of bevkd2/ops/box3d.py.
"""

import torch
from torch import Tensor

_TOLERANCE = 1e-9  # relative to the sizes: corners on an edge count as inside despite rounding


def rotated_intersection_reference(a: Tensor, b: Tensor) -> Tensor:
    """Computes the areas shared by planar boxes.

    Args:
        a: (N, 5) planar boxes, metres and radians.
        b: (M, 5) planar boxes.

    Returns:
        (N, M) square metres.
    """
    corners_a, corners_b, shape = _corners(a)[:, None], _corners(b)[None], (len(a), len(b), 4)
    crossings, crossed = _crossings(corners_a, corners_b)
    points = torch.cat([corners_a.expand(*shape, 2), corners_b.expand(*shape, 2), crossings], dim=2)
    in_b, in_a = _inside(corners_a, b[None]), _inside(corners_b, a[:, None])
    used = torch.cat([in_b.expand(shape), in_a.expand(shape), crossed], dim=2)
    return _polygon_area(points, used)


def rotated_iou_reference(a: Tensor, b: Tensor) -> Tensor:
    """Computes the intersection over union of planar boxes.

    Args:
        a: (N, 5) planar boxes, metres and radians.
        b: (M, 5) planar boxes.

    Returns:
        (N, M) in [0, 1].
    """
    return _over_union(rotated_intersection_reference(a, b), a[:, 2:4].prod(1), b[:, 2:4].prod(1))


def box3d_iou_reference(a: Tensor, b: Tensor) -> Tensor:
    """Computes the intersection over union of the volumes of upright 3D boxes.

    Args:
        a: (N, 7) boxes in the layout of ``Boxes3D``, metres and radians.
        b: (M, 7) boxes.

    Returns:
        (N, M) in [0, 1].
    """
    planar = [0, 1, 3, 4, 6]
    low_a, high_a = a[:, 2] - a[:, 5] / 2, a[:, 2] + a[:, 5] / 2
    low_b, high_b = b[:, 2] - b[:, 5] / 2, b[:, 2] + b[:, 5] / 2
    low, high = torch.maximum(low_a[:, None], low_b), torch.minimum(high_a[:, None], high_b)
    shared = rotated_intersection_reference(a[:, planar], b[:, planar]) * (high - low).clamp(min=0)
    return _over_union(shared, a[:, 3:6].prod(1), b[:, 3:6].prod(1))


def rotated_nms_reference(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, inclusive: bool = False
) -> Tensor:
    """Suppresses boxes greedily within labels, one after the other, from the matrix of all overlaps.

    Args:
        boxes: (N, 5) planar boxes.
        scores: (N,) floating point.
        labels: (N,) integers.
        iou_threshold: in [0, 1].
        inclusive: also suppress a box whose IoU equals the threshold.

    Returns:
        (K,) int64 indices of the boxes kept, by descending score; the lower index first if scores are equal.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, labels = boxes[order], labels[order]
    iou = rotated_iou_reference(boxes, boxes)
    over = (iou >= iou_threshold) if inclusive else (iou > iou_threshold)
    over &= labels[:, None] == labels
    gone = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for i in range(len(boxes)):
        if not gone[i]:
            gone[i + 1 :] |= over[i, i + 1 :]
    return order[~gone]


def _over_union(shared: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Returns shared / (a + b - shared) of sizes (N,) and (M,), and 0 if the union is empty."""
    united = a[:, None] + b - shared
    return torch.where(united > 0, shared / united, 0)


def _corners(boxes: Tensor) -> Tensor:
    """Returns the corners (N, 4, 2), counter-clockwise."""
    signs = boxes.new_tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    x, y = (signs * boxes[:, None, 2:4] / 2).unbind(-1)
    cos, sin = boxes[:, 4:].cos(), boxes[:, 4:].sin()
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1) + boxes[:, None, :2]


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Returns whether the corners of one box of each pair lie in the other, (N, M, 4) bool."""
    dx, dy = (points - boxes[..., None, :2]).unbind(-1)
    cos, sin = boxes[..., 4:].cos(), boxes[..., 4:].sin()
    half = boxes[..., 2:4] / 2 * (1 + _TOLERANCE)
    along, across = cos * dx + sin * dy, cos * dy - sin * dx
    return (along.abs() <= half[..., :1]) & (across.abs() <= half[..., 1:])


def _crossings(corners_a: Tensor, corners_b: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the points where the lines of edges cross, (N, M, 16, 2), and whether the edges do."""
    p, q = corners_a[:, :, :, None], corners_b[:, :, None]
    d = corners_a.roll(-1, dims=2)[:, :, :, None] - p
    e = corners_b.roll(-1, dims=2)[:, :, None] - q
    across = _cross(d, e)
    t, u = _cross(q - p, e) / across, _cross(q - p, d) / across  # not finite where edges are parallel
    crossed = (t >= 0) & (t <= 1) & (u >= 0) & (u <= 1)
    points = p + torch.where(crossed, t, 0)[..., None] * d
    return points.flatten(2, 3), crossed.flatten(2, 3)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """Returns the z component of the cross product of vectors (.., 2)."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _polygon_area(points: Tensor, used: Tensor) -> Tensor:
    """Returns the areas (N, M) of the convex polygons whose corners are the used points, in any order."""
    count = used.sum(-1)
    mean = (points * used[..., None]).sum(2) / count.clamp(min=1)[..., None]
    points = points - mean[:, :, None]
    angles = torch.where(used, torch.atan2(points[..., 1], points[..., 0]), torch.inf)
    points = points.gather(2, angles.argsort(dim=2)[..., None].expand_as(points))
    # Unused points are sorted to the end and become the first corner, so that they add no area.
    unused = torch.arange(points.shape[2], device=points.device) >= count[..., None]
    points = torch.where(unused[..., None], points[:, :, :1], points)
    twice = _cross(points, points.roll(-1, dims=2)).sum(-1)
    return torch.where(count >= 3, twice.abs() / 2, 0)
