"""Perspective-induced feature imitation (depth-guided distillation, Eq. 2-4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor, nn

from bevkd2.d2 import ShapeSpec
from bevkd2.distill.methods.base import DistillMethod, register_method
from bevkd2.distill.sources import resized_to
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import Knowledge
from bevkd2.modeling.mono.inputs import MonoTargets
from bevkd2.ops import Occlusion, Perspective, PixelWeights, draw_weights, feature_l2, pack_boxes

_ADAPTERS = {"conv1x1": 1, "conv3x3": 3}
_OCCLUSION_RULES = ("off", "near_boxes")


@dataclasses.dataclass(frozen=True)
class PerspectiveWeights:
    """How much each cell of the necks' features counts: the perspective matrix and the occlusion rule."""

    perspective: Perspective | None
    """Eq. 3; None: every cell of the image counts 1."""
    near_depth: float | None
    """Metres: objects nearer than this lower the weights in their 2D boxes; None: no object does."""

    @classmethod
    def from_config(cls, node: FvcoreNode) -> PerspectiveWeights:
        """Builds the weights that DISTILL.PERSPECTIVE_FEATURE describes.

        Args:
            node: that node.

        Raises:
            ValueError: a setting that cannot be.
        """
        check = PerspectiveFeature.check
        for key in ("SIGMA", "CENTER"):
            check(len(node[key]) == 2, key, f"{list(node[key])}; expected two numbers (x, y)")
        check(min(node.SIGMA) > 0, "SIGMA", f"{list(node.SIGMA)}; expected deviations above 0")
        check(node.AMPLITUDE >= 0, "AMPLITUDE", f"{node.AMPLITUDE}; expected at least 0")
        check(node.NEAR_DEPTH > 0, "NEAR_DEPTH", f"{node.NEAR_DEPTH}; expected metres above 0")
        occlusion = PerspectiveFeature.one_of(node, "OCCLUSION", _OCCLUSION_RULES)
        matrix = Perspective(node.AMPLITUDE, tuple(node.SIGMA), tuple(node.CENTER))
        return cls(matrix if node.PERSPECTIVE else None, None if occlusion == "off" else node.NEAR_DEPTH)

    def draw(
        self,
        level_shapes: Sequence[tuple[int, int]],
        strides: Sequence[int],
        image_sizes: Tensor,
        boxes2d: Sequence[Tensor],
        depths: Sequence[Tensor],
    ) -> PixelWeights:
        """Draws the weights of a batch; the padding has weight 0.

        Args:
            level_shapes: rows and columns of each level.
            strides: stride of each level in pixels.
            image_sizes: (B, 2) height and width in pixels before padding.
            boxes2d: B tensors (n, 4) x1, y1, x2, y2 in pixels; read where there is a ``near_depth``.
            depths: B tensors (n,) in metres, in the same order.
        """
        occlusion = None
        if self.near_depth is not None:
            occlusion = Occlusion(*pack_boxes(boxes2d), torch.cat(list(depths)), self.near_depth)
        return draw_weights(
            level_shapes,
            strides=strides,
            image_sizes=image_sizes,
            perspective=self.perspective,
            occlusion=occlusion,
        )


@register_method
class PerspectiveFeature(DistillMethod[Knowledge]):
    """Computes the squared distance of the necks' features, weighted by the perspective matrix.

    It is averaged over the levels. The student's features pass through an adapter, a convolution to the
    teacher's width. The weight is largest about the image's centre, where distant objects are; padding has
    weight 0 and is not counted. With PERSPECTIVE False the matrix is 1 everywhere: plain feature
    imitation (FitNet, Eq. 2). It works for any detector with a neck; the occlusion rule needs 2D boxes, which
    only monocular targets have.

    Args:
        cfg: the method's node.
        student: channels and strides of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: levels that do not match, or a setting that cannot be.
    """

    node = "PERSPECTIVE_FEATURE"
    requires = frozenset({"fpn", "fpn_strides", "image_sizes"})

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.one_of(cfg, "ADAPTER", (*_ADAPTERS, "none"))
        self.cell_weights = PerspectiveWeights.from_config(cfg)
        self.levels = list(cfg.LEVELS) or list(range(len(student.fpn)))
        self.adapters = nn.ModuleList(
            _adapter(cfg.ADAPTER, *pair) for pair in _paired(self.levels, student, teacher)
        )

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds WEIGHT, ADAPTER, LEVELS and the perspective matrix's keys."""
        super().add_config(node)
        # The paper does not give the adapter's kernel; "none" needs equal widths.
        node.ADAPTER = "conv1x1"  # | "conv3x3" | "none"
        node.LEVELS = []  # levels of the neck, 0 the finest; []: all
        node.PERSPECTIVE = True  # False: weight 1 everywhere, plain feature imitation
        node.AMPLITUDE = 0.3  # A of Eq. 3; the paper's best
        node.SIGMA = [0.7, 0.7]  # sigma_x, sigma_y in image widths and heights; the paper's best
        node.CENTER = [0.5, 0.5]  # the farthest point, in image widths and heights
        # The paper lowers the weight "of the occlusion region" of a near car without saying how:
        # "near_boxes" multiplies it by depth / NEAR_DEPTH inside the 2D boxes of objects nearer than that.
        node.OCCLUSION = "off"  # | "near_boxes"
        node.NEAR_DEPTH = 20.0  # metres

    def forward(self, student: Knowledge, teacher: Knowledge, targets: Any) -> Tensor:
        """Returns the loss."""
        fpn, fpn_t, strides = student.filled("fpn"), teacher.filled("fpn"), student.filled("fpn_strides")
        features = [adapter(fpn[level]) for level, adapter in zip(self.levels, self.adapters, strict=True)]
        weights = self.cell_weights.draw(
            [_shape(level) for level in features],
            [strides[level] for level in self.levels],
            student.filled("image_sizes"),
            *self._objects(targets),
        )
        wanted = [resized_to(fpn_t[level], fpn[level]) for level in self.levels]
        # The mean over the levels is folded in, so that the op's gradients need no other pass.
        losses = feature_l2(features, wanted, weights.maps, weights.cells, loss_weight=1 / len(features))
        return losses.sum()

    def _objects(self, targets: Any) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Returns 2D boxes and depths of the objects, none where they are not read."""
        if self.cell_weights.near_depth is None:
            return (), ()
        if not isinstance(targets, MonoTargets):
            raise ValueError(
                f"DISTILL.{self.node}.OCCLUSION: near_boxes needs targets with 2D boxes, which "
                f"{type(targets).__name__} lacks; set it to off"
            )
        return targets.boxes2d, targets.depths


def _shape(features: Tensor) -> tuple[int, int]:
    return features.shape[-2], features.shape[-1]


def _paired(
    levels: Sequence[int], student: FeatureShapes, teacher: FeatureShapes
) -> list[tuple[ShapeSpec, ShapeSpec]]:
    strides = [s.stride for s in student.fpn], [t.stride for t in teacher.fpn]
    PerspectiveFeature.check(
        all(0 <= level < min(map(len, strides)) for level in levels),
        "LEVELS",
        f"{list(levels)}; the student's neck has {len(student.fpn)} levels, the teacher's "
        f"{len(teacher.fpn)}; name levels that both have, 0 the finest",
    )
    PerspectiveFeature.check(
        all(strides[0][level] == strides[1][level] for level in levels),
        "LEVELS",
        f"the student's levels have strides {strides[0]}, the teacher's {strides[1]}; features of one level "
        "must have one size: give both necks the same levels, or choose LEVELS where they agree",
    )
    return [(student.fpn[level], teacher.fpn[level]) for level in levels]


def _adapter(kind: str, student: ShapeSpec, teacher: ShapeSpec) -> nn.Module:
    if kind == "none":
        PerspectiveFeature.check(
            student.channels == teacher.channels,
            "ADAPTER",
            f"none, but the student's features have {student.channels} channels and the teacher's "
            f"{teacher.channels}; use conv1x1",
        )
        return nn.Identity()
    kernel = _ADAPTERS[kind]
    return nn.Conv2d(student.channels, teacher.channels, kernel, padding=kernel // 2)
