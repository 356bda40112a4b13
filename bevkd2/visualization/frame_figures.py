"""All pictures of one multi-view frame, for one model or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bevkd2.visualization.bev_response import draw_bev_responses, draw_cells
from bevkd2.visualization.bev_view import BEVFrame, draw_bev, draw_outlines
from bevkd2.visualization.canvas import put_text, stack, with_title
from bevkd2.visualization.feature_view import draw_camera_features
from bevkd2.visualization.figure import TILE_WIDTH, camera_images, detection_figure
from bevkd2.visualization.model_view import ModelView
from bevkd2.visualization.objects import DrawnObjects, Image

SHARED_PICTURES = ("bev_response", "features")
"""Names of the pictures that show all models; the names of others end in that of a model."""


def choose_frames(scenes: Sequence[Sequence[int]], num: int) -> list[list[int]]:
    """Chooses the frames to draw: spread over the scenes and late in each, so that models have history.

    Args:
        scenes: frames of every scene, in order of time.
        num: how many to draw.

    Returns:
        The chosen frames of each scene, possibly none.
    """
    total = min(num, sum(len(scene) for scene in scenes))
    # If there are more scenes than frames, evenly spaced scenes; else all scenes in turn.
    turns = [round(i) for i in np.linspace(0, len(scenes) - 1, min(total, len(scenes)))]
    counts = [0] * len(scenes)
    while sum(counts) < total:
        for i in turns:
            counts[i] += sum(counts) < total and counts[i] < len(scenes[i])
    return [
        [scene[len(scene) * (k + 1) // count - 1] for k in range(count)]
        for scene, count in zip(scenes, counts, strict=True)
    ]


def attention_figure(
    view: ModelView,
    images: Mapping[str, Image],
    truth: DrawnObjects,
    *,
    class_names: Sequence[str],
    scale: float,
    score_threshold: float,
) -> Image | None:
    """Draws the points that the BEV cell of the nearest object samples, and the entropy of all cells.

    The chosen object is outlined in white.

    Args:
        view: what the model computed for the frame.
        images: camera name -> (H, W, 3) RGB.
        truth: annotations; if there are none, the detections are used.
        class_names: in the order of the labels.
        scale: the camera images are resized by it.
        score_threshold: detections below it are not used.

    Returns:
        The picture; None if no object is on the grid, or if the model has no spatial attention.

    Raises:
        ValueError: a label is not the index of a class.
    """
    attention = view.attention
    if attention is None:
        return None
    objects = truth if len(truth) else view.detections.above(score_threshold)
    objects, truth = objects.in_class_colors(class_names), truth.in_class_colors(class_names)
    found = _nearest(view, objects)
    if found is None:
        return None
    nearest, cell = found
    cameras = attention.draw(cell, images, scale)
    frame = BEVFrame(view.extent, max(cameras.shape[0], 300))
    above = draw_bev(frame, predictions=truth, base=draw_cells(attention.entropy.reshape(view.shape), frame))
    chosen = DrawnObjects(objects.boxes[nearest], objects.labels[[nearest]])
    draw_outlines(above, frame, chosen, (255, 255, 255))
    put_text(above, "entropy of attention (dark: concentrated)", (0, 0), height=10)
    title = f"points sampled by the BEV cell at {_named(objects, nearest, class_names)}"
    return with_title(stack([cameras, above], axis=1), title)


def temporal_figure(
    view: ModelView, truth: DrawnObjects, *, class_names: Sequence[str], score_threshold: float
) -> Image | None:
    """Draws the points of the previous and the current BEV that the nearest object's cell samples.

    The object is chosen as by :func:`attention_figure`.

    Args:
        view: what the model computed for the frame.
        truth: annotations; if there are none, the detections are used.
        class_names: in the order of the labels.
        score_threshold: detections below it are not used.

    Returns:
        The picture; None if no object is on the grid, or if the model has no temporal attention.
    """
    objects = truth if len(truth) else view.detections.above(score_threshold)
    objects = objects.in_class_colors(class_names)
    found = _nearest(view, objects)
    if view.temporal is None or found is None:
        return None
    nearest, cell = found
    chosen = DrawnObjects(objects.boxes[nearest], objects.labels[[nearest]])
    drawn = view.temporal.draw(cell, view.shape, BEVFrame(view.extent, 480), objects, chosen)
    title = f"temporal attention of the BEV cell at {_named(objects, nearest, class_names)}"
    return with_title(drawn, title)


def _nearest(view: ModelView, objects: DrawnObjects) -> tuple[int, int] | None:
    """Returns the nearest object on the grid that a camera sees, and its cell; None where there is none."""
    centers = objects.boxes.center[:, :2].double().numpy()
    cells = {i: cell for i, (x, y) in enumerate(centers) if (cell := view.cell_at(x, y)) is not None}
    if view.attention is not None:
        cells = {i: cell for i, cell in cells.items() if view.attention.seen[:, cell].any()}
    return min(cells.items(), key=lambda pair: float(np.hypot(*centers[pair[0]])), default=None)


def _named(objects: DrawnObjects, index: int, class_names: Sequence[str]) -> str:
    x, y = objects.boxes.center[index, :2].tolist()
    return f"({x:.1f}, {y:.1f}) m: {class_names[objects.labels[index]]}"


def frame_figures(
    sample: Mapping[str, Any],
    views: Mapping[str, ModelView],
    cameras: tuple[str, ...],
    class_names: Sequence[str],
    *,
    score_threshold: float = 0.3,
) -> dict[str, Image]:
    """Draws all pictures of a frame.

    Args:
        sample: of the test mapper.
        views: model name -> what the model computed for the frame.
        cameras: names of the sample's cameras.
        class_names: in the order of the labels.
        score_threshold: detections below it are not drawn.

    Returns:
        Name of the picture -> image: "detections_<model>", "attention_<model>" and "temporal_<model>" for
        models with spatial and temporal attention, "bev_response" and "features" (of the FPN) if a model has
        them.

    Raises:
        ValueError: a label is not the index of a class.
    """
    truth = DrawnObjects.from_dict(sample)
    images = camera_images(sample["images"].numpy(), cameras)
    lidar2img = dict(zip(cameras, sample["lidar2img"].double().numpy(), strict=True))
    scale = TILE_WIDTH / sample["images"].shape[-1]
    pictures = {}
    for name, view in views.items():
        pictures[f"detections_{name}"] = detection_figure(
            images,
            lidar2img,
            truth,
            view.detections,
            title=f"{name}: sample {sample['sample_id']}",
            class_names=class_names,
            extent=view.extent,
            score_threshold=score_threshold,
        )
        attention = attention_figure(
            view, images, truth, class_names=class_names, scale=scale, score_threshold=score_threshold
        )
        if attention is not None:
            pictures[f"attention_{name}"] = attention
        temporal = temporal_figure(view, truth, class_names=class_names, score_threshold=score_threshold)
        if temporal is not None:
            pictures[f"temporal_{name}"] = temporal
    frame = BEVFrame(next(iter(views.values())).extent, 480)
    responses = {name: view.response for name, view in views.items() if view.response is not None}
    if responses:
        pictures["bev_response"] = with_title(draw_bev_responses(responses, frame, truth), "BEV response")
    features = {
        name: dict(zip(cameras, view.features, strict=True))
        for name, view in views.items()
        if view.features is not None
    }
    if features:
        drawn = draw_camera_features(images, features, lidar2img, truth)
        title = f"mean absolute FPN features, sample {sample['sample_id']}"
        pictures["features"] = with_title(drawn, title, height=14)
    return pictures
