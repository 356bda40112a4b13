"""Between boxes and the ten numbers that the head predicts; decoding without NMS.

A code is cx, cy, log w, log l, cz, log h, sin, cos, vx, vy in metres and m/s, of the gravity centre. Its
yaw is that of mmdet3d before 1.0, in which the published models were trained: -yaw - pi/2, w before l.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bevkd2.modeling.scores import check_scores
from bevkd2.structures import Boxes3D, wrap_angle


def encode_boxes(boxes: Boxes3D) -> Tensor:
    """Returns the codes of boxes.

    Args:
        boxes: n boxes with velocity.

    Returns:
        (n, 10).

    Raises:
        ValueError: no velocity, a number that is not finite, or a size that is not positive.
    """
    x, (vx, vy) = boxes.tensor, boxes.velocity.unbind(1)
    if not bool(torch.isfinite(x).all()) or not bool((boxes.size > 0).all()):
        bad = int((~torch.isfinite(x).all(1) | ~(boxes.size > 0).all(1)).nonzero()[0])
        raise ValueError(f"box {bad} is {x[bad].tolist()}: expected finite numbers and positive sizes")
    yaw = -boxes.yaw - math.pi / 2
    length, width, height = boxes.size.log().unbind(1)
    return torch.stack(
        [x[:, 0], x[:, 1], width, length, x[:, 2], height, yaw.sin(), yaw.cos(), vx, vy], dim=1
    )


def decode_codes(codes: Tensor) -> Boxes3D:
    """Returns the boxes of codes.

    Args:
        codes: (n, 10).

    Returns:
        n boxes with velocity, yaw in [-pi, pi).
    """
    yaw = wrap_angle(-torch.atan2(codes[:, 6], codes[:, 7]) - math.pi / 2)
    width, length, height = codes[:, 2].exp(), codes[:, 3].exp(), codes[:, 5].exp()
    return Boxes3D(
        torch.stack(
            [codes[:, 0], codes[:, 1], codes[:, 4], length, width, height, yaw, codes[:, 8], codes[:, 9]],
            dim=1,
        )
    )


def to_mmdet3d(boxes: Boxes3D, *, bottom: bool) -> Tensor:
    """Returns boxes in the layout of mmdet3d before 1.0.

    Args:
        boxes: n boxes with velocity.
        bottom: z of the bottom face instead of the gravity centre.

    Returns:
        (n, 9): x, y, z, w, l, h, yaw, vx, vy.
    """
    x = boxes.tensor
    z = boxes.bottom_center[:, 2] if bottom else x[:, 2]
    yaw = wrap_angle(-boxes.yaw - math.pi / 2)
    return torch.stack([x[:, 0], x[:, 1], z, x[:, 4], x[:, 3], x[:, 5], yaw, x[:, 7], x[:, 8]], dim=1)


def from_mmdet3d(tensor: Tensor, *, bottom: bool) -> Boxes3D:
    """Inverts :func:`to_mmdet3d`.

    Args:
        tensor: (n, 9) x, y, z, width, length, height, yaw, vx, vy in mmdetection3d's order and
            angle.
        bottom: whether z is that of the bottom face, not of the gravity centre.

    Returns:
        n boxes with velocity.
    """
    x, y, z, width, length, height, yaw, vx, vy = tensor.unbind(1)
    z = z + height / 2 if bottom else z
    yaw = wrap_angle(-yaw - math.pi / 2)
    return Boxes3D(torch.stack([x, y, z, length, width, height, yaw, vx, vy], dim=1))


@dataclasses.dataclass(frozen=True)
class DecodeOptions:
    """Options of the test-time decoding."""

    max_detections: int
    """Most detections per sample."""
    post_center_range: Sequence[float]
    """x0, y0, z0, x1, y1, z1 in metres; detections whose gravity centre is outside are dropped."""
    score_threshold: float = 0.0
    """A score must be greater; 0: no threshold."""


def decode_detections(class_logits: Tensor, box_codes: Tensor, options: DecodeOptions) -> dict[str, Any]:
    """Returns the detections of one sample: the best (query, class) pairs, without NMS.

    Where no score exceeds the threshold, it is lowered by tenths until one does, as published; below 0.01
    all pass.

    Args:
        class_logits: (Q, K).
        box_codes: (Q, 10).
        options: largest number of detections, range (m) and score threshold.

    Returns:
        ``boxes`` (Boxes3D), ``scores`` (k,) in descending order and ``labels`` (k,) int64.

    Raises:
        ValueError: a score is NaN.
    """
    check_scores(class_logits)
    best = best_pairs(class_logits[None], box_codes[None], options.max_detections)
    columns, scores, labels = (tensor[0] for tensor in best)
    boxes = Boxes3D(columns)
    low, high = boxes.tensor.new_tensor(options.post_center_range).chunk(2)
    keep = ((boxes.center >= low) & (boxes.center <= high)).all(1)
    if options.score_threshold > 0:
        keep &= _above(scores, options.score_threshold)
    return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}


def best_pairs(class_logits: Tensor, box_codes: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the ``count`` best (query, class) pairs of each sample, or all where there are fewer.

    Args:
        class_logits: (B, Q, K).
        box_codes: (B, Q, 10).
        count: M.

    Returns:
        Boxes (B, M, 9) in the layout of Boxes3D, scores (B, M) in descending order, and labels (B, M) int64.
    """
    num_classes = class_logits.shape[2]
    probabilities = class_logits.float().sigmoid().flatten(1)
    scores, index = probabilities.topk(min(count, probabilities.shape[1]))
    labels, queries = index % num_classes, index // num_classes
    codes = box_codes.float().gather(1, queries[..., None].expand(-1, -1, box_codes.shape[2]))
    boxes = decode_codes(codes.flatten(0, 1)).tensor.unflatten(0, index.shape)
    return boxes, scores, labels


def _above(scores: Tensor, threshold: float) -> Tensor:
    mask = scores > threshold
    while not bool(mask.any()):
        threshold *= 0.9
        if threshold < 0.01:
            return torch.ones_like(mask)
        mask = scores >= threshold
    return mask
