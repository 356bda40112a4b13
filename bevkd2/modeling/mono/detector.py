"""What all monocular detectors share: an image backbone, a neck, pixels, and Detectron2's ``forward``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bevkd2.d2 import Backbone, ShapeSpec
from bevkd2.modeling.detector import Detector, FeatureShapes, Sample
from bevkd2.modeling.knowledge import WANTS, MonoKnowledge
from bevkd2.modeling.mono.inputs import MonoInputs, MonoTargets, collate_images, collate_targets
from bevkd2.modeling.necks.neck import Neck
from bevkd2.modeling.pixels import PixelNormalizer


class MonoDetector(Detector):
    """Base of detectors that read one image at a time.

    A subclass implements ``extract``, ``losses`` and ``inference``, and extends ``targets`` where its
    assignment of objects to locations does not depend on predictions.
    """

    knowledge = MonoKnowledge
    image_backbone: Backbone
    neck: Neck
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        image_backbone: Backbone,
        neck: Neck,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        pixel_format: str = "RGB",
        size_divisibility: int = 32,
    ) -> None:
        """Put the shared parts together.

        Args:
            image_backbone: images (B, 3, H, W) to features by name.
            neck: those to a list of levels.
            num_classes: K.
            pixel_mean: of the images, in the order of ``pixel_format``, 0..255.
            pixel_std: likewise.
            pixel_format: "RGB" | "BGR", what the backbone was trained on.
            size_divisibility: images are padded to a multiple of it.
        """
        super().__init__()
        self.image_backbone, self.neck = image_backbone, neck
        self.num_classes = num_classes
        self.pixel_format, self.size_divisibility = pixel_format, size_divisibility
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean, dtype=torch.float32), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std, dtype=torch.float32), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.pixel_mean.device

    def feature_shapes(self) -> FeatureShapes:
        """Returns the channels and strides of backbone and neck."""
        levels = [ShapeSpec(channels=self.neck.out_channels, stride=stride) for stride in self.neck.strides]
        return FeatureShapes(backbone=self.image_backbone.output_shape(), fpn=levels)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses in training, detections in evaluation.

        Args:
            batched_inputs: one mapping an image: ``image`` (3, H, W) uint8 RGB, ``cam2img`` (4, 4),
                ``image_id``, and in training ``boxes``, ``labels``, ``boxes2d`` [, ``attributes``].

        Returns:
            In training, name -> scalar. In evaluation one dict an image with ``boxes`` (CameraBoxes3D),
            ``scores`` (k,) and ``labels`` (k,).
        """
        if self.training:
            inputs = self.preprocess(batched_inputs)
            return self.losses(self.extract(inputs), self.targets(batched_inputs, inputs))
        with torch.no_grad():
            inputs = self.preprocess(batched_inputs)
            return self.inference(self.extract(inputs), inputs)

    def preprocess(self, batched_inputs: Sequence[Sample]) -> MonoInputs:
        """Moves to the device, normalises, pads and batches.

        Raises:
            KeyError: a sample lacks a key.
            ValueError: an image or a calibration of the wrong shape or type.
        """
        normalize = PixelNormalizer(
            self.pixel_mean, self.pixel_std, self.pixel_format == "BGR", self.size_divisibility
        )
        return collate_images(batched_inputs, normalize)

    def targets(self, batched_inputs: Sequence[Sample], inputs: MonoInputs) -> MonoTargets:
        """Annotations on the device.

        Raises:
            KeyError: a sample without annotations.
            ValueError: a label that is no class, or a box behind the camera.
        """
        return collate_targets(batched_inputs, inputs, self.num_classes)

    def features(self, inputs: MonoInputs, wants: frozenset[str]) -> tuple[list[Tensor], MonoKnowledge]:
        """Runs backbone and neck.

        Args:
            inputs: of :meth:`preprocess`.
            wants: "backbone" and "fpn" are kept in the knowledge.

        Returns:
            The neck's levels (B, C, h, w), finest first, and a knowledge with the shared fields filled.

        Raises:
            ValueError: an unknown want.
        """
        if wants - WANTS:
            raise ValueError(
                f"extract: unknown wants {sorted(wants - WANTS)}, expected among {sorted(WANTS)}"
            )
        backbone = self.image_backbone(inputs.images)
        levels = self.neck(backbone)
        knowledge = MonoKnowledge(
            backbone=backbone if "backbone" in wants else None,
            fpn=levels if "fpn" in wants else None,
            fpn_strides=self.neck.strides,
            image_sizes=inputs.image_sizes,
            level_shapes=[(level.shape[-2], level.shape[-1]) for level in levels],
        )
        return levels, knowledge
