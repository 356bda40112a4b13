"""The losses of FCOS3D (arXiv 2104.10956, section 3.2) and PGD (arXiv 2107.14160, section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from bevkd2.modeling.losses import average_over_ranks, mean_over_ranks
from bevkd2.modeling.mono.fcos3d.consistency import consistency_loss
from bevkd2.modeling.mono.fcos3d.head import DenseOutputs
from bevkd2.modeling.mono.fcos3d.targets import (
    DenseTargets,
    PositiveOutputs,
    dense_targets,
    full_precision,
    outputs_at,
)
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


@dataclasses.dataclass(frozen=True)
class DenseLossOptions:
    """What the losses of a dense head measure, and how they weigh it.

    Raises:
        ValueError: another number of code weights, an unknown depth, or an unknown loss.
    """

    box_code_weights: Sequence[float]
    """Seven or nine factors: dx, dy, depth, length, height, width, yaw[, vx, vz]."""
    direction_offset: float = 0.7854
    """Where the first direction bin begins, radians."""
    center_radius: float = 1.5
    """Of the assignment, in strides."""
    box_beta: float = 1 / 9
    """Where the smooth L1 of all box terms but the depth becomes linear."""
    depth_beta: float = 1 / 9
    """Likewise, of the depth (m)."""
    depth_bin_size: float = 10.0
    """Metres between the bins of the depth distribution."""
    uncertainty_weight: float = 1.0
    """Factor of the predicted log scale of the depth."""
    keypoint_weight: float = 0.2
    """Factor of the sixteen corner coordinates."""
    keypoint_range: float = 16.0
    """Strides of a predicted 1: the finest level's longest distance over its stride."""
    box2d_weight: float = 1.0
    """Factor of the four distances and of the consistency."""
    consistency_depth: Literal["direct", "fused"] = "direct"
    """Which depth places the projected 3D box sideways."""
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    loss_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Factors of whole losses by name, of ``LOSS_NAMES``; 1 where not named."""

    def __post_init__(self) -> None:
        if len(self.box_code_weights) not in (7, 9):
            raise ValueError(
                f"DenseCriterion: box_code_weights has {len(self.box_code_weights)} entries, expected 7, or "
                "9 with a velocity"
            )
        if self.consistency_depth not in ("direct", "fused"):
            raise ValueError(
                f"DenseCriterion: consistency_depth is {self.consistency_depth!r}, expected 'direct' or "
                "'fused'"
            )
        unknown = sorted(set(self.loss_weights) - set(LOSS_NAMES))
        if unknown:
            raise ValueError(f"DenseCriterion: unknown losses {unknown}, expected among {sorted(LOSS_NAMES)}")


class DenseCriterion(nn.Module):
    """All losses of a dense monocular head; those of branches that the head lacks are left out.

    Normalisers are those of the published code: they count the positive locations of the batch, so a batch of
    two is not the mean of two batches of one. With several processes they are means over the processes, so
    that gradients are those of one process with the joint batch, as long as there is a positive per process
    on average; published, each process counts its own.
    """

    box_code_weights: Tensor

    def __init__(self, options: DenseLossOptions) -> None:
        super().__init__()
        self.options = options
        weights = torch.tensor(list(options.box_code_weights), dtype=torch.float32)
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
        options = self.options
        with torch.autocast(outputs.logits[0].device.type, enabled=False):
            wanted = dense_targets(targets, options.direction_offset, options.center_radius)
            found = outputs_at(outputs, wanted, fuse_lambda, options.depth_bin_size)
            self._check(found, wanted)
            losses = {"cls": self._class_loss(outputs, wanted)}
            positives = average_over_ranks(len(wanted.images), found.direction.device)
            losses |= self._box_losses(found, wanted, positives)
            losses |= self._branch_losses(found, wanted, positives)
            weights = options.loss_weights
            return {f"loss_{name}": weights.get(name, 1.0) * loss for name, loss in losses.items()}

    def _class_loss(self, outputs: DenseOutputs, wanted: DenseTargets) -> Tensor:
        logits = full_precision(outputs.flat("logits"))
        target = torch.zeros_like(logits)
        target[wanted.images, wanted.locations, wanted.labels] = 1
        alpha, gamma = self.options.focal_alpha, self.options.focal_gamma
        loss = sigmoid_focal_loss(logits, target, alpha=alpha, gamma=gamma, reduction="sum")
        mean_loss: Tensor = loss / average_over_ranks(len(wanted.images) + len(logits), loss.device)
        return mean_loss

    def _box_losses(
        self, found: PositiveOutputs, wanted: DenseTargets, positives: Tensor
    ) -> dict[str, Tensor]:
        """Computes the losses of the 3D box: smooth L1, summed and divided by the number of positives."""
        weights, options = self.box_code_weights, self.options
        # sin(a - b), the published sin a cos b - cos a sin b: a turn by pi costs nothing.
        turn = torch.sin(found.boxes[:, 6] - wanted.yaw)
        depth = F.smooth_l1_loss(found.depth, wanted.depth, reduction="none", beta=options.depth_beta)
        if found.uncertainty is not None:
            depth = torch.exp(-found.uncertainty) * depth + options.uncertainty_weight * found.uncertainty
        losses = {
            "offset": self._smooth_l1(found.boxes[:, :2], wanted.offset, weights[:2]),
            "depth": weights[2] * depth.sum(),
            "size": self._smooth_l1(found.boxes[:, 3:6], wanted.size, weights[3:6]),
            "rotation": self._smooth_l1(turn, torch.zeros_like(turn), weights[6]),
        }
        if wanted.velocity is not None and found.boxes.shape[1] == 9:
            losses["velocity"] = self._smooth_l1(found.boxes[:, 7:9], wanted.velocity, weights[7:9])
        return {name: loss / positives for name, loss in losses.items()}

    def _branch_losses(
        self, found: PositiveOutputs, wanted: DenseTargets, positives: Tensor
    ) -> dict[str, Tensor]:
        """Computes the losses of the image plane, direction, centre-ness and attributes."""
        options = self.options
        losses = {}
        if found.keypoints is not None:
            keypoints, visible = wanted.keypoints(options.keypoint_range)
            losses["keypoints"] = self._smooth_l1(
                found.keypoints, keypoints, options.keypoint_weight * visible.to(keypoints.dtype)
            )
        if found.boxes2d is not None:
            losses["boxes2d"] = self._smooth_l1(found.boxes2d, wanted.boxes2d, options.box2d_weight)
            depth = found.depth if options.consistency_depth == "fused" else found.boxes[:, 2]
            losses["consistency"] = options.box2d_weight * consistency_loss(
                found, wanted, depth, options.direction_offset
            )
        losses["direction"] = F.cross_entropy(found.direction, wanted.direction, reduction="sum")
        losses["centerness"] = F.binary_cross_entropy_with_logits(
            found.centerness, wanted.centerness, reduction="sum"
        )
        losses = {name: loss / positives for name, loss in losses.items()}
        if found.attributes is not None and wanted.attributes is not None:
            loss = F.cross_entropy(found.attributes, wanted.attributes, reduction="none")
            total = mean_over_ranks(wanted.centerness.sum()).clamp(min=torch.finfo(loss.dtype).tiny)
            losses["attribute"] = (loss * wanted.centerness).sum() / total
        return losses

    def _smooth_l1(self, found: Tensor, wanted: Tensor, weights: Tensor | float) -> Tensor:
        loss = F.smooth_l1_loss(found, wanted, reduction="none", beta=self.options.box_beta)
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
