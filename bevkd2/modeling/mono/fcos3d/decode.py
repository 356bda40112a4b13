"""From the maps of a dense head to detections (FCOS3D, arXiv 2104.10956, section 3.2; PGD)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from bevkd2.modeling.mono.depth import depth_confidence, predicted_depth
from bevkd2.modeling.mono.fcos3d.head import DenseOutputs
from bevkd2.modeling.mono.grid import DenseGrid, flatten_levels
from bevkd2.modeling.mono.lift import full_local_yaw, lift_boxes
from bevkd2.modeling.scores import check_scores
from bevkd2.ops.box3d import batched_rotated_nms
from bevkd2.structures import CameraBoxes3D


@dataclasses.dataclass(frozen=True)
class DecodeOptions:
    """Options of the test-time decoding."""

    direction_offset: float
    """Where the first half of local yaws begins (rad)."""
    candidates_per_level: int
    """Locations per level that are passed to the suppression, the best by score."""
    nms_threshold: float
    """IoU of footprints."""
    score_threshold: float
    max_detections: int
    depth_unit: float = 0.0
    """Metres between bins of the depth distribution (PGD)."""
    nms_inclusive: bool = False
    """Suppress boxes whose IoU equals the threshold too, as mmcv's CPU kernel does; its CUDA kernel and
    published evaluations do not."""


@dataclasses.dataclass
class Candidates:
    """The best P locations of one image, level by level."""

    boxes: CameraBoxes3D
    """P boxes."""
    scores: Tensor
    """(P, K) of every class."""
    direction: Tensor
    """(P,) int64 direction bin of the local yaw."""
    boxes2d: Tensor | None
    """(P, 4) x1, y1, x2, y2 in pixels, not beyond the image."""
    attributes: Tensor | None
    """(P,) int64."""

    def __len__(self) -> int:
        """Returns P."""
        return len(self.scores)


@dataclasses.dataclass
class CandidateTensors:
    """The best P locations of each of B images, level by level."""

    boxes: Tensor
    """(B, P, 7 or 9) in the layout of CameraBoxes3D."""
    scores: Tensor
    """(B, P, K) of every class."""
    direction: Tensor
    """(B, P) int64 direction bin of the local yaw."""
    boxes2d: Tensor | None
    """(B, P, 4) x1, y1, x2, y2 in pixels, not beyond the image."""
    attributes: Tensor | None
    """(B, P) int64."""


def class_scores(outputs: DenseOutputs) -> Tensor:
    """Computes the score of every class at every location.

    The probability of the class times the centre-ness, and with PGD times the sharpness of the depth's
    distribution and the exponential of minus the uncertainty, so that it may exceed 1.

    Args:
        outputs: of a head.

    Returns:
        (B, Q, K).
    """
    scores = outputs.flat("logits").sigmoid() * outputs.flat("centerness").sigmoid()
    if outputs.depth_bins is not None:
        scores = scores * depth_confidence(outputs.flat("depth_bins"))[..., None]
    if outputs.uncertainty is not None:
        scores = scores * (-outputs.flat("uncertainty")).exp()
    return scores


def candidates_of(
    outputs: DenseOutputs,
    depth: Tensor,
    *,
    cam2img: Tensor,
    image_sizes: Tensor,
    grid: DenseGrid,
    options: DecodeOptions,
) -> list[Candidates]:
    """Picks the best locations of every level and lifts them into the camera's frame.

    Args:
        outputs: of a head.
        depth: (B, Q) metres.
        cam2img: (B, 4, 4).
        image_sizes: (B, 2) height and width in pixels before padding.
        grid: of the levels.
        options: direction bin, thresholds and largest number of detections.

    Returns:
        One entry per image.
    """
    best = best_locations(
        outputs, depth, cam2img=cam2img, image_sizes=image_sizes, grid=grid, options=options
    )
    return [
        Candidates(
            boxes=CameraBoxes3D(best.boxes[row]),
            scores=best.scores[row],
            direction=best.direction[row],
            boxes2d=None if best.boxes2d is None else best.boxes2d[row],
            attributes=None if best.attributes is None else best.attributes[row],
        )
        for row in range(len(depth))
    ]


def best_locations(
    outputs: DenseOutputs,
    depth: Tensor,
    *,
    cam2img: Tensor,
    image_sizes: Tensor,
    grid: DenseGrid,
    options: DecodeOptions,
) -> CandidateTensors:
    """Picks the best locations of every level of all images, and lifts them into the camera's frame.

    Args:
        outputs: of a head.
        depth: (B, Q) metres.
        cam2img: (B, 4, 4).
        image_sizes: (B, 2) height and width in pixels before padding.
        grid: of the levels.
        options: the direction bin, and how many candidates a level has.

    Returns:
        The candidates, before thresholds and suppression.
    """
    scores = class_scores(outputs)
    boxes, direction = outputs.flat("boxes"), outputs.flat("direction").argmax(dim=-1)
    sides = None if outputs.boxes2d is None else outputs.flat("boxes2d")
    attributes = None if outputs.attributes is None else outputs.flat("attributes").argmax(dim=-1)
    kept = _best_of_levels(scores.amax(dim=-1), grid.shapes, options.candidates_per_level)
    at, stride = grid.locations[kept], grid.location_strides[kept][..., None]
    raw, half = _pick(boxes, kept), direction.gather(1, kept)
    calibration = cam2img[:, None].expand(-1, kept.shape[1], -1, -1)
    lifted = _lift(
        raw.flatten(0, 1),
        depth.gather(1, kept).flatten(),
        half.flatten(),
        at.flatten(0, 1),
        stride.flatten(0, 1),
        calibration.flatten(0, 1),
        options,
    )
    return CandidateTensors(
        boxes=torch.cat([lifted.unflatten(0, kept.shape), raw[..., 7:]], dim=-1),
        scores=_pick(scores, kept),
        direction=half,
        boxes2d=None if sides is None else _boxes2d(at, _pick(sides, kept) * stride, image_sizes[:, None]),
        attributes=None if attributes is None else attributes.gather(1, kept),
    )


def _pick(values: Tensor, kept: Tensor) -> Tensor:
    """Returns (B, P, n) of the locations (B, P) of (B, Q, n)."""
    return values.gather(1, kept[..., None].expand(-1, -1, values.shape[2]))


def boxes_of_all(
    outputs: DenseOutputs,
    depth: Tensor,
    *,
    cam2img: Tensor,
    grid: DenseGrid,
    options: DecodeOptions,
) -> Tensor:
    """Lifts all locations into the camera's frame.

    Args:
        outputs: of a head.
        depth: (B, Q) metres.
        cam2img: (B, 4, 4).
        grid: of the levels.
        options: direction bin, thresholds and largest number of detections.

    Returns:
        (B, Q, 7) in the layout of CameraBoxes3D, differentiable.
    """
    boxes, direction = outputs.flat("boxes"), outputs.flat("direction").argmax(dim=-1)
    stride = grid.location_strides[:, None]
    return torch.stack(
        [
            _lift(
                raw,
                depth[row],
                direction[row],
                grid.locations,
                stride,
                cam2img[row].expand(len(raw), 4, 4),
                options,
            )
            for row, raw in enumerate(boxes)
        ]
    )


def boxes2d_of_all(outputs: DenseOutputs, image_sizes: Tensor, grid: DenseGrid) -> Tensor | None:
    """Returns (B, Q, 4): the head's own 2D boxes in pixels, not beyond the image; None where it has none.

    Args:
        outputs: of a head.
        image_sizes: (B, 2) height and width in pixels before padding.
        grid: of the levels.
    """
    if outputs.boxes2d is None:
        return None
    sides = outputs.flat("boxes2d") * grid.location_strides[:, None]
    pairs = zip(sides, image_sizes, strict=True)
    return torch.stack([_boxes2d(grid.locations, row, size) for row, size in pairs])


def _lift(
    raw: Tensor,
    depth: Tensor,
    direction: Tensor,
    locations: Tensor,
    stride: Tensor,
    cam2img: Tensor,
    options: DecodeOptions,
) -> Tensor:
    """Lifts P locations: raw (P, 7 or 9), stride (P, 1), cam2img (P, 4, 4); returns (P, 7)."""
    yaw = full_local_yaw(raw[:, 6], direction, options.direction_offset)
    centers2d = locations - raw[:, :2] * stride
    return lift_boxes(centers2d, depth, raw[:, 3:6], yaw, cam2img)


def select_detections(candidates: Candidates, options: DecodeOptions) -> dict[str, Tensor | CameraBoxes3D]:
    """Suppresses overlapping footprints class by class, and keeps the best.

    A location may become a detection of several classes.

    Args:
        candidates: of one image.
        options: direction bin, thresholds and largest number of detections.

    Returns:
        ``boxes`` (k of them), ``scores`` (k,) in descending order, ``labels`` (k,), and where there are any
        ``boxes2d`` (k, 4) and ``attributes`` (k,).

    Raises:
        ValueError: a score is NaN.
    """
    check_scores(candidates.scores)
    rows, labels = (candidates.scores > options.score_threshold).nonzero(as_tuple=True)
    scores = candidates.scores[rows, labels]
    footprints = candidates.boxes.bev()[rows]
    kept = batched_rotated_nms(
        footprints, scores, labels, options.nms_threshold, inclusive=options.nms_inclusive
    )[: options.max_detections]
    rows = rows[kept]
    result: dict[str, Tensor | CameraBoxes3D] = {
        "boxes": candidates.boxes[rows],
        "scores": scores[kept],
        "labels": labels[kept],
    }
    if candidates.boxes2d is not None:
        result["boxes2d"] = candidates.boxes2d[rows]
    if candidates.attributes is not None:
        result["attributes"] = candidates.attributes[rows]
    return result


def fused_depth(
    depth: Sequence[Tensor], depth_bins: Sequence[Tensor] | None, fuse_lambda: Tensor | None, unit: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Computes the depths of all locations.

    Args:
        depth: (B, 1, h, w) per level: the direct depth in metres.
        depth_bins: (B, bins, h, w) logits per level; None where the head has no depth distribution.
        fuse_lambda: of the same head; None where it has no depth distribution.
        unit: metres between bins of the depth distribution.

    Returns:
        (B, Q) metres each: the depth to decode with, the direct one, and the distribution's expectation or
        None.

    Raises:
        ValueError: depth bins without ``fuse_lambda``.
    """
    direct = flatten_levels(depth)[..., 0]
    bins = None if depth_bins is None else flatten_levels(depth_bins)
    fused, probabilistic = predicted_depth(direct, bins, fuse_lambda, unit)
    return fused, direct, probabilistic


def _best_of_levels(scores: Tensor, shapes: Sequence[tuple[int, int]], count: int) -> Tensor:
    """Returns the best ``count`` locations of every level, by descending score where a level has more.

    Args:
        scores: (B, Q).
        shapes: rows and columns of every level.
        count: of locations per level.

    Returns:
        (B, P) int64.
    """
    kept, start = [], 0
    for rows, columns in shapes:
        cells = rows * columns
        if cells > count:
            kept.append(start + scores[:, start : start + cells].topk(count).indices)
        else:
            kept.append(torch.arange(start, start + cells, device=scores.device).expand(scores.shape[0], -1))
        start += cells
    return torch.cat(kept, dim=1)


def _boxes2d(locations: Tensor, sides: Tensor, image_size: Tensor) -> Tensor:
    """Computes (..., 4) from (..., 2) pixels and (..., 4) pixels to the left, top, right and bottom.

    ``image_size`` is (..., 2), height and width in pixels.
    """
    boxes = torch.cat([locations - sides[..., :2], locations + sides[..., 2:]], dim=-1)
    border = torch.cat([image_size.flip(-1)] * 2, dim=-1).to(boxes)
    return boxes.clamp(min=0).minimum(border)
