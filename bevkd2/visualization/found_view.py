"""Which annotated objects a model finds, from above: models beside each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from bevkd2.structures.matches import FOUND, ground_distances, match_by_distance
from bevkd2.visualization.bev_view import BEVFrame, draw_bev, draw_filled, draw_outlines
from bevkd2.visualization.canvas import stack, with_title
from bevkd2.visualization.objects import DrawnObjects, Image

Mask = npt.NDArray[np.bool_]

_FOUND, _MISSED, _WRONG = (40, 160, 60), (225, 45, 45), (120, 120, 120)


def found_objects(
    truth: DrawnObjects, predictions: DrawnObjects, *, score_threshold: float, distance: float = 2.0
) -> tuple[Mask, Mask]:
    """Matches detections with annotations, as nuScenes does: by class and distance, the best score first.

    Args:
        truth: N annotations.
        predictions: M detections.
        score_threshold: detections below it count for nothing.
        distance: largest distance of the centres on the ground, metres.

    Returns:
        (N,) whether the object is found, and (M,) whether the detection finds one.
    """
    scores = np.ones(len(predictions)) if predictions.scores is None else predictions.scores
    places = [objects.boxes.center[:, :2].double().numpy() for objects in (predictions, truth)]
    matches = match_by_distance(
        ground_distances(*places),
        truth.labels,
        predictions.labels,
        scores,
        score_threshold=score_threshold,
        limit=distance,
        far=0.0,
    )
    found, right = matches.objects == FOUND, matches.detections == FOUND
    return found, right


def draw_found(
    frame: BEVFrame,
    truth: DrawnObjects,
    predictions: Mapping[str, DrawnObjects],
    *,
    score_threshold: float,
    distance: float = 2.0,
) -> Image:
    """Draws, model by model, which objects are found (green) and missed (red), and what is wrong (grey).

    Args:
        frame: what part of the ground.
        truth: annotations.
        predictions: model name -> detections.
        score_threshold: least score of a detection.
        distance: largest distance of the centres on the ground, metres.

    Returns:
        The views beside each other, each with its numbers above, and a line that explains the colours.
    """
    views = []
    for name, detections in predictions.items():
        found, right = found_objects(truth, detections, score_threshold=score_threshold, distance=distance)
        scores = np.ones(len(detections)) if detections.scores is None else detections.scores
        wrong = (scores >= score_threshold) & ~right
        view = draw_bev(frame)
        draw_outlines(view, frame, detections.only(wrong), _WRONG)
        for mask, color in ((~found, _MISSED), (found, _FOUND)):
            draw_filled(
                view, frame, dataclasses.replace(truth.only(mask), colors=np.array([color], np.uint8))
            )
        title = f"{name}: finds {found.sum()} of {len(truth)}, {wrong.sum()} wrong"
        views.append(with_title(view, title, height=11))
    return with_title(stack(views, axis=1), "green: found, red: missed, grey: wrong detections", height=11)
