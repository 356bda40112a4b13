"""Geometry of single images: whatever moves pixels moves boxes and calibration with them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from bevkd2.data.mono.affine import AffineAugmentation, affine_warp
from bevkd2.data.mono.index import MonoRecord
from bevkd2.structures import CameraBoxes3D, projected_boxes2d


@dataclasses.dataclass(frozen=True, eq=False)
class TransformedImage:
    """An image on its way from the file to the network, and all that must stay right for its pixels.

    Attributes:
        image: uint8 (3, H, W).
        cam2img: (4, 4) float64, metres in the camera's frame to pixels of ``image``.
        image_to_original: (3, 3) float64, pixels of ``image`` to pixels of the file.
        boxes: (n, 7 or 9) float64; None where the image is not annotated.
        boxes2d: (n, 4) float64, the layout's own image-plane boxes in pixels of ``image``, not clipped; None
            where it has none.
        affine_augmented: whether ``image`` is a random window.
    """

    image: Tensor
    cam2img: Tensor
    image_to_original: Tensor
    boxes: CameraBoxes3D | None = None
    boxes2d: Tensor | None = None
    affine_augmented: bool = False

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of ``image``."""
        return self.image.shape[1], self.image.shape[2]

    def projected_boxes2d(self) -> Tensor:
        """Returns (n, 4) around the projected corners, clipped to the image; no area if they are outside."""
        assert self.boxes is not None
        return projected_boxes2d(self.boxes, self.cam2img, self.image_size)

    def clipped_boxes2d(self) -> Tensor:
        """Returns (n, 4) ``boxes2d`` within the image."""
        assert self.boxes2d is not None
        height, width = self.image_size
        return self.boxes2d.clamp(min=0).minimum(self.boxes2d.new_tensor([width, height, width, height]))


def fitting_size(size: tuple[int, int], limits: tuple[int, int] | None) -> tuple[int, int]:
    """Returns the largest size of the same proportions within limits, to whole pixels.

    Args:
        size: (height, width) of the image.
        limits: (width, height); None leaves the size as it is.

    Returns:
        (height, width).
    """
    if limits is None:
        return size
    factor = min(limits[0] / size[1], limits[1] / size[0])
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def view_of(record: MonoRecord, image: Tensor) -> TransformedImage:
    """Returns the view of a record and its image.

    Args:
        record: calibration and boxes in pixels of the file.
        image: uint8 (3, H, W); where it was resized, calibration and 2D boxes are scaled to it.
    """
    height, width = image.shape[1:]
    view = TransformedImage(
        image=image,
        cam2img=torch.from_numpy(np.asarray(record.cam2img, dtype=np.float64)),
        image_to_original=torch.eye(3, dtype=torch.float64),
        boxes=None if record.boxes is None else record.boxes.to(torch.float64),
        boxes2d=None if record.boxes2d is None else record.boxes2d.double(),
    )
    scale = torch.tensor([width / record.width, height / record.height, 1.0], dtype=torch.float64)
    return _move(view, image, scale.diag())


def flip(view: TransformedImage) -> TransformedImage:
    """Mirrors left and right: the image, and the world in the camera's frame (x -> -x).

    With F the mirror x -> W - x of pixels, cam2img becomes F @ cam2img @ diag(-1, 1, 1, 1): the
    principal point moves to the other side, and the translation's part along x changes its sign.

    Args:
        view: what to mirror; not changed.
    """
    mirror = torch.eye(3, dtype=torch.float64)
    mirror[0, 0], mirror[0, 2] = -1.0, view.image.shape[2]
    moved = _move(view, view.image.flip(-1), mirror)
    world = torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64).diag()
    boxes = None if view.boxes is None else view.boxes.flip()
    return dataclasses.replace(moved, cam2img=moved.cam2img @ world, boxes=boxes)


def warp(
    view: TransformedImage,
    size: tuple[int, int],
    rng: np.random.Generator | None = None,
    augmentation: AffineAugmentation | None = None,
) -> TransformedImage:
    """Fills an image of one size, as SMOKE reads it; see ``affine_warp``.

    Args:
        view: what to warp.
        size: (height, width) of the result.
        rng: the source of all randomness; read only with an augmentation.
        augmentation: of training; None: the whole image.
    """
    image, affine, augmented = affine_warp(view.image, size, rng, augmentation)
    return dataclasses.replace(_move(view, image, affine.double()), affine_augmented=augmented)


def _move(view: TransformedImage, image: Tensor, affine: Tensor) -> TransformedImage:
    """Returns the view of ``image``; ``affine`` maps pixels of the view to its pixels (no axis swap)."""
    to_new = torch.eye(4, dtype=torch.float64)
    to_new[:3, :3] = affine
    boxes2d = None
    if view.boxes2d is not None:
        ends = view.boxes2d.view(-1, 2, 2) * affine.diagonal()[:2] + affine[:2, 2]
        boxes2d = torch.cat([ends.amin(dim=1), ends.amax(dim=1)], dim=1)
    return dataclasses.replace(
        view,
        image=image,
        cam2img=to_new @ view.cam2img,
        image_to_original=view.image_to_original @ torch.linalg.inv(affine),
        boxes2d=boxes2d,
    )
