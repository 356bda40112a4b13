"""Distillation of centre heat maps (response distillation of UniDistill, CVPR 2023, arXiv 2303.15083)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.masks import draw_content, draw_masks
from bevkd2.distill.methods.base import DistillMethod, register_method
from bevkd2.distill.sources import FeatureSource, resized_to
from bevkd2.modeling.detector import Detector, FeatureShapes
from bevkd2.modeling.knowledge import BEVKnowledge, Knowledge, MonoKnowledge
from bevkd2.modeling.losses import average_over_ranks
from bevkd2.ops import class_distance

_DISTANCES = ("l1", "l2", "kl")
_MASKS = ("gaussian", "none")
_FIELDS = {"bev": "bev_heatmap", "image": "image_heatmap", "dense": "logits"}
_KEYS = {"bev": "BEV_HEATMAP_WEIGHT", "image": "IMAGE_HEATMAP_WEIGHT"}


@register_method
class Heatmap(DistillMethod[Knowledge]):
    """Computes the distance of the heat maps' probabilities about the objects.

    The sum of M * d over cells / sum of M, where d is the absolute distance of the probabilities, summed over
    the classes, and M the Gaussians of the annotated boxes: UniDistill's classification response with its
    weight. With MASK none, M is 1 everywhere but in the padding. Deviations: the Gaussians follow the
    annotated boxes (see :mod:`bevkd2.ops.pixel_weights`; UniDistill's are CenterPoint's, which do not turn),
    and the maps are compared class by class instead of their maximum over the classes.

    MAPS names the maps: ``bev`` and ``image`` are those of the auxiliary heads of a BEV detector
    (MODEL.BEVFORMER.AUX), which both models must have; ``dense`` is the class map of a detector that finds
    objects as its peaks on one level (SMOKE). Empty: bev and image, or dense, whichever the detector is for.
    The maps are summed. The sums are those of all processes' batches together; a batch without objects has
    no loss.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: an unknown map, or one that a model lacks.
    """

    node = "HEATMAP"

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.distance, self.mask = self.one_of(cfg, "DISTANCE", _DISTANCES), self.one_of(cfg, "MASK", _MASKS)
        self.alpha = float(cfg.GAUSSIAN_ALPHA)
        self.check(self.alpha > 0, "GAUSSIAN_ALPHA", f"{self.alpha}; expected a number above 0")
        self.maps = list(cfg.MAPS) or (["dense"] if student.bev is None else ["bev", "image"])
        unknown = [name for name in self.maps if name not in _FIELDS]
        self.check(not unknown, "MAPS", f"{unknown}; expected names among {', '.join(_FIELDS)}")
        self.check(
            self.maps == ["dense"] or "dense" not in self.maps,
            "MAPS",
            f"{self.maps}; dense is of monocular detectors, bev and image of BEV detectors; name one kind",
        )
        self.knowledge = MonoKnowledge if self.maps == ["dense"] else BEVKnowledge
        self.requires = frozenset(_FIELDS[name] for name in self.maps)
        if "bev" in self.maps:
            self.requires = self.requires | {"bev_range"}

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds WEIGHT, its schedule, MAPS, DISTANCE and MASK."""
        super().add_config(node)
        node.WEIGHT = 10.0  # as published; multiplied by DISTILL.FACTOR, which was 1
        node.MAPS = []  # "bev" | "image" | "dense"; []: what the detector is for
        node.DISTANCE = "l1"  # of probabilities | "l2" | "kl" (of the classes' sigmoids)
        node.MASK = "gaussian"  # about the annotated objects | "none": everywhere
        node.GAUSSIAN_ALPHA = 1.0  # width of the Gaussians: a box's sides are at 3 / alpha deviations

    def attach(self, student: Detector[Any, Any, Any], teacher: Detector[Any, Any, Any]) -> None:
        """Checks that both detectors have the maps."""
        for role, detector in (("student", student), ("teacher", teacher)):
            for name in self.maps:
                if name == "dense":
                    levels = len(detector.feature_shapes().fpn)
                    self.check(
                        levels == 1,
                        "MAPS",
                        f"dense, but the {role}, a {type(detector).__name__}, classifies on {levels} levels "
                        "and has no heat map; use HintonKD or DepthGuidedPrediction instead",
                    )
                else:
                    self.check(
                        _FIELDS[name] in detector.filled_fields(),
                        "MAPS",
                        f"{name}, but the {role} has no such head; set MODEL.BEVFORMER.AUX.{_KEYS[name]} "
                        "above 0 in its config (and train it so), or name other MAPS",
                    )
        super().attach(student, teacher)

    def forward(self, student: Knowledge, teacher: Knowledge, targets: Any) -> Tensor:
        """Returns the loss.

        Raises:
            ValueError: maps of other classes or, on the BEV grid, of other sizes.
        """
        ours, theirs = self._read(student), self._read(teacher)
        losses = []
        for name, source in self._sources(student, ours).items():
            theirs_resized = self._resized(name, ours[name], theirs[name])
            mask = self._mask(source, ours[name], student, targets)
            losses.append(self._loss(ours[name], theirs_resized.detach(), mask))
        return torch.stack(losses).sum()

    def _read(self, knowledge: Knowledge) -> dict[str, Tensor]:
        """Returns logits (R, K, h, w) by the names of the maps."""
        if isinstance(knowledge, MonoKnowledge):
            (shape,) = knowledge.level_shapes
            return {"dense": knowledge.filled("logits").transpose(1, 2).unflatten(2, shape)}
        return {name: knowledge.filled(_FIELDS[name]) for name in self.maps}

    def _sources(self, student: Knowledge, maps: Mapping[str, Tensor]) -> dict[str, FeatureSource]:
        """Returns the maps as sources, for which masks can be drawn."""
        sources = {}
        for name, logits in maps.items():
            grid = (logits.shape[-2], logits.shape[-1]) if name == "bev" else None
            stride = None if name == "bev" else student.filled("fpn_strides")[0]
            channels = logits.shape[1]
            sources[name] = FeatureSource(name, _FIELDS[name], None, None, channels, channels, stride, grid)
        return sources

    def _resized(self, name: str, student: Tensor, teacher: Tensor) -> Tensor:
        same = student.shape == teacher.shape
        self.check(
            same or (name != "bev" and student.shape[:2] == teacher.shape[:2]),
            "MAPS",
            f"{name}: the student's map is {tuple(student.shape)} (images or samples, classes, rows, "
            f"columns), the teacher's {tuple(teacher.shape)}; give both the same classes and grid",
        )
        return resized_to(teacher, student)

    def _mask(self, source: FeatureSource, logits: Tensor, student: Knowledge, targets: Any) -> Tensor:
        """Returns M, (R, h, w)."""
        shape = (logits.shape[-2], logits.shape[-1])
        if self.mask == "gaussian":
            return draw_masks([source], [shape], student, targets, "gaussian", alpha=self.alpha)[0]
        (content,) = draw_content([source], [shape], student)
        return torch.ones_like(logits[:, 0], dtype=torch.float32) if content is None else content

    def _loss(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        ours, theirs = student.movedim(1, -1), teacher.movedim(1, -1)
        if self.distance == "l1":
            distance = (ours.float().sigmoid() - theirs.float().sigmoid()).abs().sum(dim=-1)
        else:
            distance = class_distance(ours, theirs, "l2" if self.distance == "l2" else "kl")
        return (mask * distance).sum() / average_over_ranks(mask.sum(), mask.device)
