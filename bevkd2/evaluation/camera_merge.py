"""The detections of a key frame's cameras as one list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bevkd2.evaluation.nuscenes_results import MAX_BOXES, SampleDetections
from bevkd2.nuscenes.layout import CLASS_NAMES
from bevkd2.ops.box3d import batched_rotated_nms
from bevkd2.structures import Boxes3D, CameraBoxes3D, camera_to_upright, invert_pose

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CameraDetections:
    """What a model found in one camera's image.

    Attributes:
        boxes: K boxes in the camera's frame, on the CPU.
        scores: (K,).
        labels: (K,) index into CLASS_NAMES.
        attributes: (K,) index into ATTRIBUTE_NAMES or NO_ATTRIBUTE; None where the model predicts none.
        cam2global: (4, 4) float64, through the ego's pose at the camera's own time.
        ego2global: (4, 4) float64 at the lidar's time: the same for all cameras of a key frame.
    """

    boxes: CameraBoxes3D
    scores: Array
    labels: npt.NDArray[np.int64]
    attributes: npt.NDArray[np.int64] | None
    cam2global: Array
    ego2global: Array


@dataclass(frozen=True)
class MergeRule:
    """How detections of several cameras become one list.

    Attributes:
        score_threshold: detections below it are dropped.
        nms_threshold: of two boxes of a class whose footprints have a greater IoU the lower score goes.
        max_per_sample: detections that stay, those of highest score.
    """

    score_threshold: float
    nms_threshold: float
    max_per_sample: int

    def __post_init__(self) -> None:
        if not 0 <= self.score_threshold <= 1:
            raise ValueError(
                f"TEST.NUSCENES_MONO.SCORE_THRESHOLD is {self.score_threshold}, expected a score in [0, 1]"
            )
        if not 0 <= self.nms_threshold <= 1:
            raise ValueError(
                f"TEST.NUSCENES_MONO.NMS_THRESHOLD is {self.nms_threshold}, expected an IoU in [0, 1]"
            )
        if not 1 <= self.max_per_sample <= MAX_BOXES:
            raise ValueError(
                f"TEST.NUSCENES_MONO.MAX_PER_SAMPLE is {self.max_per_sample}, expected 1 to {MAX_BOXES}: the "
                "official evaluation refuses more"
            )


def merge_cameras(
    cameras: Sequence[CameraDetections], rule: MergeRule, class_range: Mapping[str, float]
) -> SampleDetections:
    """Merges the cameras of a key frame, in any order.

    Boxes go through each camera's own pose into one upright frame: the global axes, with the origin at the
    ego. There those beyond the range of their class are dropped, and what cameras that overlap saw twice is
    reduced by rotated non-maximum suppression on the ground plane, class by class.

    Args:
        cameras: one or more; all with attributes, or none.
        rule: thresholds.
        class_range: per class the distance from the ego in metres beyond which boxes are not evaluated.

    Returns:
        The detections by falling score; their frame's axes are the global ones.

    Raises:
        ValueError: no camera, or only some have attributes.
    """
    if not cameras:
        raise ValueError("merge_cameras: cameras is empty, expected the detections of one camera or more")
    ego2global = cameras[0].ego2global
    frame2global = np.eye(4)
    frame2global[:3, 3] = ego2global[:3, 3]
    global2frame = invert_pose(frame2global)
    boxes = Boxes3D.cat([camera_to_upright(c.boxes, global2frame @ c.cam2global) for c in cameras])
    scores = np.concatenate([camera.scores for camera in cameras])
    labels = np.concatenate([camera.labels for camera in cameras])
    reach = np.array([class_range[name] for name in CLASS_NAMES])[labels]
    distances = boxes.center[:, :2].norm(dim=1).numpy()
    candidates = torch.from_numpy(np.flatnonzero((scores >= rule.score_threshold) & (distances < reach)))
    kept = batched_rotated_nms(
        boxes.tensor[candidates][:, [0, 1, 3, 4, 6]],
        torch.from_numpy(scores)[candidates],
        torch.from_numpy(labels)[candidates],
        rule.nms_threshold,
    )[: rule.max_per_sample]
    chosen = candidates[kept]
    return SampleDetections(
        boxes=boxes[chosen],
        scores=scores[chosen.numpy()],
        labels=labels[chosen.numpy()],
        lidar2global=frame2global,
        ego2global=ego2global,
        attributes=_attributes(cameras, chosen.numpy()),
    )


def _attributes(
    cameras: Sequence[CameraDetections], chosen: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64] | None:
    columns = [camera.attributes for camera in cameras if camera.attributes is not None]
    if not columns:
        return None
    if len(columns) != len(cameras):
        raise ValueError(
            f"merge_cameras: {len(columns)} of {len(cameras)} cameras have attributes, expected all or none; "
            "merge detections of one model"
        )
    return np.concatenate(columns)[chosen]
