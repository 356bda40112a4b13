"""All pictures of one image, for one monocular model or several."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode as FvcoreNode

from bevkd2.distill.methods.perspective_feature import PerspectiveWeights
from bevkd2.modeling import Detector
from bevkd2.structures import project_points
from bevkd2.visualization.canvas import with_title
from bevkd2.visualization.feature_view import draw_feature_maps, feature_response
from bevkd2.visualization.image_heat import Levels, Map, column_width
from bevkd2.visualization.mono_figure import mono_figure
from bevkd2.visualization.objects import DrawnObjects, Image
from bevkd2.visualization.perspective_view import draw_perspective, perspective_maps


@dataclasses.dataclass(frozen=True, eq=False)
class MonoView:
    """What a monocular model computed for one image.

    Attributes:
        detections: the output of ``inference``: "boxes" (CameraBoxes3D), "scores", "labels".
        responses: stride -> (h, w) mean absolute FPN feature, padding included.
    """

    detections: Mapping[str, Any]
    responses: Levels


@torch.no_grad()
def see_image(model: Detector[Any, Any, Any], sample: Mapping[str, Any]) -> MonoView:
    """Runs one image.

    Args:
        model: a monocular detector with loaded weights, in eval mode.
        sample: of the test mapper.

    Returns:
        What the model computed.
    """
    inputs = model.preprocess([sample])
    knowledge = model.extract(inputs, wants=frozenset({"fpn"}))
    levels = zip(knowledge.filled("fpn_strides"), knowledge.filled("fpn"), strict=True)
    responses = {s: feature_response(features[0].float().cpu().numpy()) for s, features in levels}
    return MonoView(model.inference(knowledge, inputs)[0], responses)


def mono_figures(
    sample: Mapping[str, Any],
    views: Mapping[str, MonoView],
    class_names: Sequence[str],
    *,
    score_threshold: float = 0.3,
    perspective: FvcoreNode | None = None,
) -> dict[str, Image]:
    """Draws all pictures of an image.

    Args:
        sample: of the test mapper, annotated or not.
        views: model name -> what the model computed for the image.
        class_names: in the order of the labels.
        score_threshold: least score of a drawn detection.
        perspective: the config node DISTILL.PERSPECTIVE_FEATURE; None, or a node whose PERSPECTIVE is off,
            draws no matrix.

    Returns:
        Name of the picture -> image: "detections_<model>", "features" and "perspective".

    Raises:
        ValueError: a setting of ``perspective`` is invalid, or a label is not the index of a class.
    """
    image = np.ascontiguousarray(sample["image"].numpy().transpose(1, 2, 0))
    annotated = "boxes" in sample
    boxes2d = sample["boxes2d"].double().numpy() if annotated else None
    pictures = {
        f"detections_{name}": mono_figure(
            image,
            sample["cam2img"].numpy(),
            DrawnObjects.from_dict(view.detections),
            DrawnObjects.from_dict(sample) if annotated else None,
            title=f"{name}, image {sample['sample_id']}",
            class_names=class_names,
            score_threshold=score_threshold,
        )
        for name, view in views.items()
    }
    responses = {name: view.responses for name, view in views.items()}
    features = draw_feature_maps(image, responses, boxes2d, column_width(responses.values()))
    title = f"mean absolute FPN features, image {sample['sample_id']}"
    pictures["features"] = with_title(features, title, height=14)
    weights = None if perspective is None else PerspectiveWeights.from_config(perspective)
    if weights is not None and weights.perspective is not None:
        levels = next(iter(responses.values()))
        pictures["perspective"] = _perspective_figure(sample, image, levels, weights, boxes2d)
    return pictures


def _perspective_figure(
    sample: Mapping[str, Any], image: Image, levels: Levels, weights: PerspectiveWeights, boxes2d: Map | None
) -> Image:
    """Draws Eq. 3 and, if the method applies it and there are objects, the occlusion rule."""
    assert weights.perspective is not None
    size = (image.shape[0], image.shape[1])
    shapes = {stride: (cells.shape[0], cells.shape[1]) for stride, cells in levels.items()}
    rows = {"Eq. 3": perspective_maps(dataclasses.replace(weights, near_depth=None), size, shapes)}
    if weights.near_depth is not None and "boxes" in sample:
        _, depths = project_points(sample["boxes"].center, sample["cam2img"])
        name = f"occlusion: near_boxes, {weights.near_depth:g} m"
        rows[name] = perspective_maps(weights, size, shapes, sample["boxes2d"], depths)
    title = f"perspective matrix, image {sample['sample_id']}"
    width = column_width(rows.values())
    drawn = draw_perspective(image, rows, weights.perspective.amplitude, boxes2d, width)
    return with_title(drawn, title, height=14)
