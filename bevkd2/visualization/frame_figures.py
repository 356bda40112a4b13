"""Every picture of a frame, for one model or several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bevkd2.nuscenes.layout import CLASS_NAMES
from bevkd2.visualization.bev_response import draw_bev_responses, draw_cells
from bevkd2.visualization.bev_view import BEVFrame, draw_bev, draw_outlines
from bevkd2.visualization.canvas import put_text, stack, with_title
from bevkd2.visualization.figure import TILE_WIDTH, camera_images, detection_figure
from bevkd2.visualization.model_view import ModelView
from bevkd2.visualization.objects import DrawnObjects, Image


def choose_frames(scenes: Sequence[Sequence[int]], num: int) -> list[list[int]]:
    """Returns the frames to draw, spread over the scenes and late in each, so that models have history.

    Args:
        scenes: frames of every scene, in order of time.
        num: how many to draw.

    Returns:
        For every scene the frames to draw, possibly none.
    """
    total = min(num, sum(len(scene) for scene in scenes))
    # Evenly spaced scenes where there are more of them than frames; else all of them, by turns.
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
    view: ModelView, images: Mapping[str, Image], truth: DrawnObjects, scale: float, score: float
) -> Image | None:
    """Draws the points that the cell of the nearest object (white) samples, and the entropy of all cells.

    Args:
        view: of the frame.
        images: by camera.
        truth: annotations; detections take their place where there are none.
        scale: of the camera images.
        score: least score of a detection.

    Returns:
        The picture; None where there is no object on the grid, or the model has no spatial attention.
    """
    attention = view.attention
    if attention is None:
        return None
    objects = truth if len(truth) else view.detections.above(score)
    centers = objects.boxes.center[:, :2].double().numpy()
    cells = [view.cell_at(x, y) for x, y in centers]
    candidates = [i for i, cell in enumerate(cells) if cell is not None and attention.seen[:, cell].any()]
    if not candidates:
        return None
    nearest = min(candidates, key=lambda i: float(np.hypot(*centers[i])))
    cell = cells[nearest]
    assert cell is not None
    cameras = attention.draw(cell, images, scale)
    frame = BEVFrame(view.extent, max(cameras.shape[0], 300))
    above = draw_bev(frame, predictions=truth, base=draw_cells(attention.entropy.reshape(view.shape), frame))
    chosen = DrawnObjects(objects.boxes[nearest], objects.labels[[nearest]])
    draw_outlines(above, frame, chosen, (255, 255, 255))
    put_text(above, "entropy of attention, dark: sharp", (0, 0), height=10)
    x, y = centers[nearest]
    title = f"where the cell at ({x:.1f}, {y:.1f}) m looks: {CLASS_NAMES[objects.labels[nearest]]}"
    return with_title(stack([cameras, above], axis=1), title)


def frame_figures(
    sample: Mapping[str, Any], views: Mapping[str, ModelView], cameras: tuple[str, ...], score: float
) -> dict[str, Image]:
    """Returns every picture of a frame.

    Args:
        sample: of the test mapper.
        views: model name -> its view.
        cameras: names of the sample's cameras.
        score: least score of a drawn detection.

    Returns:
        Name of the picture -> image.
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
            extent=view.extent,
            score_threshold=score,
        )
        attention = attention_figure(view, images, truth, scale, score)
        if attention is not None:
            pictures[f"attention_{name}"] = attention
    frame = BEVFrame(next(iter(views.values())).extent, 480)
    responses = {name: view.response for name, view in views.items() if view.response is not None}
    if responses:
        pictures["bev_response"] = with_title(draw_bev_responses(responses, frame, truth), "BEV response")
    return pictures
