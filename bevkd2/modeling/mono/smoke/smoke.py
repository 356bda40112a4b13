"""SMOKE (Liu et al., arXiv 2002.10111): one keypoint per object, from which its box is regressed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bevkd2.config import CfgNode
from bevkd2.d2 import META_ARCH_REGISTRY, configurable
from bevkd2.modeling.detector import FeatureShapes, HeadTowers
from bevkd2.modeling.knowledge import MonoKnowledge
from bevkd2.modeling.mono.detector import MonoDetector
from bevkd2.modeling.mono.grid import flatten_levels
from bevkd2.modeling.mono.head import HeadPredictions, TowerFeatures
from bevkd2.modeling.mono.inputs import MonoInputs, MonoTargets
from bevkd2.modeling.mono.lift import boxes_around
from bevkd2.modeling.mono.smoke.config import smoke_arguments
from bevkd2.modeling.mono.smoke.decode import SmokeCoder, boxes_of_all, detect
from bevkd2.modeling.mono.smoke.deployable import DeployableSmoke
from bevkd2.modeling.mono.smoke.head import SmokeHead
from bevkd2.modeling.mono.smoke.losses import SmokeLossWeights, smoke_losses
from bevkd2.modeling.mono.smoke.targets import assign_cells, heatmap_targets, objects_of

_PREDICTED = frozenset({"logits", "outputs", "depth", "direct_depth", "boxes", "boxes2d"})


@META_ARCH_REGISTRY.register()
class SMOKE(MonoDetector):
    """A keypoint detector on one fine feature map.

    Its group normalisation sees the whole padded image, so images of a batch should be of one size:
    INPUT.AFFINE makes them so.
    """

    @configurable
    def __init__(
        self,
        *,
        head: SmokeHead,
        coder: SmokeCoder,
        loss_weights: SmokeLossWeights,
        min_overlap: float = 0.7,
        max_detections: int = 100,
        score_threshold: float = 0.25,
        **shared: Any,
    ) -> None:
        """Keeps the parts.

        Args:
            head: the neck's one level to a heat map and box codes.
            coder: box codes to boxes.
            loss_weights: factors of the losses.
            min_overlap: decides the radius of the heat map's Gaussians.
            max_detections: most detections per image.
            score_threshold: detections must be above it.
            **shared: of :class:`MonoDetector`.
        """
        super().__init__(**shared)
        self.head, self.coder, self.loss_weights = head, coder, loss_weights
        self.min_overlap = min_overlap
        self.max_detections, self.score_threshold = max_detections, score_threshold

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Builds the parts that MODEL.SMOKE describes."""
        return smoke_arguments(cfg)

    def feature_shapes(self) -> FeatureShapes:
        """Returns the shapes of backbone, neck and the head's branches before their last convolutions."""
        towers = HeadTowers(self.head.feature_channels, len(self.head.class_branch.convs))
        return dataclasses.replace(super().feature_shapes(), towers=towers)

    def continue_head(
        self, class_features: Sequence[Tensor], box_features: Sequence[Tensor], layer: int
    ) -> HeadPredictions:
        """Runs the head from its branches' convolution ``layer`` on; boxes are :attr:`SmokeOutputs.codes`."""
        (classes,), (boxes,) = class_features, box_features
        outputs = self.head.resume(classes, boxes, layer)
        return HeadPredictions(flatten_levels([outputs.logits]), flatten_levels([outputs.codes]))

    def assign(self, targets: MonoTargets) -> Tensor:
        """Returns (B, Q) int64: the object whose projected centre lies in each cell; fills ``objects``."""
        (shape,) = targets.grid.shapes
        targets.objects = objects_of(targets, self.coder.stride)
        return assign_cells(targets.objects, len(targets.boxes), shape)

    def filled_fields(self) -> frozenset[str]:
        """Returns also the boxes and the towers; the head has one depth."""
        return super().filled_fields() - {"probabilistic_depth"} | {"boxes", "boxes2d", "towers"}

    def extract(
        self, inputs: MonoInputs, wants: frozenset[str] = frozenset(), state: None = None
    ) -> MonoKnowledge:
        """Runs backbone, neck and head.

        Args:
            inputs: of :meth:`preprocess`.
            wants: fields to fill beside those that are not costly.
            state: none; single images have no past.

        Raises:
            ValueError: an unknown want.
        """
        return self._extract(inputs, self.knowledge.fields_to_fill(wants, partial=False))

    def extract_only(self, inputs: MonoInputs, wants: frozenset[str], state: None = None) -> MonoKnowledge:
        """Runs only those branches of the head that ``wants`` need; one predicts depth and boxes."""
        return self._extract(inputs, self.knowledge.fields_to_fill(wants, partial=True))

    def _extract(self, inputs: MonoInputs, fills: frozenset[str]) -> MonoKnowledge:
        (level,), knowledge = self.features(inputs, fills)
        kept = knowledge.towers = TowerFeatures() if "towers" in fills else None
        if fills.isdisjoint(_PREDICTED):
            if kept is not None:
                self.head.run_towers(level, kept)
            return knowledge
        if fills.isdisjoint(_PREDICTED - {"logits"}) and kept is None:
            knowledge.logits = flatten_levels([self.head.class_branch(level)])
            return knowledge
        outputs = self.head(level, kept)
        knowledge.outputs = outputs
        knowledge.logits = flatten_levels([outputs.logits])
        knowledge.direct_depth = self.coder.depth(outputs.codes[:, 0].flatten(1))
        knowledge.depth = knowledge.direct_depth
        if not fills.isdisjoint({"boxes", "boxes2d"}):
            boxes = boxes_of_all(outputs, self.coder, inputs.cam2img)
            knowledge.boxes = boxes if "boxes" in fills else None
            knowledge.boxes2d = boxes_around(boxes, inputs) if "boxes2d" in fills else None
        return knowledge

    def losses(self, knowledge: MonoKnowledge, targets: MonoTargets) -> dict[str, Tensor]:
        """Returns losses of the heat map and of the disentangled corners."""
        objects, outputs = targets.objects, knowledge.outputs
        images, classes, *shape = outputs.logits.shape
        heatmap = heatmap_targets(objects, images, classes, tuple(shape), self.coder.stride, self.min_overlap)
        return smoke_losses(outputs, objects, heatmap, targets.cam2img, self.coder, self.loss_weights)

    def deployable(self, image_size: tuple[int, int]) -> DeployableSmoke:
        """Returns the form that can be exported."""
        return DeployableSmoke(self, image_size)

    @torch.no_grad()
    def inference(self, knowledge: MonoKnowledge, inputs: MonoInputs) -> list[dict[str, Any]]:
        """Returns detections, one dict per image with ``boxes``, ``scores``, ``labels``."""
        return detect(
            knowledge.outputs,
            self.coder,
            cam2img=inputs.cam2img,
            image_sizes=inputs.image_sizes,
            max_detections=self.max_detections,
            score_threshold=self.score_threshold,
        )
