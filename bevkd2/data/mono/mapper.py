"""From an image of a monocular dataset to the sample that a model gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.config import CfgNode, add_config_extension
from bevkd2.d2 import configurable
from bevkd2.data.image_cache import ImageCache
from bevkd2.data.image_files import read_image
from bevkd2.data.mono.affine import AffineAugmentation
from bevkd2.data.mono.index import MonoIndex, MonoRecord
from bevkd2.data.mono.transforms import TransformedImage, fitting_size, flip, view_of, warp
from bevkd2.data.transforms import PhotometricDistortion, resize
from bevkd2.structures import wrap_angle

BOXES2D_RULES = ("projected", "label")
"""Values of INPUT.BOXES2D."""


@add_config_extension
def add_mono_config(cfg: CfgNode) -> None:
    """Adds the keys of :class:`MonoMapper`, which all monocular formats share."""
    inp = cfg.INPUT
    # [width, height] in pixels: images are scaled, proportions kept, to the largest size that fits; []:
    # as they are. Published for KITTI: [1242, 375] in training only.
    inp.RESIZE_TRAIN = []
    inp.RESIZE_TEST = []  # the same in evaluation
    inp.FLIP_PROB = 0.5  # how often a training image is mirrored; monocular formats only
    # The objects' image-plane boxes: "projected" (around the 3D boxes' corners, as published) | "label"
    # (those of the label files; not every format has them)
    inp.BOXES2D = "projected"

    affine = inp.AFFINE = CfgNode()  # SMOKE's warp to one size; instead of RESIZE_TRAIN and RESIZE_TEST
    affine.ENABLED = False  # warp every image
    affine.SIZE = [1280, 384]  # width, height in pixels
    affine.PROB = 0.3  # how often a training image is shifted and scaled
    affine.SHIFT = 0.2  # largest shift, in widths and heights of the image
    affine.SCALE = [0.6, 1.4]  # of the window that fills SIZE: below 1 objects grow
    affine.STEP = 0.1  # of shifts and scales


class MonoMapper:
    """Reads images and assembles samples (see ``__call__``)."""

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        resize_within: Sequence[int] = (),
        warp_size: Sequence[int] = (),
        augmentation: AffineAugmentation | None = None,
        flip_prob: float = 0.5,
        photometric: bool = False,
        boxes2d: str = "projected",
        reduced_decoding: bool = False,
    ) -> None:
        """Settings of a mapper.

        Args:
            is_train: training samples are augmented; test samples are not.
            resize_within: (width, height) that images are scaled to fit, proportions kept; (): as they are.
            warp_size: (width, height) that images are warped to (SMOKE), not resized; (): they are not.
            augmentation: of the warp in training.
            flip_prob: how often a training image is mirrored.
            photometric: whether training images are distorted.
            boxes2d: one of BOXES2D_RULES.
            reduced_decoding: decode JPEGs at a fraction of their size where the resized image is that small.

        Raises:
            ValueError: a setting out of its range, or both resize_within and warp_size.
        """
        _check_size("INPUT.RESIZE_TRAIN or RESIZE_TEST", resize_within)
        _check_size("INPUT.AFFINE.SIZE", warp_size)
        if resize_within and warp_size:
            raise ValueError(
                "INPUT.AFFINE.ENABLED is True and images are resized too; AFFINE.SIZE alone decides the "
                "size: set INPUT.RESIZE_TRAIN and INPUT.RESIZE_TEST to []"
            )
        if not 0 <= flip_prob <= 1:
            raise ValueError(f"INPUT.FLIP_PROB is {flip_prob}, expected a probability, 0 to 1")
        if boxes2d not in BOXES2D_RULES:
            raise ValueError(f"INPUT.BOXES2D is {boxes2d!r}, expected one of {', '.join(BOXES2D_RULES)}")
        self.is_train = is_train
        self.resize_within = (resize_within[0], resize_within[1]) if resize_within else None
        self.warp_size = (warp_size[1], warp_size[0]) if warp_size else None
        self.augmentation = augmentation if is_train else None
        self.flip_prob = flip_prob if is_train else 0.0
        self.distort = PhotometricDistortion() if is_train and photometric else None
        self.boxes2d, self.reduced_decoding = boxes2d, reduced_decoding

    @classmethod
    def from_config(cls, cfg: FvcoreNode, *, is_train: bool) -> dict[str, Any]:
        """Returns the constructor's arguments.

        Args:
            cfg: the config; INPUT is read.
            is_train: whether the samples are for training.

        Raises:
            ValueError: INPUT.AFFINE.SCALE is not two numbers.
        """
        inp, affine = cfg.INPUT, cfg.INPUT.AFFINE
        if len(affine.SCALE) != 2:
            raise ValueError(f"INPUT.AFFINE.SCALE is {list(affine.SCALE)}, expected [least, largest]")
        low, high = affine.SCALE
        augmentation = AffineAugmentation(affine.PROB, affine.SHIFT, (low, high), affine.STEP)
        return {
            "is_train": is_train,
            "resize_within": tuple(inp.RESIZE_TRAIN if is_train else inp.RESIZE_TEST),
            "warp_size": tuple(affine.SIZE) if affine.ENABLED else (),
            "augmentation": augmentation if affine.ENABLED else None,
            "flip_prob": inp.FLIP_PROB,
            "photometric": inp.PHOTOMETRIC,
            "boxes2d": inp.BOXES2D,
            "reduced_decoding": inp.REDUCED_DECODING,
        }

    def __call__(
        self, index: MonoIndex, i: int, rng: np.random.Generator, cache: ImageCache | None = None
    ) -> dict[str, Any]:
        """Makes the sample of an image.

        Args:
            index: the dataset.
            i: the image.
            rng: the source of augmentation.
            cache: images that were read before; None reads every time.

        Returns:
            image: uint8 (3, H, W), RGB, augmented.
            cam2img: float32 (4, 4), metres in the camera's frame to pixels of ``image``.
            image_to_original: float32 (3, 3), pixels of ``image`` to pixels of the file.
            sample_id, image_id: str, the same; file_name: str; height, width: int, of the file.
            boxes, labels, boxes2d and, where the layout has them, attributes: the objects that show in
                ``image``, see ``annotations``; only of annotated images.
            affine_augmented: bool, where images are warped.
            What the record's ``extra`` holds, arrays as tensors; it is that of the file, mirrored or not.

        Raises:
            FileNotFoundError: the image is missing.
            ValueError: the image cannot be decoded, has another size than the dataset says, or is for
                training and not annotated.
        """
        record = index.record(i)
        if self.is_train and record.boxes is None:
            raise ValueError(
                f"image {record.image_id} has no labels; DATASETS.TRAIN must name annotated splits"
            )
        read = self._read(record) if cache is None else cache.get(i, lambda: self._read(record))
        if self.distort is not None:
            read = self.distort(read, rng)
        view = self._augment(view_of(record, read), rng)
        sample = {
            "image": view.image.contiguous(),
            "cam2img": view.cam2img.float(),
            "image_to_original": view.image_to_original.float(),
            "sample_id": record.image_id,
            "image_id": record.image_id,
            "file_name": record.file_name,
            "height": record.height,
            "width": record.width,
            **{key: _as_tensor(value) for key, value in record.extra.items()},
        }
        if self.warp_size is not None:
            sample["affine_augmented"] = view.affine_augmented
        return {**sample, **self.annotations(record, view)}

    def annotations(self, record: MonoRecord, view: TransformedImage) -> dict[str, Any]:
        """Returns the objects that show in a view.

        An object shows where its image-plane box, clipped to the image, has an area. The box is the one
        around the projected corners, or the layout's own (INPUT.BOXES2D).

        Args:
            record: the image's.
            view: what became of it.

        Returns:
            boxes: CameraBoxes3D (n, 7 or 9) float32, rotation_y in [-pi, pi). labels: int64 (n,). boxes2d:
            float32 (n, 4) in pixels of the view. attributes: int64 (n,), where the layout has them. Nothing
            where the image is not annotated.

        Raises:
            ValueError: INPUT.BOXES2D asks for boxes that the layout does not have.
        """
        if view.boxes is None or record.labels is None:
            return {}
        if self.boxes2d == "label" and view.boxes2d is None:
            raise ValueError(
                f"INPUT.BOXES2D is 'label', but image {record.image_id} has no image-plane boxes of its own, "
                "as KITTI's have; set it to 'projected'"
            )
        boxes2d = view.projected_boxes2d() if self.boxes2d == "projected" else view.clipped_boxes2d()
        boxes2d = boxes2d.float()
        shown = (boxes2d[:, 2:] > boxes2d[:, :2]).all(dim=1)
        boxes = view.boxes[shown].to(torch.float32)
        boxes.tensor[:, 6] = wrap_angle(boxes.rotation_y)
        objects = {"boxes": boxes, "labels": record.labels[shown], "boxes2d": boxes2d[shown]}
        if record.attributes is not None:
            objects["attributes"] = record.attributes[shown]
        return objects

    def cached_shape(self, index: MonoIndex, i: int) -> tuple[int, ...]:
        """Returns the shape of what an image cache holds of an image.

        Args:
            index: the data set.
            i: the image.

        Returns:
            (3, height, width) after the resize, before the augmentation.
        """
        return (3, *fitting_size(index.image_size(i), self.resize_within))

    def _read(self, record: MonoRecord) -> Tensor:
        """Decodes and resizes: all that is the same every time."""
        size = (record.height, record.width)
        wanted = fitting_size(size, self.resize_within)
        needed = wanted if self.reduced_decoding else None
        image = read_image(record.file_name, f"frame {record.image_id!r}", size, "its dataset", needed)
        return resize(image, wanted)

    def _augment(self, view: TransformedImage, rng: np.random.Generator) -> TransformedImage:
        if rng.random() < self.flip_prob:
            view = flip(view)
        if self.warp_size is not None:
            view = warp(view, self.warp_size, rng, self.augmentation)
        return view


def _check_size(key: str, size: Sequence[int]) -> None:
    if size and not (len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        raise ValueError(f"{key} is {list(size)}, expected [width, height] in whole pixels above 0, or []")


def _as_tensor(value: Any) -> Any:
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
