"""CrossKD: head features through the teacher's head (Wang et al., CVPR 2024, arXiv 2306.11369)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor, nn

from bevkd2.distill.methods.base import DistillMethod, register_method
from bevkd2.modeling.detector import Detector, FeatureShapes, HeadTowers
from bevkd2.modeling.knowledge import MonoKnowledge
from bevkd2.modeling.losses import average_over_ranks
from bevkd2.modeling.mono.detector import MonoDetector
from bevkd2.modeling.mono.inputs import MonoTargets

_EPSILON = 1e-6  # added to deviations, as released


@register_method
class CrossKD(DistillMethod[MonoKnowledge]):
    """Computes the distance of the teacher's predictions from those of its head on the student's features.

    The student's features after convolution LAYER of both towers, before the activation, get every channel's
    mean and deviation of the teacher's, over all cells of a level and the batch of this process. The rest of
    the teacher's head, frozen, makes cross-head predictions of them, through which the gradient flows to the
    student. With p the classes' probabilities and N the assigned locations of the batch, 1 at least, averaged
    over the processes,

    L_cls = CLS_WEIGHT / N * sum over locations and classes of |p_cross - p_t|^BETA * BCE(p_cross, p_t)
    L_box = BOX_WEIGHT / N * sum over locations of w * mean over the code of smooth L1(cross, t)

    where w is the teacher's highest probability. Padding counts as any cell, as released.

    The released code for FCOS is followed, with its weights. Its box loss is the IoU of boxes in the image,
    its divisor the sum of the centre-ness; a head of 3D boxes has no such box, so ours is the smooth L1 of
    the head's box code in its own units, with the number of assigned locations. FCOS's towers have four
    convolutions, of which the teacher runs the last two; here LAYER is 1, of PGD's two and of SMOKE's one.
    Where the widths differ a 1x1 convolution per tower, which all levels share, is trained with the student.

    Args:
        cfg: the method's node.
        student: the shape of its head's towers is read.
        teacher: of its.

    Raises:
        ValueError: a detector whose head has no towers, widths that differ without an adapter, or a setting
            that cannot be.
    """

    node = "CROSS_KD"
    knowledge = MonoKnowledge
    requires = frozenset({"towers", "grid"})

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        ours, theirs = self._towers("student", student), self._towers("teacher", teacher)
        self.layer, self.beta = int(cfg.LAYER), cfg.BETA
        self.cls_weight, self.box_weight = cfg.CLS_WEIGHT, cfg.BOX_WEIGHT
        self.check(self.beta >= 1, "BETA", f"{self.beta}; expected 1 at least")
        shared = min(ours.layers, theirs.layers)
        self.check(
            1 <= self.layer <= shared,
            "LAYER",
            f"{self.layer}; the student's towers have {ours.layers} convolutions and the teacher's "
            f"{theirs.layers}, so expected 1 to {shared}",
        )
        kind = self.one_of(cfg, "ADAPTER", ("auto", "conv1x1", "none"))
        same = ours.channels == theirs.channels
        self.check(
            same or kind != "none",
            "ADAPTER",
            f"none, but the towers have {ours.channels} channels in the student and {theirs.channels} in the "
            "teacher; use auto",
        )
        plain = kind == "none" or (kind == "auto" and same)
        self.adapters = nn.ModuleList(
            nn.Identity() if plain else nn.Conv2d(ours.channels, theirs.channels, 1) for _ in range(2)
        )

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds WEIGHT, its schedule, and where the student's features enter the teacher's head."""
        super().add_config(node)
        node.LAYER = 1  # convolution of the towers, counted from 1, after which the features are handed over
        node.ADAPTER = "auto"  # "conv1x1" | "none" | "auto": conv1x1 where the towers' channels differ
        node.CLS_WEIGHT = 0.4  # weight of the classes
        node.BETA = 1.0  # exponent of the distance that weighs the cross-entropy
        node.BOX_WEIGHT = 0.75  # weight of the boxes; 0: classes alone

    def attach(self, student: Detector[Any, Any, Any], teacher: Detector[Any, Any, Any]) -> None:
        """Keeps the teacher, whose head runs.

        Raises:
            ValueError: detectors of another kind, with other classes or heads.
        """
        super().attach(student, teacher)
        for role, detector in (("student", student), ("teacher", teacher)):
            self.check(
                isinstance(detector, MonoDetector),
                "",
                f"the {role}, a {type(detector).__name__}, is no MonoDetector, whose continue_head() runs "
                "its head on given features; leave the method out",
            )
        assert isinstance(student, MonoDetector) and isinstance(teacher, MonoDetector)
        self.check(
            type(student).continue_head is type(teacher).continue_head,
            "",
            f"the student is a {type(student).__name__} and the teacher a {type(teacher).__name__}, whose "
            "heads differ; use two detectors of one family",
        )
        self.check(
            student.num_classes == teacher.num_classes,
            "",
            f"the student predicts {student.num_classes} classes, the teacher {teacher.num_classes}; train "
            "both with the same DATASETS.CLASSES",
        )
        self._detectors = (student, teacher)

    def forward(
        self, student: MonoKnowledge, teacher: MonoKnowledge, targets: MonoTargets
    ) -> dict[str, Tensor]:
        """Returns the losses of classes and of boxes.

        Raises:
            ValueError: the levels of the two have different shapes.
        """
        if student.level_shapes != teacher.level_shapes:
            raise ValueError(
                f"DISTILL.{self.node}: the student's levels have {student.level_shapes} rows and columns, "
                f"the teacher's {teacher.level_shapes}; give both the same images and strides"
            )
        expert = self._detectors[1]
        theirs = teacher.filled("towers").after(self.layer)
        with torch.no_grad():
            target = expert.continue_head(theirs[0], theirs[1], self.layer)
        ours = [
            _aligned([adapter(level) for level in levels], aims)
            for adapter, levels, aims in zip(
                self.adapters, student.filled("towers").after(self.layer), theirs, strict=True
            )
        ]
        cross = expert.continue_head(ours[0], ours[1], self.layer)
        positives = (targets.assignment() >= 0).sum()
        count = average_over_ranks(positives, positives.device)
        logits, probabilities = cross.logits, target.logits.sigmoid()
        with torch.autocast(logits.device.type, enabled=False):
            entropy = F.binary_cross_entropy_with_logits(logits, probabilities, reduction="none")
            classes = ((logits.sigmoid() - probabilities).abs().pow(self.beta) * entropy).sum() / count
            boxes = F.smooth_l1_loss(cross.boxes, target.boxes, reduction="none").mean(-1)
            boxes = (probabilities.amax(-1) * boxes).sum() / count
        return {"cross_kd_cls": self.cls_weight * classes, "cross_kd_box": self.box_weight * boxes}

    def _towers(self, role: str, shapes: FeatureShapes) -> HeadTowers:
        self.check(
            shapes.towers is not None,
            "",
            f"the {role} has no dense head of towers; use detectors that have one, such as PGD, FCOS3D or "
            "SMOKE, or leave the method out",
        )
        assert shapes.towers is not None
        return shapes.towers


def _aligned(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[Tensor]:
    """Gives every channel of every level the teacher's mean and deviation; (B, C, h, w) float32 each."""
    levels = []
    for student, teacher in zip(ours, theirs, strict=True):
        student = student if student.dtype == torch.float64 else student.float()
        std, mean = torch.std_mean(student, dim=(0, 2, 3), keepdim=True)
        std_t, mean_t = torch.std_mean(teacher.detach().to(student), dim=(0, 2, 3), keepdim=True)
        levels.append((student - mean) / (std + _EPSILON) * std_t + mean_t)
    return levels
