"""Monocular detectors as modules from tensors to tensors: images of any size up to the graph's."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bevkd2.modeling.deployable import DeployableDetector, Port, example_images
from bevkd2.modeling.mono.grid import DenseGrid
from bevkd2.modeling.mono.inputs import MonoInputs

if TYPE_CHECKING:
    from bevkd2.modeling.mono.detector import MonoDetector

BOX_COLUMNS = "x, y, z of the gravity centre, length, width, height (m), rotation_y (rad, KITTI's)"
"""What the columns of a monocular detector's boxes are, for the metadata."""


class DeployableMono(DeployableDetector):
    """Base: inputs, normalisation and padding. A subclass names the outputs and decodes."""

    kind = "mono"

    def __init__(self, detector: MonoDetector, image_size: tuple[int, int]) -> None:
        """Names the inputs.

        Args:
            detector: in eval mode.
            image_size: height and width of the largest image; rounded up to what the detector pads to.
        """
        super().__init__()
        step = max(detector.pixels.size_divisibility, 1)
        height, width = (-(-side // step) * step for side in image_size)
        self.detector: Any = detector
        self.image_size = (height, width)
        self.inputs = (
            Port(
                "images",
                (3, height, width),
                torch.uint8,
                "RGB, each in the top left corner; the graph normalises, and sets the rest to the padding",
            ),
            Port("image_sizes", (2,), torch.float32, "height and width of each image in pixels"),
            Port(
                "cam2img",
                (4, 4),
                torch.float32,
                "metres in the camera's frame to (u * depth, v * depth, depth, 1), pixels of images",
            ),
        )

    def prepare(self, images: Tensor, image_sizes: Tensor, cam2img: Tensor) -> MonoInputs:
        """Returns the detector's inputs: pixels normalised, and 0 outside of each image.

        Args:
            images: uint8 (B, 3, H, W), RGB, with the image at the top left.
            image_sizes: (B, 2) height and width of each image in pixels.
            cam2img: (B, 4, 4) metres to pixels of ``images``.
        """
        pixels = self.detector.pixels([images])[0]
        height, width = pixels.shape[-2:]
        rows = torch.arange(height, device=images.device) < image_sizes[:, :1]
        columns = torch.arange(width, device=images.device) < image_sizes[:, 1:]
        pixels = pixels.where((rows[:, :, None] & columns[:, None])[:, None], 0.0)
        return MonoInputs(
            images=pixels,
            image_sizes=image_sizes,
            cam2img=cam2img,
            grid=DenseGrid.of_image((height, width), self.detector.neck.strides, images.device),
        )

    def examples(self, batch: int) -> tuple[Tensor, ...]:
        """Returns noise of the full size, seen by a camera much like KITTI's."""
        height, width = self.image_size
        cam2img = torch.eye(4)
        cam2img[0, 0] = cam2img[1, 1] = 0.58 * width
        cam2img[0, 2], cam2img[1, 2] = width / 2, height / 2
        sizes = torch.tensor([height, width], dtype=torch.float32)
        return example_images(batch, 3, height, width), sizes.repeat(batch, 1), cam2img.repeat(batch, 1, 1)

    @abstractmethod
    def forward(self, images: Tensor, image_sizes: Tensor, cam2img: Tensor) -> tuple[Tensor, ...]:
        """Runs the images; see ``inputs`` and ``outputs``."""

    def description(self) -> dict[str, Any]:
        """Returns the frame."""
        return {"frame": "the camera's, rectified: x right, y down, z forward"}
