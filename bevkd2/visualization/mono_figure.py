"""The detection figure of one image: boxes in the image, and from above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bevkd2.visualization.bev_view import BEVFrame, legend
from bevkd2.visualization.canvas import put_text, stack, with_title
from bevkd2.visualization.mono_view import count_outside, draw_mono_bev, draw_mono_image, fitting_extent
from bevkd2.visualization.objects import DrawnObjects, Image, class_palette

TILE_WIDTH = 1000
"""Pixels: the width that the camera's image is resized to."""
_BEV_HEIGHTS = (480, 760)


def mono_figure(
    image: Image,
    cam2img: npt.NDArray[np.floating[Any]],
    predictions: DrawnObjects,
    truth: DrawnObjects | None = None,
    *,
    title: str,
    class_names: Sequence[str],
    score_threshold: float = 0.3,
    extent: tuple[float, float, float, float] | None = None,
    tile_width: int = TILE_WIDTH,
) -> Image:
    """Composes the picture of one image.

    Args:
        image: (H, W, 3) RGB.
        cam2img: (4, 4) metres in the camera's frame to pixels of ``image``.
        predictions: detections.
        truth: annotations; None where the image is not annotated.
        title: written above.
        class_names: in the order of the labels; colours are ``class_palette``'s.
        score_threshold: detections below it are not drawn.
        extent: x0, z0, x1, z1 of the view from above, metres; by default it fits the annotations (or the
            predictions, if there are none), so that the pictures of several models have the same scale.
        tile_width: pixels of the camera's image in the picture.

    Returns:
        One image: the annotated image above the one with predictions (and the truth in white), and the view
        from above on the right.

    Raises:
        ValueError: a label is not the index of a class.
    """
    shown = predictions.above(score_threshold).in_class_colors(class_names)
    truth = None if truth is None else truth.in_class_colors(class_names)
    scale = tile_width / image.shape[1]
    panels = []
    if truth is not None:
        panels.append(draw_mono_image(image, cam2img, truth, scale=scale))
        _caption(panels[-1], f"ground truth: {len(truth)}")
    panels.append(draw_mono_image(image, cam2img, shown, truth, scale))
    white = "" if truth is None else ", white: ground truth"
    _caption(panels[-1], f"predictions, score >= {score_threshold:g}: {len(shown)}{white}")
    left = stack(panels, axis=0)
    key = legend(class_names, class_palette(len(class_names)), 500)
    height = int(np.clip(left.shape[0] - key.shape[0] - 6, *_BEV_HEIGHTS))
    frame = BEVFrame(extent or fitting_extent(shown if truth is None else truth), height)
    above = draw_mono_bev(frame, cam2img, image.shape[1], truth, shown)
    _caption_bev(above, frame, truth, shown)
    return with_title(stack([left, stack([above, key], axis=0)], axis=1), title)


def _caption(panel: Image, text: str) -> None:
    put_text(panel, text, (0, panel.shape[0] - 20), height=11)


def _caption_bev(above: Image, frame: BEVFrame, truth: DrawnObjects | None, shown: DrawnObjects) -> None:
    put_text(above, "filled: predictions" + ("" if truth is None else ", black: ground truth"), (0, 0), 11)
    outside = {"predictions": shown, "annotated": truth}
    counts = {k: count_outside(frame, objects) for k, objects in outside.items() if objects is not None}
    if any(counts.values()):
        text = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        put_text(above, f"out of this range: {text}", (0, 20), 11)
