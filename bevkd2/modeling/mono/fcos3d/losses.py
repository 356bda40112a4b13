"""The losses of FCOS3D (arXiv 2104.10956, section 3.2) and PGD (arXiv 2107.14160, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from bevkd2.modeling.mono.fcos3d.consistency import consistency_loss
from bevkd2.modeling.mono.fcos3d.head import DenseOutputs
from bevkd2.modeling.mono.fcos3d.targets import (
    DenseTargets,
    PositiveOutputs,
    dense_targets,
    full_precision,
    outputs_at,
)
from bevkd2.modeling.mono.grid import flatten_levels
from bevkd2.modeling.mono.inputs import MonoTargets

LOSS_NAMES = (
    "cls",
    "offset",
    "depth",
    "size",
    "rotation",
    "velocity",
    "keypoints",
    "boxes2d",
    "consistency",
    "direction",
    "centerness",
    "attribute",
)


class DenseCriterion(nn.Module):
    """All losses of a dense monocular head; those of branches that the head lacks are left out.

    Normalisers are those of the published code: they count the positive locations of the batch on this
    process, so a batch of two is not the mean of two batches of one.
    """

    box_code_weights: Tensor

    def __init__(
        self,
        *,
        box_code_weights: Sequence[float],
        direction_offset: float = 0.7854,
        center_radius: float = 1.5,
        box_beta: float = 1 / 9,
        depth_beta: float = 1 / 9,
        depth_bin_size: float = 10.0,
        uncertainty_weight: float = 1.0,
        keypoint_weight: float = 0.2,
        keypoint_range: float = 16.0,
        box2d_weight: float = 1.0,
        consistency_depth: Literal["direct", "fused"] = "direct",
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        loss_weights: Mapping[str, float] | None = None,
    ) -> None:
        """Sets the weights.

        Args:
            box_code_weights: seven or nine factors: dx, dy, depth, length, height, width, yaw[, vx, vz].
            direction_offset: where the first half turn begins, radians.
            center_radius: of the assignment, in strides.
            box_beta: where the smooth L1 of all box terms but the depth becomes linear.
            depth_beta: likewise, of the depth (m).
            depth_bin_size: metres between the bins of the depth distribution.
            uncertainty_weight: of the predicted log scale of the depth.
            keypoint_weight: factor of the sixteen corner coordinates.
            keypoint_range: strides of a predicted 1: the finest level's longest distance over
                its stride.
            box2d_weight: factor of the four distances and of the consistency.
            consistency_depth: "direct" | "fused": which depth places the projected 3D box sideways.
            focal_alpha: alpha of the focal loss.
            focal_gamma: gamma of the focal loss.
            loss_weights: factors of whole losses by name, of ``LOSS_NAMES``; 1 where not named.

        Raises:
            ValueError: another number of code weights, an unknown depth, or an unknown loss.
        """
        super().__init__()
        _check_settings(box_code_weights, consistency_depth, loss_weights or {})
        self.direction_offset, self.center_radius = direction_offset, center_radius
        self.box_beta, self.depth_beta = box_beta, depth_beta
        self.depth_bin_size, self.uncertainty_weight = depth_bin_size, uncertainty_weight
        self.keypoint_weight, self.keypoint_range = keypoint_weight, keypoint_range
        self.box2d_weight, self.consistency_depth = box2d_weight, consistency_depth
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.loss_weights = dict.fromkeys(LOSS_NAMES, 1.0) | dict(loss_weights or {})
        weights = torch.tensor(list(box_code_weights), dtype=torch.float32)
        self.register_buffer("box_code_weights", weights, persistent=False)

    def forward(
        self, outputs: DenseOutputs, targets: MonoTargets, fuse_lambda: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Computes the losses in float32, whatever autocast does.

        Args:
            outputs: the head's maps.
            targets: with ``assigned``.
            fuse_lambda: scalar of the depths' fusion; needed where ``outputs`` has depth bins.

        Returns:
            Scalars ``loss_<name>``, weighted. Without any positive location all but ``loss_cls`` are zeros
            that still depend on every output.

        Raises:
            ValueError: outputs and code weights of different lengths, or annotations without what a branch
                learns.
        """
        with torch.autocast(outputs.logits[0].device.type, enabled=False):
            wanted = dense_targets(targets, self.direction_offset, self.center_radius)
            found = outputs_at(outputs, wanted, fuse_lambda, self.depth_bin_size)
            self._check(found, wanted)
            losses = {"cls": self._class_loss(outputs, wanted)}
            losses |= self._box_losses(found, wanted) | self._branch_losses(found, wanted)
            return {f"loss_{name}": self.loss_weights[name] * loss for name, loss in losses.items()}

    def _class_loss(self, outputs: DenseOutputs, wanted: DenseTargets) -> Tensor:
        logits = full_precision(flatten_levels(outputs.logits))
        target = torch.zeros_like(logits)
        target[wanted.images, wanted.locations, wanted.labels] = 1
        loss = sigmoid_focal_loss(
            logits, target, alpha=self.focal_alpha, gamma=self.focal_gamma, reduction="sum"
        )
        mean_loss: Tensor = loss / (len(wanted.images) + len(logits))
        return mean_loss

    def _box_losses(self, found: PositiveOutputs, wanted: DenseTargets) -> dict[str, Tensor]:
        """Computes the losses of the 3D box: smooth L1, summed and divided by the number of positives."""
        weights, positives = self.box_code_weights, max(len(wanted.images), 1)
        # sin(a - b), the published sin a cos b - cos a sin b: a turn by pi costs nothing.
        turn = torch.sin(found.boxes[:, 6] - wanted.yaw)
        depth = F.smooth_l1_loss(found.depth, wanted.depth, reduction="none", beta=self.depth_beta)
        if found.uncertainty is not None:
            depth = torch.exp(-found.uncertainty) * depth + self.uncertainty_weight * found.uncertainty
        losses = {
            "offset": self._smooth_l1(found.boxes[:, :2], wanted.offset, weights[:2]),
            "depth": weights[2] * depth.sum(),
            "size": self._smooth_l1(found.boxes[:, 3:6], wanted.size, weights[3:6]),
            "rotation": self._smooth_l1(turn, torch.zeros_like(turn), weights[6]),
        }
        if wanted.velocity is not None and found.boxes.shape[1] == 9:
            losses["velocity"] = self._smooth_l1(found.boxes[:, 7:9], wanted.velocity, weights[7:9])
        return {name: loss / positives for name, loss in losses.items()}

    def _branch_losses(self, found: PositiveOutputs, wanted: DenseTargets) -> dict[str, Tensor]:
        """Computes the losses of the image plane, direction, centre-ness and attributes."""
        positives = max(len(wanted.images), 1)
        losses = {}
        if found.keypoints is not None:
            keypoints, visible = wanted.keypoints(self.keypoint_range)
            losses["keypoints"] = self._smooth_l1(
                found.keypoints, keypoints, self.keypoint_weight * visible.to(keypoints.dtype)
            )
        if found.boxes2d is not None:
            losses["boxes2d"] = self._smooth_l1(found.boxes2d, wanted.boxes2d, self.box2d_weight)
            depth = found.depth if self.consistency_depth == "fused" else found.boxes[:, 2]
            losses["consistency"] = self.box2d_weight * consistency_loss(
                found, wanted, depth, self.direction_offset
            )
        losses["direction"] = F.cross_entropy(found.direction, wanted.direction, reduction="sum")
        losses["centerness"] = F.binary_cross_entropy_with_logits(
            found.centerness, wanted.centerness, reduction="sum"
        )
        losses = {name: loss / positives for name, loss in losses.items()}
        if found.attributes is not None and wanted.attributes is not None:
            loss = F.cross_entropy(found.attributes, wanted.attributes, reduction="none")
            total = wanted.centerness.sum().clamp(min=torch.finfo(loss.dtype).tiny)
            losses["attribute"] = (loss * wanted.centerness).sum() / total
        return losses

    def _smooth_l1(self, found: Tensor, wanted: Tensor, weights: Tensor | float) -> Tensor:
        loss = F.smooth_l1_loss(found, wanted, reduction="none", beta=self.box_beta)
        return (weights * loss).sum()

    def _check(self, found: PositiveOutputs, wanted: DenseTargets) -> None:
        columns, weights = found.boxes.shape[1], len(self.box_code_weights)
        if columns != weights:
            raise ValueError(
                f"DenseCriterion: the head predicts {columns} numbers per box, box_code_weights has "
                f"{weights}: expected as many: 7, or 9 with a velocity"
            )
        if columns == 9 and wanted.velocity is None:
            raise ValueError(
                "DenseCriterion: the head predicts velocities and the annotated boxes have 7 columns, not "
                "9; train on data with velocities, or leave the branch out"
            )
        if found.attributes is not None and wanted.attributes is None:
            raise ValueError(
                "DenseCriterion: the head predicts attributes and the samples have no 'attributes'; train on "
                "data with attributes, or leave the branch out"
            )


def _check_settings(
    box_code_weights: Sequence[float], consistency_depth: str, loss_weights: Mapping[str, float]
) -> None:
    if len(box_code_weights) not in (7, 9):
        raise ValueError(
            f"DenseCriterion: box_code_weights has {len(box_code_weights)} entries, expected 7, or 9 with a "
            "velocity"
        )
    if consistency_depth not in ("direct", "fused"):
        raise ValueError(
            f"DenseCriterion: consistency_depth is {consistency_depth!r}, expected 'direct' or 'fused'"
        )
    unknown = sorted(set(loss_weights) - set(LOSS_NAMES))
    if unknown:
        raise ValueError(f"DenseCriterion: unknown losses {unknown}, expected among {sorted(LOSS_NAMES)}")
