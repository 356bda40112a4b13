"""SMOKE's losses: a focal loss of the heat map, and corners disentangled (arXiv 2002.10111, section 3.3)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from bevkd2.modeling.heatmaps import heatmap_loss
from bevkd2.modeling.mono.smoke.decode import SmokeCoder
from bevkd2.modeling.mono.smoke.head import SmokeOutputs
from bevkd2.modeling.mono.smoke.targets import SmokeObjects
from bevkd2.structures import CameraBoxes3D


@dataclasses.dataclass(frozen=True)
class SmokeLossWeights:
    """Factors of the losses."""

    heatmap: float = 1.0
    box: float = 1 / 300
    """Of the sum over corners of all objects of the batch: weight 10 over 30 objects at most, as published.
    It is divided by neither objects nor images, so another batch size is another learning rate."""


def smoke_losses(
    outputs: SmokeOutputs,
    objects: SmokeObjects,
    heatmap: Tensor,
    cam2img: Tensor,
    coder: SmokeCoder,
    weights: SmokeLossWeights,
) -> dict[str, Tensor]:
    """Computes all losses.

    Args:
        outputs: of the head, B images.
        objects: of the same images.
        heatmap: (B, K, h, w) targets.
        cam2img: (B, 4, 4).
        coder: of the model.
        weights: factors.

    Returns:
        Weighted scalars: ``loss_heatmap`` (the sum over the cells divided by the number of centres of the
        batch), ``loss_orientation``, ``loss_size`` and ``loss_location``.
    """
    losses = {"loss_heatmap": weights.heatmap * heatmap_loss(outputs.logits, heatmap, (heatmap == 1).sum())}
    rows, cells, labels = (
        part[objects.box_loss_mask] for part in (objects.rows, objects.cells, objects.labels)
    )
    truth = objects.boxes[objects.box_loss_mask]
    codes = outputs.codes[rows, :, cells[:, 1], cells[:, 0]]
    predicted = coder.decode(codes, cells, labels, cam2img[rows], heading_centers=truth.center)
    for name, boxes in disentangled_boxes(predicted, truth).items():
        distance = (boxes.corners() - truth.corners()).abs().sum()
        # The second term keeps the graph where no image has an object.
        losses[f"loss_{name}"] = weights.box * distance + outputs.codes.sum() * 0
    return losses


def disentangled_boxes(predicted: CameraBoxes3D, truth: CameraBoxes3D) -> dict[str, CameraBoxes3D]:
    """Returns annotated boxes, each with one part replaced by the predicted one.

    As in the published code, locations are those of the bottom: the replaced location is the predicted centre
    lowered by half of the predicted height, so this loss trains the height too.

    Args:
        predicted: P boxes.
        truth: P annotated ones.

    Returns:
        P boxes by ``orientation``, ``size`` and ``location``, whatever is predicted in them.
    """
    ours, theirs = predicted.to_bottom(), truth.to_bottom()
    parts = {"orientation": slice(6, 7), "size": slice(3, 6), "location": slice(0, 3)}
    mixed = {}
    for name, columns in parts.items():
        replaced = [
            (ours if columns.start <= column < columns.stop else theirs)[:, column] for column in range(7)
        ]
        mixed[name] = CameraBoxes3D.from_bottom(torch.stack(replaced, dim=1))
    return mixed
