"""Score labels at boxes in an image, without overlap."""

from __future__ import annotations

import cv2
import numpy as np

from bevkd2.visualization.camera_view import project_edges
from bevkd2.visualization.objects import Array, DrawnObjects, Image

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SCALE = 0.38
_PADDING = 2


def draw_scores(canvas: Image, objects: DrawnObjects, upright2img: Array) -> None:
    """Writes each object's score above its projected box, in place; the highest score is placed first.

    Args:
        canvas: (H, W, 3) RGB.
        objects: predictions; annotations (no scores) and objects outside the image get no label.
        upright2img: (4, 4) metres to pixels of the canvas.
    """
    if objects.scores is None:
        return
    segments, visible = project_edges(objects.corners(), upright2img)
    kept, anchors = [], []
    for i in np.argsort(-objects.scores, kind="stable"):
        if visible[i].any():
            low, high = segments[i][visible[i]].min(axis=(0, 1)), segments[i][visible[i]].max(axis=(0, 1))
            if (high >= 0).all() and (low < canvas.shape[1::-1]).all():
                kept.append(i)
                anchors.append((round(max(low[0], 0.0)), round(max(low[1], 0.0))))
    texts = [f"{objects.scores[i]:.2f}" for i in kept]
    sizes = [_label_size(text) for text in texts]
    places = place_labels(anchors, sizes, (canvas.shape[0], canvas.shape[1]))
    for i, text, size, place in zip(kept, texts, sizes, places, strict=True):
        _draw_label(canvas, text, place, size, objects.color(i))


def place_labels(
    anchors: list[tuple[int, int]], sizes: list[tuple[int, int]], shape: tuple[int, int]
) -> list[tuple[int, int]]:
    """Finds places for labels: above their anchors, moved up, or else down, where another label is.

    Args:
        anchors: x, y of the labelled object, the most important first.
        sizes: width and height of each label, pixels.
        shape: height and width of the picture.

    Returns:
        x, y of the top left corners, inside the picture if the labels fit into it. If no row is free in a
        label's columns, the label is placed at its anchor.
    """
    placed: list[tuple[int, int, int, int]] = []
    for (x, y), (width, height) in zip(anchors, sizes, strict=True):
        left = max(0, min(x, shape[1] - width))
        start = max(0, min(y - height, shape[0] - height))
        candidates = [*range(start, -1, -1), *range(start + 1, shape[0] - height + 1)]
        free = (
            top
            for top in candidates
            if not any(
                left < x1 and x0 < left + width and top < y1 and y0 < top + height
                for x0, y0, x1, y1 in placed
            )
        )
        top = next(free, start)
        placed.append((left, top, left + width, top + height))
    return [(x0, y0) for x0, y0, _, _ in placed]


def _label_size(text: str) -> tuple[int, int]:
    (width, height), baseline = cv2.getTextSize(text, _FONT, _SCALE, 1)
    return width + 2 * _PADDING, height + baseline // 2 + 2 * _PADDING


def _draw_label(
    canvas: Image, text: str, place: tuple[int, int], size: tuple[int, int], color: tuple[int, int, int]
) -> None:
    (x, y), (width, height) = place, size
    canvas[y : y + height, x : x + width] = color
    baseline = y + height - _PADDING - 1
    cv2.putText(canvas, text, (x + _PADDING, baseline), _FONT, _SCALE, (255, 255, 255), 1, cv2.LINE_AA)
