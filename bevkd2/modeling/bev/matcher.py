"""Hungarian matching of queries to objects."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

MATCHED_CODES = 8  # the published cost leaves the velocity out


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


class HungarianMatcher:
    """Least-cost one-to-one assignment of queries to objects (DETR, Eq. 1)."""

    def __init__(
        self, *, class_weight: float, box_weight: float, focal_alpha: float, focal_gamma: float
    ) -> None:
        """Sets the weights.

        Args:
            class_weight: of the focal cost.
            box_weight: of the L1 distance between codes without velocity.
            focal_alpha: alpha of the focal cost.
            focal_gamma: gamma of the focal cost.
        """
        self.class_weight, self.box_weight = class_weight, box_weight
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma

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
        classes = focal_cost(class_logits.float(), labels, alpha=self.focal_alpha, gamma=self.focal_gamma)
        predicted = box_codes.float()[..., :MATCHED_CODES]
        boxes = (predicted.unsqueeze(-2) - codes[:, :MATCHED_CODES]).abs().sum(-1)
        return self.class_weight * classes + self.box_weight * boxes

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
