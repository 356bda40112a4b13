"""The base class of methods that compare class predictions, of dense heads and of object queries."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Any, ClassVar, Literal, get_args

import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.inherit import Inheritable
from bevkd2.distill.methods.base import DistillMethod
from bevkd2.distill.methods.dense import content_of_locations
from bevkd2.modeling.detector import Detector, FeatureShapes
from bevkd2.modeling.knowledge import Knowledge, MonoKnowledge
from bevkd2.modeling.losses import average_over_ranks

Locations = Literal["all", "objects", "confident"]
_QUERY_PARAMETERS = ("object_queries", "reference_points.weight", "reference_points.bias")


class ClassPredictionMethod(DistillMethod[Knowledge]):
    """Base of methods on ``logits``: location i of the student is compared with location i of the teacher.

    Cells of dense heads correspond where both heads have the same levels. Object queries correspond only
    where both decoders start from the same queries and reference points: inherit ``object_queries`` and
    ``reference_points`` with DISTILL.INHERIT. A warning in the log says where they differ; query i of the one
    is then another object than query i of the other, and the loss means little.

    Args:
        cfg: the method's node: TEMPERATURE and, unless the method fixes it, LOCATIONS.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: a setting that cannot be, or another number of queries, or other levels of dense heads.
    """

    requires = frozenset({"logits"})
    fixed_locations: ClassVar[Locations | None] = None
    """The locations that the method compares; None: LOCATIONS says it."""

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.locations: Locations = self.fixed_locations or self.one_of(cfg, "LOCATIONS", get_args(Locations))
        self.temperature = float(cfg.TEMPERATURE)
        self.check(self.temperature > 0, "TEMPERATURE", f"{self.temperature}; expected a number above 0")

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds WEIGHT, its schedule, TEMPERATURE and LOCATIONS."""
        super().add_config(node)
        if cls.fixed_locations is None:
            # "all", without padding | "objects": those with an object, of monocular detectors | "confident":
            # all, weighted by the teacher's largest class probability
            node.LOCATIONS = "all"
        node.TEMPERATURE = 1.0  # divides both models' logits

    def attach(self, student: Detector[Any, Any, Any], teacher: Detector[Any, Any, Any]) -> None:
        """Checks that the locations of the two can correspond."""
        super().attach(student, teacher)
        detectors = {"student": student, "teacher": teacher}
        dense = [issubclass(detector.knowledge, MonoKnowledge) for detector in detectors.values()]
        self.check(
            dense[0] == dense[1],
            "",
            f"one of {type(student).__name__} and {type(teacher).__name__} predicts at all locations and the "
            "other does not; use two detectors of one kind",
        )
        self.check(
            self.locations != "objects" or dense[0],
            "LOCATIONS",
            f"objects, but a {type(student).__name__} assigns its queries to objects by its predictions; use "
            "all or confident",
        )
        shapes = student.feature_shapes(), teacher.feature_shapes()
        if dense[0]:
            strides = [[level.stride for level in shape.fpn] for shape in shapes]
            self.check(
                strides[0] == strides[1],
                "",
                f"the student predicts on levels of strides {strides[0]}, the teacher of {strides[1]}; give "
                "both heads the same levels",
            )
        queries = [shape.decoder.queries for shape in shapes if shape.decoder is not None]
        self.check(
            len(set(queries)) < 2,
            "",
            f"the student and the teacher have {queries} object queries; give both the same number",
        )
        if queries:
            _warn_of_other_queries(type(self).__name__, student, teacher)

    def forward(self, student: Knowledge, teacher: Knowledge, targets: Any) -> Tensor | dict[str, Tensor]:
        """Compares the logits of the last layer, or of all locations.

        Raises:
            ValueError: logits of other locations or classes.
        """
        ours, theirs = student.filled("logits"), teacher.filled("logits")
        self.check(
            ours.shape == theirs.shape,
            "",
            f"the student predicts {tuple(ours.shape)} (batch, locations, classes), the teacher "
            f"{tuple(theirs.shape)}; give both the same images, levels or queries, and classes",
        )
        weights = location_weights(self.locations, student, teacher, targets)
        return self.compare(ours, theirs.detach(), weights, targets)

    @abstractmethod
    def compare(
        self, student: Tensor, teacher: Tensor, weights: Tensor, targets: Any
    ) -> Tensor | dict[str, Tensor]:
        """Computes the loss of the logits.

        Args:
            student: (B, Q, K), with gradient.
            teacher: (B, Q, K).
            weights: (B, Q) float32.
            targets: the student's.

        Returns:
            A scalar, or scalars by name.
        """


def location_weights(kind: Locations, student: Knowledge, teacher: Knowledge, targets: Any) -> Tensor:
    """Returns the weights (B, Q) float32 of the locations; in the padding of images they are 0.

    Args:
        kind: "all": 1 everywhere; "objects": 1 where the student's assignment gives the location an object;
            "confident": the teacher's largest class probability.
        student: its knowledge; of a dense head, it says where the padding is.
        teacher: its knowledge.
        targets: the student's; "objects" reads their assignment.
    """
    logits: Tensor = teacher.filled("logits")
    weights: Tensor
    if kind == "objects":
        weights = (targets.assignment() >= 0).float()
    elif kind == "confident":
        weights = logits.detach().float().sigmoid().amax(dim=-1)
    else:
        weights = torch.ones(logits.shape[:2], device=logits.device)
    if isinstance(student, MonoKnowledge):
        weights = weights * content_of_locations(student)
    return weights


def mean_over_locations(values: Tensor, weights: Tensor) -> Tensor:
    """Returns the sum of weights * values by the sum of the weights over all processes, at least 1.

    Args:
        values: (B, Q).
        weights: (B, Q); values of weight 0 are ignored, even if NaN.
    """
    counted = torch.where(weights > 0, weights * values, 0.0)
    return counted.sum() / average_over_ranks(weights.sum(), weights.device)


def _warn_of_other_queries(name: str, student: Any, teacher: Any) -> None:
    if not (isinstance(student, Inheritable) and isinstance(teacher, Inheritable)):
        return
    ours, theirs = student.inheritable(), teacher.inheritable()
    differ = [
        key
        for key in _QUERY_PARAMETERS
        if key in ours and key in theirs and not _equal(ours[key].detach(), theirs[key].detach())
    ]
    if differ:
        logging.getLogger(__name__).warning(
            "DISTILL.METHODS: %s compares query i of the student with query i of the teacher, but their %s "
            "differ; add object_queries and reference_points to DISTILL.INHERIT.PARAMS",
            name,
            ", ".join(differ),
        )


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.equal(ours, theirs.to(ours.device))
