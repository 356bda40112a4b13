"""From a frame of the index to the sample that a model gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.d2 import configurable
from bevkd2.data.image_cache import ImageCache
from bevkd2.data.image_files import read_image
from bevkd2.data.nuscenes.index import NuScenesIndex
from bevkd2.data.transforms import PhotometricDistortion, resize, scaled_size
from bevkd2.structures import Boxes3D, wrap_angle

HISTORIES = ("random", "latest")


class NuScenesMapper:
    """Reads images and assembles samples (see ``__call__``)."""

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        image_scale: float,
        photometric: bool,
        queue_length: int,
        point_range: Sequence[float],
        history: str = "random",
        reduced_decoding: bool = False,
    ) -> None:
        """Settings of a mapper.

        Args:
            is_train: training samples carry history frames and are augmented; test samples do neither.
            image_scale: resize factor of both image sides.
            photometric: whether training images are distorted.
            queue_length: key frames in a training sample, the current one included.
            point_range: (x0, y0, z0, x1, y1, z1) in metres; boxes whose centre is outside in x or y are left
                out.
            history: how the history frames are chosen, see ``history_frames``.
            reduced_decoding: decode JPEGs at a fraction of their size where the resized image is that small.

        Raises:
            ValueError: a scale or a length that is not positive, or an unknown ``history``.
        """
        if image_scale <= 0:
            raise ValueError(f"INPUT.IMAGE_SCALE is {image_scale}, expected a positive factor")
        if queue_length < 1:
            raise ValueError(
                f"INPUT.QUEUE_LENGTH is {queue_length}, expected 1 (no history) or more key frames"
            )
        if history not in HISTORIES:
            raise ValueError(f"INPUT.HISTORY is {history!r}, expected one of {', '.join(HISTORIES)}")
        self.is_train = is_train
        self.history, self.reduced_decoding = history, reduced_decoding
        self.image_scale = image_scale
        self.queue_length = queue_length if is_train else 1
        self.bev_limits = (point_range[0], point_range[1], point_range[3], point_range[4])
        self.distort = PhotometricDistortion() if is_train and photometric else None

    @classmethod
    def from_config(cls, cfg: FvcoreNode, *, is_train: bool) -> dict[str, Any]:
        """Returns the constructor's arguments.

        Args:
            cfg: the config; INPUT is read.
            is_train: whether the samples are for training.
        """
        return {
            "is_train": is_train,
            "image_scale": cfg.INPUT.IMAGE_SCALE,
            "photometric": cfg.INPUT.PHOTOMETRIC,
            "queue_length": cfg.INPUT.QUEUE_LENGTH,
            "point_range": cfg.INPUT.POINT_RANGE,
            "history": cfg.INPUT.HISTORY,
            "reduced_decoding": cfg.INPUT.REDUCED_DECODING,
        }

    def __call__(
        self, index: NuScenesIndex, i: int, rng: np.random.Generator, cache: ImageCache | None = None
    ) -> dict[str, Any]:
        """Makes the sample of a frame.

        Args:
            index: the dataset.
            i: the frame.
            rng: the source of augmentation and of the choice of history frames.
            cache: images that were read before; None reads every time.

        Returns:
            sample_id, sample_token: str, the same; scene_token: str.
            timestamp: int, microseconds.
            images: uint8 (C, 3, H, W), RGB, resized.
            lidar2img: float32 (C, 4, 4) from metres in LIDAR_TOP at the sample's time to pixels of
                ``images``.
            can_bus: float64 (18,), absolute values.
            lidar2global, ego2global: float64 (4, 4).
            history: list of dicts with these keys up to can_bus, oldest first; empty at test time.
            boxes: Boxes3D (n, 9) that have lidar or radar points and lie in range; labels: int64 (n,).

        Raises:
            FileNotFoundError: an image is missing.
            ValueError: an image cannot be decoded or has another size than the tables say.
        """
        chosen = self.history_frames(index, i, rng)
        # A stream per frame, newest first: a frame is distorted alike however long the history is.
        streams = rng.spawn(len(chosen) + 1)
        history = [
            self._frame(index, j, stream, cache)
            for j, stream in zip(chosen, reversed(streams[1:]), strict=True)
        ]
        sample = self._frame(index, i, streams[0], cache)
        sample["lidar2global"] = torch.from_numpy(index.lidar2global[i].copy())
        sample["ego2global"] = torch.from_numpy(index.ego2global[i].copy())
        sample["history"] = history
        sample["boxes"], sample["labels"] = self.annotations(index, i)
        return sample

    def history_frames(self, index: NuScenesIndex, i: int, rng: np.random.Generator) -> list[int]:
        """Chooses the history of a frame.

        "random", as BEVFormer: of the ``queue_length`` key frames before it one is dropped at random.
        "latest": the ``queue_length - 1`` before it, so that the gap is always one key frame, as in
        evaluation. What is not of the same scene is left out: the published code keeps such frames, but its
        model discards them at the change of scene.

        Args:
            index: the dataset.
            i: the frame.
            rng: the source of randomness.

        Returns:
            At most queue_length - 1 frames of the scene, oldest first.
        """
        candidates = i - self.queue_length + np.arange(self.queue_length)
        kept = candidates[1:] if self.history == "latest" else np.sort(rng.permutation(candidates)[1:])
        return [int(j) for j in kept if j >= index.scene_starts[i]]

    def annotations(self, index: NuScenesIndex, i: int) -> tuple[Boxes3D, Tensor]:
        """Returns the boxes to be found in a frame.

        Args:
            index: the dataset.
            i: the frame.

        Returns:
            boxes: (n, 9), yaw in [-pi, pi), unknown velocities zero (as the published code trains).
            labels: int64 (n,).
        """
        where = index.annotations(i)
        boxes = index.boxes3d(i)
        points = torch.from_numpy(index.num_lidar_pts[where] + index.num_radar_pts[where])
        keep = (points > 0) & boxes.in_range(self.bev_limits)
        boxes = boxes[keep]
        boxes.tensor[:, 6] = wrap_angle(boxes.yaw)
        boxes.tensor[:, 7:9] = boxes.velocity.nan_to_num(nan=0.0)
        return boxes, torch.from_numpy(index.labels[where].copy())[keep]

    def image_size(self, index: NuScenesIndex, i: int, camera: int) -> tuple[int, int]:
        """Returns (height, width) of a camera's image in a sample.

        Args:
            index: the data set.
            i: the frame.
            camera: the camera's place in ``index.cameras``.
        """
        height, width = index.image_sizes[i, camera].tolist()
        return scaled_size((height, width), self.image_scale)

    def cached_shape(self, index: NuScenesIndex, i: int) -> tuple[int, ...]:
        """Returns the shape of what an image cache holds of a frame.

        Args:
            index: the data set.
            i: the frame.

        Returns:
            (C, 3, height, width), all cameras in the size of the first.
        """
        return (len(index.cameras), 3, *self.image_size(index, i, 0))

    def read_images(self, index: NuScenesIndex, i: int) -> Tensor:
        """Reads, decodes and resizes the images of a frame.

        Args:
            index: the data set.
            i: the frame.

        Returns:
            uint8 (C, 3, H, W), RGB, in the order of ``index.cameras``.

        Raises:
            ValueError: the cameras' images differ in size after resizing, or one cannot be decoded.
        """
        frame, images = index[i], []
        for camera, path in enumerate(frame["file_names"]):
            height, width = index.image_sizes[i, camera].tolist()
            owner = f"sample {frame['sample_token']!r}"
            wanted = self.image_size(index, i, camera)
            needed = wanted if self.reduced_decoding else None
            image = read_image(path, owner, (height, width), "sample_data.json", needed)
            images.append(resize(image, wanted))
        if len({image.shape for image in images}) > 1:
            sizes = ", ".join(f"{m.shape[1]} x {m.shape[2]}" for m in images)
            raise ValueError(
                f"the images of sample {frame['sample_token']!r} differ in size after resizing ({sizes}); "
                "choose cameras of one size with INPUT.CAMERAS"
            )
        return torch.stack(images)

    def _frame(
        self, index: NuScenesIndex, i: int, rng: np.random.Generator, cache: ImageCache | None
    ) -> dict[str, Any]:
        """Returns the keys of any frame, current or history; each image is distorted independently."""
        images = (
            self.read_images(index, i) if cache is None else cache.get(i, lambda: self.read_images(index, i))
        )
        if self.distort is not None:
            images = torch.stack([self.distort(image, rng) for image in images])
        sizes = [self.image_size(index, i, camera) for camera in range(len(index.cameras))]
        frame = index[i]
        return {
            "sample_id": frame["sample_token"],
            "sample_token": frame["sample_token"],
            "scene_token": frame["scene_token"],
            "timestamp": frame["timestamp"],
            "images": images,
            "lidar2img": torch.from_numpy(index.lidar2img(i, sizes)).float(),
            "can_bus": torch.from_numpy(frame["can_bus"].copy()),
        }
