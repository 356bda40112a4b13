"""GID: general instance distillation (Dai et al., CVPR 2021, arXiv 2103.02340)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.dense import (
    both_dense,
    check_same_locations,
    class_losses,
    content_of_locations,
    corner_distance,
)
from bevkd2.distill.methods.feature import FeatureMethod
from bevkd2.distill.methods.relations import relative_distances
from bevkd2.distill.sources import FeaturePair
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import Knowledge, MonoKnowledge
from bevkd2.modeling.losses import average_over_ranks
from bevkd2.modeling.mono.grid import DenseGrid
from bevkd2.modeling.mono.inputs import MonoTargets
from bevkd2.ops.precision import widen

_POOLED = 10  # cells per side of a pooled instance
_SAMPLES = 2  # per side of a pooled cell
_CANONICAL = (
    224 / 16
)  # pixels of side per pixel of stride: an instance of 224 pixels is on the level of stride 16
_LEAST_RELATED = 3  # instances; with fewer, distances over their mean are constant


@dataclasses.dataclass(frozen=True)
class Instances:
    """G general instances of a batch."""

    images: Tensor
    """(G,) int64: which image each is in."""
    boxes: Tensor
    """(G, 4) x1, y1, x2, y2 in pixels."""


@register_method
class GID(FeatureMethod):
    """Computes imitation in general instances: boxes on which teacher and student disagree most.

    The score of a location is the largest difference of both models' class probabilities, its box the 2D box
    of the model whose probability is the higher; after suppression (IoU above NMS_THRESHOLD) the best
    INSTANCES of every image remain (Eq. 1 to 3). features = 1 / (100 G) sum of (f(F_s) - F_t)^2 in the
    instances, pooled to 10 x 10 from the level of their size (Eq. 4); relation = mean over pairs of smooth-L1
    of the pooled features' distances, each model's divided by their mean (Eq. 5 and 6); classes and boxes = 1
    / N sum over the locations of the instances of the cross entropy of sigmoids, and of smooth-L1 of the
    boxes (Eq. 7). G and N are counted over all processes; a relation is one within the batch of a process.

    Deviations: the published code does not apply its adapter (it asks for the empty list), here it works, one
    for all levels where their channels agree. The entropy of the teacher, a constant, is taken off the cross
    entropy. Locations of an instance are those of its level in its box and within RADIUS strides of its
    centre, since there are no anchors; the boxes compared are those in 3D, by the mean over the coordinates
    of their corners in metres, and in images from which no depth is learned (SMOKE's augmentation) they are
    not. On CUDA, torchvision's pooling adds its gradients in any order, and the suppression waits for the
    device. Where the head has no 2D boxes, those around the projected 3D boxes stand for them.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: detectors that are not dense, sources that are no levels of the neck, or settings that
            cannot be.
    """

    node = "GID"
    adapter_default = "conv3x3"

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        self.check(
            both_dense(student, teacher),
            "",
            "it compares predictions at equal locations, which detectors of object queries lack; leave GID "
            "out of DISTILL.METHODS, or use dense detectors (FCOS3D, PGD, SMOKE)",
        )
        super().__init__(cfg, student, teacher)
        others = [source.name for source in self.sources if source.field != "fpn"]
        self.check(not others, "SOURCES", f"{', '.join(others)}; expected levels of the neck, such as fpn")
        self.check(cfg.INSTANCES >= 1, "INSTANCES", f"{cfg.INSTANCES}; expected 1 at least")
        self.check(
            0 < cfg.NMS_THRESHOLD < 1,
            "NMS_THRESHOLD",
            f"{cfg.NMS_THRESHOLD}; expected an IoU between 0 and 1",
        )
        self.check(cfg.RADIUS > 0, "RADIUS", f"{cfg.RADIUS}; expected strides above 0")
        self.instances, self.candidates = int(cfg.INSTANCES), int(cfg.CANDIDATES)
        self.threshold, self.least_side = float(cfg.NMS_THRESHOLD), float(cfg.LEAST_SIDE)
        self.radius, self.beta = float(cfg.RADIUS), float(cfg.BOX_BETA)
        self.feature_weight, self.relation_weight = float(cfg.FEATURE_WEIGHT), float(cfg.RELATION_WEIGHT)
        self.class_weight, self.box_weight = float(cfg.CLASS_WEIGHT), float(cfg.BOX_WEIGHT)
        self.strides = [int(source.stride or 1) for source in self.sources]
        self.knowledge = MonoKnowledge
        self.requires = self.requires | {"logits", "grid", "boxes", "boxes2d"}
        if len({(source.student_channels, source.teacher_channels) for source in self.sources}) == 1:
            self.adapters = nn.ModuleList([self.adapters[0]] * len(self.sources))

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods, the weights of the parts, and how instances are found."""
        super().add_config(node)
        node.FEATURE_WEIGHT = 5e-4  # of the pooled features
        node.RELATION_WEIGHT = 40.0  # of the relations
        node.CLASS_WEIGHT = 0.1  # of the classes
        node.BOX_WEIGHT = 1.0  # of the boxes
        node.BOX_BETA = 0.1  # metres below which the loss of boxes is a square
        node.INSTANCES = 10  # of every image, at most
        node.CANDIDATES = 3000  # locations of every image that are passed to the suppression
        node.NMS_THRESHOLD = 0.3  # IoU of 2D boxes
        node.LEAST_SIDE = 10.0  # pixels; smaller boxes are no instances
        node.RADIUS = 1.5  # strides around an instance's centre in which its locations are

    def forward(self, student: Knowledge, teacher: Knowledge, targets: Any) -> dict[str, Tensor]:
        """Returns the losses of features, relations, classes and boxes."""
        assert isinstance(student, MonoKnowledge) and isinstance(teacher, MonoKnowledge)
        check_same_locations(self.node, student, teacher)
        content = content_of_locations(student)
        found = self.find(student, teacher, content)
        # A location whose prediction is NaN is in no instance; it is compared, so that the loss is NaN.
        unknown = (student.filled("logits") + teacher.filled("logits")).isnan().any(dim=2)
        chosen = (self.locations_of(found, student.filled("grid"), len(content)) | unknown) & content
        features, relation = self._compare_pooled(self.pairs(student, teacher), found)
        return {
            "gid_features": self.feature_weight * features,
            "gid_relation": self.relation_weight * relation,
            "gid_classes": class_losses(
                student, teacher, chosen, content, "kl", 1.0, (self.class_weight, 0.0)
            ),
            "gid_boxes": self.box_weight * self._box_loss(student, teacher, targets, chosen),
        }

    @torch.no_grad()
    def find(self, student: MonoKnowledge, teacher: MonoKnowledge, content: Tensor) -> Instances:
        """Finds the general instances.

        Args:
            student: with ``logits`` and ``boxes2d``.
            teacher: the teacher's.
            content: (B, Q) bool: locations that are not padding.
        """
        ours, theirs = student.filled("logits").float().sigmoid(), teacher.filled("logits").float().sigmoid()
        best = (theirs - ours).abs().max(dim=2)
        difference = (theirs - ours).gather(2, best.indices[..., None])
        boxes = torch.where(difference > 0, teacher.filled("boxes2d"), student.filled("boxes2d")).float()
        large = ((boxes[..., 2:] - boxes[..., :2]) > self.least_side).all(dim=2)
        # torchvision's pooling reads at an invalid address where a corner is not finite.
        usable = content & large & boxes.isfinite().all(dim=2)
        scores = best.values.where(usable, -1.0)
        images, kept_boxes = [], []
        for row, (row_scores, row_boxes) in enumerate(zip(scores, boxes, strict=True)):
            top = row_scores.topk(min(self.candidates, len(row_scores)))
            candidates = top.indices[top.values > 0]
            kept = nms(row_boxes[candidates], row_scores[candidates], self.threshold)[: self.instances]
            kept_boxes.append(row_boxes[candidates[kept]])
            images.append(torch.full((len(kept),), row, device=boxes.device))
        return Instances(torch.cat(images), torch.cat(kept_boxes))

    def locations_of(self, found: Instances, grid: DenseGrid, batch: int) -> Tensor:
        """Returns which locations are inside instances and near their centres, on the level of their size.

        Args:
            found: the G instances.
            grid: the locations of one image, Q.
            batch: number of images, B.

        Returns:
            (B, Q) bool.
        """
        x, y = grid.locations.unbind(1)
        boxes = found.boxes[:, :, None]
        centers = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
        near = (grid.locations[None] - centers[:, None]).abs().amax(
            dim=2
        ) <= self.radius * grid.location_strides
        inside = (x > boxes[:, 0]) & (x < boxes[:, 2]) & (y > boxes[:, 1]) & (y < boxes[:, 3])
        strides = torch.tensor(grid.strides, device=x.device)
        of_level = grid.location_strides == strides[_level_of(found.boxes, grid.strides)][:, None]
        chosen = (near & inside & of_level).float()
        return chosen.new_zeros(batch, len(x)).index_add(0, found.images, chosen) > 0

    def _compare_pooled(self, pairs: Sequence[FeaturePair], found: Instances) -> tuple[Tensor, Tensor]:
        """Returns the losses of features and of relations."""
        levels = _level_of(found.boxes, self.strides)
        adapted = self.adapted(pairs)
        with torch.autocast(found.boxes.device.type, enabled=False):
            ours = self._pool([widen(features) for features in adapted], found, levels)
            theirs = self._pool([widen(pair.teacher) for pair in pairs], found, levels)
            count = average_over_ranks(len(found.boxes), ours.device)
            features = (ours - theirs).square().sum() / (count * _POOLED**2)
            if len(ours) < _LEAST_RELATED:
                return features, ours.sum() * 0
            related = F.smooth_l1_loss(
                relative_distances(ours.flatten(1)), relative_distances(theirs.flatten(1)), reduction="sum"
            )
        return features, related / (len(ours) * (len(ours) - 1))

    def _pool(self, maps: Sequence[Tensor], found: Instances, levels: Tensor) -> Tensor:
        """Returns (G, C, 10, 10)."""
        regions = torch.cat([found.images[:, None].to(found.boxes), found.boxes], dim=1).to(maps[0].dtype)
        pooled = maps[0].new_zeros(len(regions), maps[0].shape[1], _POOLED, _POOLED)
        for level, (features, stride) in enumerate(zip(maps, self.strides, strict=True)):
            here = roi_align(
                features, regions, _POOLED, spatial_scale=1 / stride, sampling_ratio=_SAMPLES, aligned=True
            )
            pooled = here.where((levels == level)[:, None, None, None], pooled)
        return pooled

    def _box_loss(
        self, student: MonoKnowledge, teacher: MonoKnowledge, targets: MonoTargets, chosen: Tensor
    ) -> Tensor:
        ours, theirs = student.filled("boxes").float(), teacher.filled("boxes").float()
        chosen = chosen & ~targets.affine_augmented[:, None]
        # Elsewhere the teacher's box is compared with itself: distance 0, gradient 0.
        distance = corner_distance(ours.where(chosen[..., None], theirs), theirs, self.beta)
        return distance.sum() / average_over_ranks(chosen.sum(), chosen.device)


def _level_of(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """Returns (G,) int64: the level of an instance by its size (FPN, Eq. 1)."""
    sides = boxes[:, 2:] - boxes[:, :2]
    wanted = (sides.prod(dim=1).clamp(min=1e-6).sqrt() / _CANONICAL).log2() + 1e-6
    octaves = torch.tensor([math.log2(stride) for stride in strides], device=boxes.device)
    return (wanted.floor()[:, None] - octaves).abs().argmin(dim=1)
