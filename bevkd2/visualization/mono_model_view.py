"""Every picture of one image, for one monocular model or several side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode as FvcoreNode

from bevkd2.modeling import Detector
from bevkd2.structures import project_points
from bevkd2.visualization.canvas import with_title
from bevkd2.visualization.feature_view import draw_feature_maps, feature_response
from bevkd2.visualization.image_heat import TILE_WIDTH, Levels, Map
from bevkd2.visualization.mono_figure import mono_figure
from bevkd2.visualization.objects import DrawnObjects, Image
from bevkd2.visualization.perspective_view import Occluders, draw_perspective, perspective_maps


@dataclasses.dataclass(frozen=True, eq=False)
class MonoView:
    """What a monocular model makes of one image.

    Attributes:
        detections: its output of `inference`: "boxes" (CameraBoxes3D), "scores", "labels".
        responses: stride -> (h, w) mean absolute FPN feature, padding included.
    """

    detections: Mapping[str, Any]
    responses: Levels


@torch.no_grad()
def see_image(model: Detector[Any, Any, Any], sample: Mapping[str, Any]) -> MonoView:
    """Runs one image.

    Args:
        model: monocular, with its weights loaded, in eval mode.
        sample: of the test mapper.

    Returns:
        The view of it.
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
    """Every picture of an image.

    Args:
        sample: of the test mapper, annotated or not.
        views: model name -> its view.
        class_names: in the order of the labels.
        score_threshold: least score of a drawn detection.
        perspective: the config node DISTILL.PERSPECTIVE_FEATURE; None: the matrix is not drawn.

    Returns:
        Name of the picture -> image: "detections_<model>", "features" and "perspective".
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
            title=f"{name}, image {sample['image_id']}",
            class_names=class_names,
            score_threshold=score_threshold,
        )
        for name, view in views.items()
    }
    responses = {name: view.responses for name, view in views.items()}
    features = draw_feature_maps(image, responses, boxes2d, _tile_width(responses))
    title = f"mean absolute FPN features, image {sample['image_id']}"
    pictures["features"] = with_title(features, title, height=14)
    if perspective is not None:
        levels = next(iter(responses.values()))
        pictures["perspective"] = _perspective_figure(sample, image, levels, perspective, boxes2d)
    return pictures


def _tile_width(rows: Mapping[str, Levels]) -> int:
    """Few levels get wider heat maps."""
    return min(800, 5 * TILE_WIDTH // len(set[int]().union(*rows.values())))


def _perspective_figure(
    sample: Mapping[str, Any], image: Image, levels: Levels, node: FvcoreNode, boxes2d: Map | None
) -> Image:
    """Eq. 3 with the settings of a config and, where they ask for it and there are objects, occlusion."""
    size = (image.shape[0], image.shape[1])
    shapes = {stride: (cells.shape[0], cells.shape[1]) for stride, cells in levels.items()}
    eq3 = {"amplitude": node.AMPLITUDE, "sigma": node.SIGMA, "center": node.CENTER}
    rows = {"Eq. 3": perspective_maps(size, shapes, **eq3)}
    if node.OCCLUSION != "off" and "boxes" in sample:
        _, depths = project_points(sample["boxes"].center, sample["cam2img"])
        occluders = Occluders(sample["boxes2d"], depths, node.NEAR_DEPTH)
        name = f"occlusion: {node.OCCLUSION}, {node.NEAR_DEPTH:g} m"
        rows[name] = perspective_maps(size, shapes, **eq3, occluders=occluders)
    title = f"perspective matrix, image {sample['image_id']}"
    drawn = draw_perspective(image, rows, node.AMPLITUDE, boxes2d, _tile_width(rows))
    return with_title(drawn, title, height=14)
