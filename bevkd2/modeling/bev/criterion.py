"""Hungarian matching of queries to objects, and the set prediction losses over all decoder layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from bevkd2.modeling.losses import average_over_ranks

MATCHED_CODES = 8  # the published cost leaves the velocity out
MOVING_SPEED = 0.2
"""m/s from which an object counts as moving."""


def focal_cost(class_logits: Tensor, labels: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Computes how the focal loss would change if a query were matched to an object.

    Args:
        class_logits: (..., Q, K).
        labels: (n,) int64.
        alpha: weight of the positive part.
        gamma: exponent.

    Returns:
        (..., Q, n).
    """
    p = class_logits.sigmoid()
    eps = 1e-12
    negative = -(1 - p + eps).log() * (1 - alpha) * p.pow(gamma)
    positive = -(p + eps).log() * alpha * (1 - p).pow(gamma)
    return (positive - negative)[..., labels]


@dataclasses.dataclass(frozen=True)
class SetWeights:
    """Weights that the cost of a match and the loss have in common."""

    classes: float
    """Of the focal cost and loss."""
    boxes: float
    """Of the L1 distance between codes; the matching leaves the velocity out."""
    focal_alpha: float
    focal_gamma: float


class HungarianMatcher:
    """Least-cost one-to-one assignment of queries to objects (DETR, Eq. 1)."""

    def __init__(self, weights: SetWeights) -> None:
        self.weights = weights

    @torch.no_grad()
    def cost(self, class_logits: Tensor, box_codes: Tensor, labels: Tensor, codes: Tensor) -> Tensor:
        """Computes the matching cost.

        Args:
            class_logits: (..., Q, K).
            box_codes: (..., Q, 10).
            labels: (n,) int64.
            codes: (n, 10).

        Returns:
            (..., Q, n) float32.
        """
        weights = self.weights
        classes = focal_cost(
            class_logits.float(), labels, alpha=weights.focal_alpha, gamma=weights.focal_gamma
        )
        predicted = box_codes.float()[..., :MATCHED_CODES]
        boxes = (predicted.unsqueeze(-2) - codes[:, :MATCHED_CODES]).abs().sum(-1)
        return weights.classes * classes + weights.boxes * boxes

    @torch.no_grad()
    def __call__(
        self, class_logits: Tensor, box_codes: Tensor, labels: list[Tensor], codes: list[Tensor]
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """Matches every decoder layer of every sample.

        Args:
            class_logits: (D, B, Q, K).
            box_codes: (D, B, Q, 10).
            labels: B tensors (n,) int64.
            codes: B tensors (n, 10).

        Returns:
            For layer d and sample b, ``result[d][b]``: the queries and the objects matched, int64 on the
            predictions' device, both empty for a sample without objects.
        """
        costs = [
            self.cost(class_logits[:, sample], box_codes[:, sample], labels[sample], codes[sample])
            for sample in range(class_logits.shape[1])
        ]
        sizes = [cost.shape[-1] for cost in costs]
        on_cpu = torch.cat(costs, dim=-1).cpu()  # the one wait for the device
        # A diverged prediction has to reach the loss, where the trainer names it, so it is no error here.
        on_cpu = torch.nan_to_num(on_cpu, nan=1e8, posinf=1e8, neginf=-1e8)
        by_sample = [
            [linear_sum_assignment(layer.numpy()) for layer in cost] for cost in on_cpu.split(sizes, dim=-1)
        ]
        found = [index for sample in by_sample for pair in sample for index in pair]
        moved = torch.from_numpy(np.concatenate(found)).to(class_logits.device, non_blocking=True)
        indices = iter(moved.split([len(index) for index in found]))
        pairs = [[(next(indices), next(indices)) for _ in sample] for sample in by_sample]
        return [list(layer) for layer in zip(*pairs, strict=True)]


class SetCriterion:
    """Focal loss and L1 loss of matched queries, for every decoder layer (BEVFormer, section 4.2)."""

    def __init__(
        self,
        weights: SetWeights,
        code_weights: Sequence[float],
        *,
        velocity_beta: float = 0.0,
        moving_weight: float = 1.0,
    ) -> None:
        """Sets the weights.

        Args:
            weights: of the loss, and of the matching.
            code_weights: ten factors of the L1 terms of the loss.
            velocity_beta: m/s below which the loss of a velocity is quadratic (smooth L1); 0: L1.
            moving_weight: multiplies the velocity terms of objects of MOVING_SPEED and more.
        """
        self.matcher = HungarianMatcher(weights)
        self.weights, self.code_weights = weights, list(code_weights)
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
        matches = self.matcher(class_logits.float(), box_codes.float(), labels, codes)
        return self.losses_of_matches(class_logits, box_codes, labels, codes, matches)

    def losses_of_matches(
        self,
        class_logits: Tensor,
        box_codes: Tensor,
        labels: list[Tensor],
        codes: list[Tensor],
        matches: Sequence[list[tuple[Tensor, Tensor]]],
    ) -> dict[str, Tensor]:
        """Computes the losses in float32 for matches that are given, such as another model's.

        Args:
            class_logits: (D, B, Q, K).
            box_codes: (D, B, Q, 10).
            labels: B tensors (n,) int64.
            codes: B tensors (n, 10).
            matches: as :class:`HungarianMatcher` returns them.

        Returns:
            See :meth:`__call__`.
        """
        with torch.autocast(class_logits.device.type, enabled=False):
            class_logits, box_codes = class_logits.float(), box_codes.float()
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
        alpha, gamma = self.weights.focal_alpha, self.weights.focal_gamma
        loss = sigmoid_focal_loss(logits, target, alpha=alpha, gamma=gamma, reduction="sum")
        weighted: Tensor = self.weights.classes * loss
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
        return self.weights.boxes * loss

    def _velocity_error(self, error: Tensor, velocity: Tensor) -> Tensor:
        """Returns (n, 2) errors after smooth L1 and the weight of moving objects."""
        beta = self.velocity_beta
        if beta > 0:
            error = torch.where(error < beta, 0.5 * error**2 / beta, error - 0.5 * beta)
        moving = velocity.norm(dim=1, keepdim=True) >= MOVING_SPEED
        return torch.where(moving, self.moving_weight * error, error)
