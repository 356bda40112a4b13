"""What methods on the object queries of detection transformers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.layers import Check, map_layers
from bevkd2.modeling.bev.criterion import HungarianMatcher
from bevkd2.modeling.bev.decoder import CODE_SIZE, DecoderOutput
from bevkd2.modeling.bev.detector import MultiViewDetector
from bevkd2.modeling.detector import DecoderShape, Detector, FeatureShapes
from bevkd2.modeling.knowledge import BEVKnowledge

# BEVFormer's weights of the L1 terms of its box codes.
CODE_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)


def decoder_shapes(
    student: FeatureShapes, teacher: FeatureShapes, check: Check, shared: str = ""
) -> tuple[DecoderShape, DecoderShape]:
    """Returns the shapes of both decoders.

    Args:
        student: shapes of the student's features.
        teacher: of the teacher's.
        check: the method's own check, which names its node in errors.
        shared: the key by which one decoder reads the other's queries, which then need the same width;
            empty: none does.

    Raises:
        ValueError: a detector without object queries, or queries of different widths.
    """
    for role, shapes in (("student", student), ("teacher", teacher)):
        check(
            shapes.decoder is not None,
            "",
            f"the {role} has no decoder of object queries; use detectors that have one, such as BEVFormer, "
            "or leave the method out",
        )
    ours, theirs = student.decoder, teacher.decoder
    assert ours is not None and theirs is not None
    check(
        not shared or ours.channels == theirs.channels,
        shared,
        f"both decoders read the same queries, but the student's have {ours.channels} channels and the "
        f"teacher's {theirs.channels}; give both detectors the same MODEL.FPN.OUT_CHANNELS",
    )
    return ours, theirs


def decoder_layers(
    ours: DecoderShape,
    theirs: DecoderShape,
    layer_map: Sequence[Sequence[int]],
    check: Check,
    key: str = "LAYER_MAP",
) -> tuple[list[int], list[int]]:
    """Returns which student's decoder layers learn, and the teacher's layer of each.

    Args:
        ours: of the student.
        theirs: of the teacher.
        layer_map: pairs; empty: spread evenly.
        check: the method's own check, which names its node in errors.
        key: of ``layer_map``.

    Raises:
        ValueError: a pair that names a layer that is not there.
    """
    pairs = map_layers(ours.layers, theirs.layers, layer_map, check, key)
    return [i for i, _ in pairs], [j for _, j in pairs]


def both_decoders(
    student: Detector[Any, Any, Any], teacher: Detector[Any, Any, Any], check: Check
) -> tuple[MultiViewDetector, MultiViewDetector]:
    """Returns the detectors, whose decoders a method runs.

    Args:
        student: the detector that is trained.
        teacher: the frozen one.
        check: of the method; raises with the name of its node.

    Raises:
        ValueError: a detector that cannot decode given queries, or different classes.
    """
    for role, detector in (("student", student), ("teacher", teacher)):
        check(
            isinstance(detector, MultiViewDetector),
            "",
            f"the {role}, a {type(detector).__name__}, is no MultiViewDetector, whose decode() runs its "
            "decoder on given queries; leave the method out",
        )
    assert isinstance(student, MultiViewDetector) and isinstance(teacher, MultiViewDetector)
    check(
        student.num_classes == teacher.num_classes,
        "",
        f"the student predicts {student.num_classes} classes, the teacher {teacher.num_classes}; train both "
        "with the same DATASETS.CLASSES",
    )
    return student, teacher


def decode_teacher_queries(
    detector: MultiViewDetector, knowledge: BEVKnowledge, teacher: BEVKnowledge
) -> DecoderOutput:
    """Runs the student's decoder on the teacher's queries, from the teacher's initial reference points.

    Args:
        detector: the student.
        knowledge: the student's.
        teacher: its object queries and reference points are read.
    """
    queries: Tensor = teacher.filled("object_queries")
    points: list[Tensor] = teacher.filled("decoder_reference_points")
    return detector.decode(knowledge, queries.detach(), points[0].detach())


def code_weights(cfg: FvcoreNode, check: Check) -> Tensor:
    """Returns the (10,) float32 weights of CODE_WEIGHTS, in the order of the box code.

    Args:
        cfg: the method's node.
        check: of the method; raises with the name of its node.

    Raises:
        ValueError: not ten numbers.
    """
    found = list(cfg.CODE_WEIGHTS)
    check(len(found) == CODE_SIZE, "CODE_WEIGHTS", f"{len(found)} numbers, expected {CODE_SIZE}")
    return torch.tensor(found, dtype=torch.float32)


def foreground_scores(class_logits: Tensor) -> Tensor:
    """Computes the highest probability of any class, without gradient.

    Args:
        class_logits: (..., K) before the sigmoid.

    Returns:
        (...), in [0, 1].
    """
    scores: Tensor = class_logits.detach().sigmoid().amax(-1)
    return scores


def code_distance(ours: Tensor, theirs: Tensor, weights: Tensor) -> Tensor:
    """Computes the weighted L1 distance of box codes.

    Args:
        ours: (..., 10), with gradient.
        theirs: (..., 10), without.
        weights: (10,).

    Returns:
        (...).
    """
    return ((ours - theirs.detach()).abs() * weights.to(ours)).sum(-1)


@torch.no_grad()
def match_queries(
    matcher: HungarianMatcher, ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Matches the student's queries one to one with the teacher's, whose predictions count as objects.

    The class of a teacher's query is its most probable one.

    Args:
        matcher: the cost.
        ours: (L, B, Q, K) logits and (L, B, Q, 10) codes of L layers.
        theirs: (L, B, Q', K) and (L, B, Q', 10).

    Returns:
        The student's and the teacher's queries of the pairs, (L, B, min(Q, Q')) int64 each.
    """
    (logits, codes), (logits_t, codes_t) = ours, theirs
    layers, samples = logits.shape[:2]
    labels = list(logits_t.argmax(-1).flatten(0, 1))
    pairs = matcher(
        logits.flatten(0, 1)[None], codes.flatten(0, 1)[None], labels, list(codes_t.float().flatten(0, 1))
    )[0]
    indices = (torch.stack(side).unflatten(0, (layers, samples)) for side in zip(*pairs, strict=True))
    found, objects = indices
    return found, objects


def take_queries(values: Tensor, indices: Tensor) -> Tensor:
    """Takes rows of the queries.

    Args:
        values: (L, B, Q, C) of L layers.
        indices: (L, B, n) int64, in [0, Q).

    Returns:
        (L, B, n, C).
    """
    return values.gather(2, indices.unsqueeze(-1).expand(-1, -1, -1, values.shape[-1]))
