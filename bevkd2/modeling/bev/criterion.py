"""Set prediction losses over all decoder layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from bevkd2.modeling.bev.matcher import HungarianMatcher
from bevkd2.modeling.losses import average_over_ranks

MOVING_SPEED = 0.2
"""m/s from which an object counts as moving."""


class SetCriterion:
    """Focal loss and L1 loss of matched queries, for every decoder layer (BEVFormer, section 4.2)."""

    def __init__(
        self,
        matcher: HungarianMatcher,
        *,
        class_weight: float,
        box_weight: float,
        focal_alpha: float,
        focal_gamma: float,
        code_weights: Sequence[float],
        velocity_beta: float = 0.0,
        moving_weight: float = 1.0,
    ) -> None:
        """Sets the weights.

        Args:
            matcher: assigns queries to objects.
            class_weight: of the focal loss.
            box_weight: of the L1 loss.
            focal_alpha: alpha of the focal loss.
            focal_gamma: gamma of the focal loss.
            code_weights: ten factors of the L1 terms.
            velocity_beta: m/s below which the loss of a velocity is quadratic (smooth L1); 0: L1.
            moving_weight: multiplies the velocity terms of objects of MOVING_SPEED and more.
        """
        self.matcher = matcher
        self.class_weight, self.box_weight = class_weight, box_weight
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.code_weights = list(code_weights)
        self.velocity_beta, self.moving_weight = velocity_beta, moving_weight

    def __call__(
        self, class_logits: Tensor, box_codes: Tensor, labels: list[Tensor], codes: list[Tensor]
    ) -> dict[str, Tensor]:
        """Computes the losses in float32.

        Args:
            class_logits: (D, B, Q, K).
            box_codes: (D, B, Q, 10).
            labels: B tensors (n,) int64.
            codes: B tensors (n, 10).

        Returns:
            ``loss_cls`` and ``loss_box`` of the last layer, ``loss_cls_0``, ``loss_box_0`` and so on of the
            earlier ones, weighted.
        """
        with torch.autocast(class_logits.device.type, enabled=False):
            class_logits, box_codes = class_logits.float(), box_codes.float()
            matches = self.matcher(class_logits, box_codes, labels, codes)
            positives = sum(len(queries) for queries, _ in matches[0])
            normalizer = average_over_ranks(positives, class_logits.device)
            losses = {}
            for layer, pairs in enumerate(matches):
                suffix = "" if layer == len(matches) - 1 else f"_{layer}"
                losses[f"loss_cls{suffix}"] = (
                    self._class_loss(class_logits[layer], pairs, labels) / normalizer
                )
                losses[f"loss_box{suffix}"] = self._box_loss(box_codes[layer], pairs, codes) / normalizer
        return losses

    def _class_loss(self, logits: Tensor, pairs: list[tuple[Tensor, Tensor]], labels: list[Tensor]) -> Tensor:
        target = torch.zeros_like(logits)
        for sample, (queries, objects) in enumerate(pairs):
            target[sample, queries, labels[sample][objects]] = 1
        loss = sigmoid_focal_loss(
            logits, target, alpha=self.focal_alpha, gamma=self.focal_gamma, reduction="sum"
        )
        weighted: Tensor = self.class_weight * loss
        return weighted

    def _box_loss(self, predicted: Tensor, pairs: list[tuple[Tensor, Tensor]], codes: list[Tensor]) -> Tensor:
        weights = torch.tensor(self.code_weights, dtype=predicted.dtype)
        weights = weights.to(predicted.device, non_blocking=True)
        loss = predicted.sum() * 0  # keeps the graph where no sample has an object
        for sample, (queries, objects) in enumerate(pairs):
            target = codes[sample][objects]
            error = (predicted[sample, queries] - target).abs()
            if self.velocity_beta > 0 or self.moving_weight != 1:
                error = torch.cat([error[:, :8], self._velocity_error(error[:, 8:], target[:, 8:])], dim=1)
            loss = loss + (error * weights).sum()
        return self.box_weight * loss

    def _velocity_error(self, error: Tensor, velocity: Tensor) -> Tensor:
        """Returns (n, 2) errors after smooth L1 and the weight of moving objects."""
        beta = self.velocity_beta
        if beta > 0:
            error = torch.where(error < beta, 0.5 * error**2 / beta, error - 0.5 * beta)
        moving = velocity.norm(dim=1, keepdim=True) >= MOVING_SPEED
        return torch.where(moving, self.moving_weight * error, error)
