"""The detection figure of one frame: all cameras, with annotations and with predictions, and from above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bevkd2.visualization.bev_view import BEVFrame, draw_bev, legend
from bevkd2.visualization.camera_view import draw_boxes, mosaic
from bevkd2.visualization.canvas import put_text, stack, with_title
from bevkd2.visualization.objects import Array, DrawnObjects, Image, class_palette

TILE_WIDTH = 400
"""Pixels: the width that each camera image is resized to."""


def detection_figure(
    images: Mapping[str, Image],
    lidar2img: Mapping[str, Array],
    truth: DrawnObjects,
    predictions: DrawnObjects,
    *,
    title: str,
    class_names: Sequence[str],
    extent: tuple[float, float, float, float],
    score_threshold: float = 0.3,
    tile_width: int = TILE_WIDTH,
) -> Image:
    """Composes the picture of one frame.

    Args:
        images: camera name -> (H, W, 3) RGB.
        lidar2img: camera name -> (4, 4) metres to pixels of the image.
        truth: annotations.
        predictions: detections.
        title: written above.
        class_names: in the order of the labels; colours are those of ``class_palette``.
        extent: x0, y0, x1, y1 of the view from above, metres.
        score_threshold: detections below it are not drawn.
        tile_width: pixels of a camera's tile.

    Returns:
        One image: on the left the cameras with annotations above those with predictions, on the right the
        view from above.

    Raises:
        ValueError: a label is not the index of a class.
    """
    truth = truth.in_class_colors(class_names)
    shown = predictions.above(score_threshold).in_class_colors(class_names)
    cameras = []
    for caption, objects in (("ground truth", truth), (f"predictions, score >= {score_threshold:g}", shown)):
        tiles = {
            name: draw_boxes(image, objects, lidar2img[name], tile_width / image.shape[1])
            for name, image in images.items()
        }
        panel = mosaic(tiles)
        put_text(panel, f"{caption}: {len(objects)}", (0, panel.shape[0] - 22), height=12)
        cameras.append(panel)
    left = stack(cameras, axis=0)
    key = legend(class_names, class_palette(len(class_names)), 500)
    height = max(left.shape[0] - key.shape[0] - 6, 300)
    frame = BEVFrame(extent, height)
    above = draw_bev(frame, truth, shown)
    put_text(above, "filled: ground truth, outlined: predictions", (0, 0), height=10)
    right = stack([above, key], axis=0)
    return with_title(stack([left, right], axis=1), title)


def camera_images(images: npt.NDArray[Any], names: tuple[str, ...]) -> dict[str, Image]:
    """Returns the images of a sample by camera.

    Args:
        images: (N, 3, H, W) uint8 RGB.
        names: names of the N cameras.

    Returns:
        Camera name -> (H, W, 3), in order.
    """
    return {
        name: np.ascontiguousarray(image.transpose(1, 2, 0))
        for name, image in zip(names, images, strict=True)
    }
