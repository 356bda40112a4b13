"""What methods that compare the predictions of dense detectors share."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.methods.base import DistillMethod
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import MonoKnowledge
from bevkd2.modeling.losses import average_over_ranks
from bevkd2.modeling.mono.inputs import MonoTargets
from bevkd2.ops import Distance, content_mask, prediction_loss
from bevkd2.structures import CameraBoxes3D

Head = Literal["auto", "on", "off"]
"""Values of the key HEAD."""


def both_dense(student: FeatureShapes, teacher: FeatureShapes) -> bool:
    """Returns whether both detectors predict at the cells of image features, not by queries or in BEV.

    Args:
        student: what the student can show.
        teacher: what the teacher can.
    """
    return all(shapes.decoder is None and shapes.bev is None for shapes in (student, teacher))


def with_head(
    method: type[DistillMethod[Any]], cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes
) -> bool:
    """Returns whether a method with the key HEAD compares predictions: "auto" means for dense detectors.

    Args:
        method: the method's class, which names its node in errors.
        cfg: its node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: an unknown value, or "on" for detectors that are not dense.
    """
    head, dense = method.one_of(cfg, "HEAD", get_args(Head)), both_dense(student, teacher)
    method.check(
        dense or head != "on",
        "HEAD",
        "on, but the predictions of detectors that are not dense monocular ones do not correspond; use auto "
        "or off",
    )
    return dense and head != "off"


def check_same_locations(node: str, student: MonoKnowledge, teacher: MonoKnowledge) -> None:
    """Checks that two heads predict the same classes at the same locations.

    Args:
        node: the method's node below DISTILL, for the message.
        student: with logits (B, Q, K) and the shapes of their levels.
        teacher: likewise.

    Raises:
        ValueError: they do not.
    """
    logits, logits_t = student.filled("logits"), teacher.filled("logits")
    if logits.shape != logits_t.shape or student.level_shapes != teacher.level_shapes:
        raise ValueError(
            f"DISTILL.{node}: the student predicts {tuple(logits.shape)} (batch, locations, classes) on "
            f"levels {student.level_shapes}, the teacher {tuple(logits_t.shape)} on {teacher.level_shapes}; "
            "give both heads the same levels and classes"
        )


def content_of_locations(knowledge: MonoKnowledge) -> Tensor:
    """Returns (B, Q) bool: locations whose cell sees the image and not its padding."""
    sizes, strides = knowledge.filled("image_sizes"), knowledge.filled("grid").strides
    levels = zip(knowledge.level_shapes, strides, strict=True)
    return torch.cat([content_mask(sizes, shape, stride).flatten(1) for shape, stride in levels], dim=1)


def class_losses(
    student: MonoKnowledge,
    teacher: MonoKnowledge,
    objects: Tensor,
    content: Tensor,
    distance: Distance,
    temperature: float,
    weights: tuple[float, float],
) -> Tensor:
    """Computes the mean distance of class predictions at objects' and at other locations.

    The numbers of locations are averaged over all processes.

    Args:
        student: with ``logits``.
        teacher: with ``logits``.
        objects: (B, Q) bool.
        content: (B, Q) bool: the locations that count.
        distance: see :func:`bevkd2.ops.class_distance`.
        temperature: of the KLs.
        weights: of the two means.

    Returns:
        A scalar: the weighted sum of both.
    """
    logits = student.filled("logits")
    losses = prediction_loss(
        logits,
        teacher.filled("logits"),
        objects,
        None,
        content,
        distance=distance,
        temperature=temperature,
        object_weight=weights[0],
        background_weight=weights[1],
    )
    counts = torch.stack([(objects & content).sum(), (~objects & content).sum()]).float()
    shares = counts / average_over_ranks(counts, counts.device)
    return losses.objects * shares[0] + losses.background * shares[1]


def boxes_of_locations(targets: MonoTargets) -> Tensor:
    """Returns (B, Q, 7) annotated box of the object of each location; a unit box for background."""
    rows = []
    for boxes, assigned in zip(targets.boxes, targets.assignment(), strict=True):
        tensor = boxes.tensor[:, :7]
        background = tensor.new_tensor([[0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0]])
        rows.append(torch.cat([tensor, background])[assigned])  # index -1: background
    return torch.stack(rows)


def corner_distance(boxes: Tensor, others: Tensor, beta: float = 0.0) -> Tensor:
    """Computes the mean smooth-L1 difference of the coordinates of the corners of boxes.

    Args:
        boxes: (..., 7) as in CameraBoxes3D.
        others: of the same shape.
        beta: metres below which a difference is squared; 0: the absolute difference.

    Returns:
        (...) metres, float32 (float64 where the boxes are).
    """
    ours, theirs = (CameraBoxes3D(tensor.reshape(-1, 7)).corners() for tensor in (boxes, others))
    difference = F.smooth_l1_loss(ours, theirs, reduction="none", beta=beta)
    return difference.mean(dim=(1, 2)).view(boxes.shape[:-1])
