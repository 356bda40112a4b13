"""TAR: task-adaptive regularisation (Sun et al., 2020, arXiv 2006.13108)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.masks import draw_masks
from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.dense import (
    boxes_of_locations,
    check_same_locations,
    class_losses,
    content_of_locations,
    corner_distance,
    with_head,
)
from bevkd2.distill.methods.feature import FeatureMethod, summed_distance
from bevkd2.distill.schedule import Schedule
from bevkd2.distill.sources import FeaturePair
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import Knowledge, MonoKnowledge
from bevkd2.modeling.losses import average_over_ranks
from bevkd2.modeling.mono.inputs import MonoTargets

_ALPHA = 3.0  # of draw_masks: the deviation is half of the side, as published


@register_method
class TAR(FeatureMethod):
    """Computes imitation under Gaussians of objects, of classes, and of boxes where the teacher's are better.

    features = mean over maps of 1 / (2 C sum of M) sum M (f(F_s) - F_t)^2, where M is a Gaussian in the
    objects' boxes whose deviations are half of the sides, 0 outside of the boxes, and an object is on the
    neck's level of its size alone. Its weight falls to 0 over FEATURE_DECAY of the training. classes = 1 / N
    sum over objects' locations of the cross entropy of both sigmoids. boxes = 1 / N sum over those objects'
    locations at which the teacher's box is nearer to the annotation than the student's of the distance of
    both boxes. N is the number of objects' locations in the batch of all processes.

    Deviations: the entropy of the teacher, a constant, is taken off the cross entropy, so that a perfect
    student has loss 0. Boxes are in 3D; their distance is the mean difference of the corners' coordinates in
    metres, for annotated and predicted ones alike. The Gaussian is centred on a cell. The weights of the
    three parts could not be verified in the paper's text; they are 1 here. Detectors of object queries, which
    do not correspond, have the features alone.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: sources that the two do not share, channels that differ without an adapter, or HEAD on for
            detectors that are not dense.
    """

    node = "TAR"
    adapter_default = "conv3x3"
    adapter_std = 1e-4

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.with_head = with_head(type(self), cfg, student, teacher)
        self.feature_schedule = Schedule(0.0, float(cfg.FEATURE_DECAY), f"DISTILL.{self.node}.FEATURE")
        self.feature_weight = float(cfg.FEATURE_WEIGHT)
        self.class_weight, self.box_weight = float(cfg.CLASS_WEIGHT), float(cfg.BOX_WEIGHT)
        if self.with_head:
            self.knowledge = MonoKnowledge
            self.requires = self.requires | {"logits", "grid", "boxes"}

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods and the weights of the parts."""
        super().add_config(node)
        node.FEATURE_WEIGHT = 1.0  # of the features
        node.FEATURE_DECAY = 1.0  # share of the iterations, at the end, over which FEATURE_WEIGHT falls to 0
        node.HEAD = "auto"  # classes and boxes: "on" | "off" | "auto": on for dense detectors
        node.CLASS_WEIGHT = 1.0  # of the classes
        node.BOX_WEIGHT = 1.0  # of the boxes, in metres

    def forward(self, student: Knowledge, teacher: Knowledge, targets: Any) -> dict[str, Tensor]:
        """Returns the losses of features, classes and boxes."""
        losses = {"tar_features": self.compare(self.pairs(student, teacher), student, targets)}
        if self.with_head:
            assert isinstance(student, MonoKnowledge) and isinstance(teacher, MonoKnowledge)
            check_same_locations(self.node, student, teacher)
            objects, content = targets.assignment() >= 0, content_of_locations(student)
            losses["tar_classes"] = class_losses(
                student, teacher, objects, content, "kl", 1.0, (self.class_weight, 0.0)
            )
            losses["tar_boxes"] = self._box_loss(student, teacher, targets, objects & content)
        return losses

    def compare(self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any) -> Tensor:
        """Returns the loss of the features."""
        shapes = [pair.shape for pair in pairs]
        gaussians, boxes = (
            draw_masks(
                self.sources,
                shapes,
                student,
                targets,
                kind,
                alpha=_ALPHA,
                rounding="truncated",
                one_level=True,
            )
            for kind in ("gaussian", "foreground")
        )
        masks = [gaussian * box for gaussian, box in zip(gaussians, boxes, strict=True)]
        sums = torch.stack([mask.sum(dtype=torch.float32) for mask in masks])
        counts = average_over_ranks(sums, sums.device)
        ours, theirs = self.adapted(pairs), [pair.teacher for pair in pairs]
        factor = self.feature_weight * self.feature_schedule.factor(self.progress) / (2 * len(pairs))
        scales = [factor / features.shape[1] / count for features, count in zip(ours, counts, strict=True)]
        return summed_distance(ours, theirs, scales, masks)

    def _box_loss(
        self, student: MonoKnowledge, teacher: MonoKnowledge, targets: MonoTargets, counted: Tensor
    ) -> Tensor:
        ours, theirs = student.filled("boxes").float(), teacher.filled("boxes").float()
        counted = counted & ~targets.affine_augmented[:, None]
        with torch.no_grad():
            annotated = boxes_of_locations(targets)
            better = corner_distance(theirs, annotated) < corner_distance(ours, annotated)
        # Locations that do not count have the annotated box twice: distance 0, gradient 0.
        used = (better & counted)[..., None]
        distance = corner_distance(ours.where(used, annotated), theirs.where(used, annotated))
        count = average_over_ranks(counted.sum(), counted.device)
        return self.box_weight * distance.sum() / count
