"""Inputs and targets of multi-view detectors: frames as tensors, their geometry kept beside the pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bevkd2.modeling.bev.box_coder import encode_boxes
from bevkd2.modeling.bev.grid_mask import apply_masks
from bevkd2.modeling.pixels import PixelNormalizer
from bevkd2.modeling.sample import sample_name
from bevkd2.structures import Boxes3D, project_points

MASK_KEY = "grid_mask"
"""Optional key of a frame: its :class:`bevkd2.modeling.bev.grid_mask.MaskPattern`, or None for no mask."""
_NEAREST = 0.1  # metres in front of the camera from which on a corner is projected
FRAME_KEYS = ("images", "lidar2img", "can_bus", "scene_token", "timestamp")


@dataclasses.dataclass
class Frames:
    """One time step of R rows of a batch, N cameras."""

    images: Tensor
    """(R, N, 3, H, W) float32, normalised, padded right and bottom with zeros, and masked."""
    image_sizes: Tensor
    """(R, N, 2) float32: height and width in pixels before padding."""
    lidar2img: Tensor
    """(R, N, 4, 4) float32: metres in the LIDAR_TOP frame to pixels of ``images``."""
    can_bus: Tensor
    """(R, 18) float64, absolute values."""
    scene_tokens: list[str]
    timestamps: list[int]
    """Microseconds."""
    rows: list[int]
    """Which samples of the batch the R rows belong to."""

    @property
    def padded_size(self) -> tuple[int, int]:
        """Returns height and width of ``images``."""
        return self.images.shape[-2], self.images.shape[-1]


@dataclasses.dataclass
class BEVInputs:
    """A batch: the current frames, and the history of those samples that have one."""

    current: Frames
    history: list[Frames]
    """Oldest first. Histories end together, so a sample with a short one joins late: see ``Frames.rows``."""


@dataclasses.dataclass
class BEVTargets:
    """Annotations of the current frames, one entry per sample."""

    boxes: list[Boxes3D]
    """(n, 9) each, LIDAR_TOP frame."""
    labels: list[Tensor]
    """(n,) int64 each."""
    codes: list[Tensor]
    """(n, 10) each: the boxes as the head predicts them (see :mod:`bevkd2.modeling.bev.box_coder`)."""
    lidar2img: Tensor
    """(B, N, 4, 4), for the image heat map."""
    image_sizes: Tensor
    """(B, N, 2), for the image heat map."""

    def image_boxes(self) -> list[Tensor]:
        """Returns the objects' boxes in every image of the batch.

        A box spans the corners of its object that lie in front of the camera, not beyond the image.

        Returns:
            B*N tensors (n, 4) x1, y1, x2, y2 in pixels: camera after camera, sample after sample.
        """
        return [
            boxes_in_image(boxes, matrix, size)
            for boxes, matrices, sizes in zip(self.boxes, self.lidar2img, self.image_sizes, strict=True)
            for matrix, size in zip(matrices, sizes, strict=True)
        ]

    def grid_boxes(self) -> list[Tensor]:
        """Returns B tensors (n, 5): x, y, length, width in metres and yaw, LIDAR_TOP frame."""
        return [
            torch.cat([boxes.center[:, :2], boxes.size[:, :2], boxes.yaw[:, None]], dim=1)
            for boxes in self.boxes
        ]


def boxes_in_image(boxes: Boxes3D, lidar2img: Tensor, image_size: Tensor) -> Tensor:
    """Projects boxes to one image.

    Args:
        boxes: n boxes, LIDAR_TOP frame.
        lidar2img: (4, 4).
        image_size: (2,) height and width in pixels before padding.

    Returns:
        (m, 4) x1, y1, x2, y2 in pixels of those m boxes of which some of the image shows a part.
    """
    if not len(boxes):
        return lidar2img.new_zeros(0, 4)
    pixels, depth = project_points(boxes.corners(), lidar2img.expand(len(boxes), 4, 4))
    front = (depth > _NEAREST)[..., None]
    limits = image_size.flip(0).to(pixels)
    low = pixels.where(front, torch.inf).amin(dim=1).clamp(min=0)
    high = pixels.where(front, -torch.inf).amax(dim=1).minimum(limits)
    return torch.cat([low, high], dim=1)[(low < high).all(dim=1)]


def collate_frames(
    frames: Sequence[Mapping[str, Any]], rows: list[int], normalize: PixelNormalizer, num_cameras: int
) -> Frames:
    """Batches one time step.

    Args:
        frames: one mapping per row with ``FRAME_KEYS``, as the mapper emits it, and where there is a
            ``MASK_KEY``, its pattern is applied.
        rows: which sample of the batch each belongs to.
        normalize: of the model that will read them.
        num_cameras: N that the model was built for.

    Raises:
        KeyError: a frame lacks a key.
        ValueError: images of the wrong shape, type or number.
    """
    for frame in frames:
        _check_frame(frame, num_cameras)
    device = normalize.device
    sizes = [torch.tensor(frame["images"].shape[-2:]).expand(num_cameras, 2) for frame in frames]
    return Frames(
        images=apply_masks(
            normalize([frame["images"] for frame in frames]), [frame.get(MASK_KEY) for frame in frames]
        ),
        image_sizes=torch.stack(sizes).float().to(device),
        lidar2img=torch.stack([torch.as_tensor(frame["lidar2img"]) for frame in frames]).float().to(device),
        can_bus=torch.stack([torch.as_tensor(frame["can_bus"]).double() for frame in frames]).to(device),
        scene_tokens=[frame["scene_token"] for frame in frames],
        timestamps=[int(frame["timestamp"]) for frame in frames],
        rows=rows,
    )


def collate_history(
    samples: Sequence[Mapping[str, Any]], normalize: PixelNormalizer, num_cameras: int
) -> list[Frames]:
    """Batches the history frames so that all samples reach the present together.

    Args:
        samples: the batch; ``sample["history"]`` is a list of frames, oldest first, possibly empty or absent.
        normalize: of the model that will read them.
        num_cameras: N that the model was built for.

    Returns:
        As many steps as the longest history has, oldest first.
    """
    histories = [list(sample.get("history", ())) for sample in samples]
    steps = []
    for age in range(max(map(len, histories)), 0, -1):
        rows = [row for row, history in enumerate(histories) if len(history) >= age]
        steps.append(collate_frames([histories[row][-age] for row in rows], rows, normalize, num_cameras))
    return steps


def collate_targets(samples: Sequence[Mapping[str, Any]], frames: Frames, num_classes: int) -> BEVTargets:
    """Moves the annotations to the frames' device.

    Args:
        samples: with ``boxes`` (Boxes3D) and ``labels``.
        frames: the current ones.
        num_classes: K.

    Raises:
        KeyError: a sample without annotations.
        ValueError: a box that no detector could predict, or a label that is no class.
    """
    device = frames.images.device
    codes = [_codes(sample, num_classes).to(device) for sample in samples]
    return BEVTargets(
        boxes=[sample["boxes"].to(device) for sample in samples],
        labels=[sample["labels"].to(device) for sample in samples],
        codes=codes,
        lidar2img=frames.lidar2img,
        image_sizes=frames.image_sizes,
    )


def _codes(sample: Mapping[str, Any], num_classes: int) -> Tensor:
    name = f"sample {sample_name(sample)}"
    if "boxes" not in sample or "labels" not in sample:
        raise KeyError(f"{name}: no boxes or labels; training needs an annotated split")
    labels = sample["labels"]
    if len(labels) != len(sample["boxes"]) or bool(((labels < 0) | (labels >= num_classes)).any()):
        raise ValueError(
            f"{name}: labels are {labels.tolist()} for {len(sample['boxes'])} boxes, expected one per box in "
            f"0..{num_classes - 1} (the classes of DATASETS.FORMAT)"
        )
    try:
        return encode_boxes(sample["boxes"]).float()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _check_frame(frame: Mapping[str, Any], num_cameras: int) -> None:
    name = sample_name(frame)
    missing = [key for key in FRAME_KEYS if key not in frame]
    if missing:
        raise KeyError(f"sample {name}: keys {missing} are missing, expected {list(FRAME_KEYS)}")
    images = frame["images"]
    if images.ndim != 4 or images.shape[:2] != (num_cameras, 3) or images.dtype != torch.uint8:
        raise ValueError(
            f"sample {name}: images are {tuple(images.shape)} {images.dtype}, expected uint8 "
            f"({num_cameras}, 3, H, W); the model was built for the cameras of INPUT.CAMERAS"
        )
