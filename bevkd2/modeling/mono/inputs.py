"""Inputs and targets of monocular detectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bevkd2.modeling.mono.grid import DenseGrid
from bevkd2.modeling.pixels import PixelNormalizer
from bevkd2.modeling.sample import sample_name
from bevkd2.structures import CameraBoxes3D, project_points

IMAGE_KEYS = ("image", "cam2img")


@dataclasses.dataclass
class MonoInputs:
    """B images, each with its own calibration."""

    images: Tensor
    """(B, 3, H, W) float32, normalised, padded right and bottom with zeros."""
    image_sizes: Tensor
    """(B, 2) float32: height and width in pixels before padding."""
    cam2img: Tensor
    """(B, 4, 4) float32: metres in the camera frame to pixels of ``images``."""
    grid: DenseGrid
    """Of the detector's levels on ``images``."""

    @property
    def padded_size(self) -> tuple[int, int]:
        """Returns height and width of ``images``."""
        return self.images.shape[-2], self.images.shape[-1]


@dataclasses.dataclass
class MonoTargets:
    """Annotations, one list entry per image with n objects."""

    boxes: list[CameraBoxes3D]
    """(n, 7 or 9) each."""
    labels: list[Tensor]
    """(n,) int64 each."""
    boxes2d: list[Tensor]
    """(n, 4) each: x1, y1, x2, y2 in pixels of the network's input."""
    centers2d: list[Tensor]
    """(n, 2) each: the projected gravity centre in pixels; it may lie outside of the image."""
    depths: list[Tensor]
    """(n,) each: metres along the optical axis, the calibration's own offset included."""
    attributes: list[Tensor] | None
    """(n,) int64 each; None where the data has none."""
    image_sizes: Tensor
    """(B, 2) height and width before padding."""
    cam2img: Tensor
    """(B, 4, 4)."""
    affine_augmented: Tensor
    """(B,) bool: images that were shifted or scaled, from which SMOKE learns classes only."""
    grid: DenseGrid
    """The Q locations that objects are assigned to."""
    assigned: Tensor | None = None
    """(B, Q) int64: the object of its image that a location is assigned to, -1 for background; filled by
    detectors whose assignment does not depend on predictions."""
    objects: Any = None
    """What the detector's ``assign`` found about the objects and its ``losses`` read again; its own type."""

    def assignment(self) -> Tensor:
        """Returns ``assigned``, which the detector must have filled.

        Raises:
            ValueError: it is None.
        """
        if self.assigned is None:
            raise ValueError(
                "MonoTargets.assigned is not filled: the detector's assign() has to return it, e.g. by "
                "assign_locations"
            )
        return self.assigned

    def image_boxes(self) -> list[Tensor]:
        """Returns B tensors (n, 4): x1, y1, x2, y2 of the objects in pixels."""
        return self.boxes2d

    @property
    def max_depth(self) -> Tensor:
        """Returns the largest annotated depth of the batch (m), a scalar; 1 where there is no object."""
        depths = torch.cat(self.depths)
        return depths.max() if len(depths) else depths.new_ones(())

    def depth_of_locations(self) -> Tensor:
        """Returns (B, Q) annotated depth (m) of the object of each location; 0 for background."""
        return self._of_locations(self.depths)

    def labels_of_locations(self) -> Tensor:
        """Returns (B, Q) int64 class of the object of each location; 0 for background as well."""
        return self._of_locations(self.labels)

    def _of_locations(self, of_objects: Sequence[Tensor]) -> Tensor:
        rows = []
        for values, assigned in zip(of_objects, self.assignment(), strict=True):
            padded = torch.cat([values, values.new_zeros(1)])  # index -1: background
            rows.append(padded[assigned])
        return torch.stack(rows)


def collate_images(
    samples: Sequence[Mapping[str, Any]], normalize: PixelNormalizer, strides: Sequence[int]
) -> MonoInputs:
    """Batches images of any sizes.

    Args:
        samples: as the mapper emits them, with ``IMAGE_KEYS``.
        normalize: of the model that will read them.
        strides: of its levels.

    Raises:
        KeyError: a sample lacks a key.
        ValueError: an image or a calibration of the wrong shape or type.
    """
    for sample in samples:
        _check_image(sample)
    device = normalize.device
    images = normalize([sample["image"][None] for sample in samples])[:, 0]
    sizes = [tuple(sample["image"].shape[-2:]) for sample in samples]
    return MonoInputs(
        images=images,
        image_sizes=torch.tensor(sizes, dtype=torch.float32, device=device),
        cam2img=torch.stack([torch.as_tensor(sample["cam2img"]) for sample in samples]).float().to(device),
        grid=DenseGrid.of_image((images.shape[-2], images.shape[-1]), strides, device),
    )


def collate_targets(
    samples: Sequence[Mapping[str, Any]], inputs: MonoInputs, num_classes: int
) -> MonoTargets:
    """Moves annotations to the images' device and projects the boxes' centres.

    Args:
        samples: with ``boxes`` (CameraBoxes3D), ``labels``, ``boxes2d`` and, where there are any,
            ``attributes``.
        inputs: of the same samples.
        num_classes: K.

    Raises:
        KeyError: a sample without annotations.
        ValueError: a label that is no class, lists of different lengths, or a box behind the camera.
    """
    device = inputs.images.device
    for sample in samples:
        _check_annotations(sample, num_classes)
    boxes = [sample["boxes"].to(device) for sample in samples]
    projected = [project_points(b.center, m) for b, m in zip(boxes, inputs.cam2img, strict=True)]
    with_attributes = all("attributes" in sample for sample in samples)
    return MonoTargets(
        boxes=boxes,
        labels=[sample["labels"].to(device) for sample in samples],
        boxes2d=[sample["boxes2d"].float().to(device) for sample in samples],
        centers2d=[uv for uv, _ in projected],
        depths=[depth for _, depth in projected],
        attributes=[sample["attributes"].to(device) for sample in samples] if with_attributes else None,
        image_sizes=inputs.image_sizes,
        cam2img=inputs.cam2img,
        grid=inputs.grid,
        affine_augmented=torch.tensor(
            [bool(sample.get("affine_augmented", False)) for sample in samples], device=device
        ),
    )


def _check_image(sample: Mapping[str, Any]) -> None:
    name = sample_name(sample)
    missing = [key for key in IMAGE_KEYS if key not in sample]
    if missing:
        raise KeyError(f"image {name}: keys {missing} are missing, expected {list(IMAGE_KEYS)}")
    image = sample["image"]
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        raise ValueError(
            f"image {name} is {tuple(image.shape)} {image.dtype}, expected uint8 (3, H, W) in RGB"
        )
    shape = tuple(sample["cam2img"].shape)
    if shape != (4, 4):
        raise ValueError(
            f"image {name}: cam2img is {shape}, expected (4, 4): pad P2 (3, 4) with the row 0 0 0 1"
        )


def _check_annotations(sample: Mapping[str, Any], num_classes: int) -> None:
    name = f"image {sample_name(sample)}"
    missing = [key for key in ("boxes", "labels", "boxes2d") if key not in sample]
    if missing:
        raise KeyError(f"{name}: keys {missing} are missing; training needs an annotated split")
    lengths = {key: len(sample[key]) for key in ("boxes", "labels", "boxes2d", "attributes") if key in sample}
    labels = sample["labels"]
    if len(set(lengths.values())) != 1 or bool(((labels < 0) | (labels >= num_classes)).any()):
        raise ValueError(
            f"{name}: labels are {labels.tolist()} with entries {lengths}, expected as many of each and "
            f"labels in 0..{num_classes - 1} (DATASETS.CLASSES)"
        )
    # Here, on the CPU, so that no step waits for the device.
    _, depth = project_points(sample["boxes"].center, torch.as_tensor(sample["cam2img"]).float())
    if not bool((depth > 0).all()):
        raise ValueError(
            f"{name}: an object's centre has depth {float(depth.min()):.2f} m, expected above 0; objects "
            "behind the camera must be left out by the mapper"
        )
