"""The image of one camera with boxes, and its scene from above: x to the right, z (forward) upwards."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from bevkd2.structures import UPRIGHT_TO_CAMERA
from bevkd2.visualization.bev_view import (
    BEVFrame,
    draw_filled,
    draw_headings,
    draw_outlined,
    draw_outlines,
    draw_rings,
)
from bevkd2.visualization.camera_view import draw_box_edges, draw_boxes
from bevkd2.visualization.canvas import resize
from bevkd2.visualization.objects import Array, DrawnObjects, Image
from bevkd2.visualization.score_labels import draw_scores

_UNSEEN = (236, 236, 236)
_BORDER = (190, 190, 190)
_CAMERA = (60, 60, 60)
_TRUTH = (255, 255, 255)
_TRUTH_ABOVE = (20, 20, 20)


def upright2img(cam2img: npt.NDArray[np.floating[Any]]) -> Array:
    """Returns the projection of the camera's upright axes (``CameraBoxes3D.upright``) for ``draw_boxes``.

    Args:
        cam2img: (4, 4) metres in the camera's frame to (u * d, v * d, d, 1), pixels.

    Returns:
        (4, 4).

    Raises:
        ValueError: the matrix is not (4, 4).
    """
    if cam2img.shape != (4, 4):
        raise ValueError(f"upright2img: cam2img is {cam2img.shape}, expected (4, 4): pad P2 with 0 0 0 1")
    return cam2img.astype(np.float64) @ UPRIGHT_TO_CAMERA


def draw_mono_image(
    image: Image,
    cam2img: npt.NDArray[np.floating[Any]],
    objects: DrawnObjects,
    truth: DrawnObjects | None = None,
    scale: float = 1.0,
) -> Image:
    """Draws boxes with their scores into the image of one camera, the front face thick and shaded.

    Args:
        image: (H, W, 3) RGB.
        cam2img: (4, 4) metres in the camera's frame to pixels of ``image``.
        objects: predictions (with scores) or annotations, drawn in the colours of their classes.
        truth: annotations to compare with, drawn with thin white edges below the objects.
        scale: the image is resized by this factor before lines are drawn.

    Returns:
        A new image, (scale * H, scale * W, 3).
    """
    canvas = resize(image, scale)
    grown = np.diag([canvas.shape[1] / image.shape[1], canvas.shape[0] / image.shape[0], 1.0, 1.0])
    matrix = grown @ upright2img(cam2img)
    if truth is not None:
        draw_box_edges(canvas, truth, matrix, _TRUTH)
    canvas = draw_boxes(canvas, objects, matrix)
    draw_scores(canvas, objects, matrix)
    return canvas


def draw_mono_bev(
    frame: BEVFrame,
    cam2img: npt.NDArray[np.floating[Any]],
    image_width: int,
    truth: DrawnObjects | None = None,
    predictions: DrawnObjects | None = None,
) -> Image:
    """Draws the scene of one camera from above: predictions filled, annotations as thin black outlines.

    A line from the centre points to the front. The ground outside the field of view is grey; arcs show
    distances from the camera.

    Args:
        frame: what part of the ground: x to the right, z upwards.
        cam2img: (4, 4) metres in the camera's frame to pixels.
        image_width: width in pixels of the image that ``cam2img`` projects into.
        truth: annotations.
        predictions: detections, in their class's colour.

    Returns:
        A new image of ``frame.shape``.
    """
    canvas = _draw_ground(frame, cam2img, image_width)
    if predictions is not None:
        draw_filled(canvas, frame, predictions)
        draw_outlined(canvas, frame, predictions)
        draw_headings(canvas, frame, predictions)
    if truth is not None:
        draw_outlines(canvas, frame, truth, _TRUTH_ABOVE)
        draw_headings(canvas, frame, truth, _TRUTH_ABOVE)
    return canvas


def count_outside(frame: BEVFrame, objects: DrawnObjects) -> int:
    """Returns how many objects have their centre outside the extent of a frame."""
    x0, y0, x1, y1 = frame.extent
    x, y = objects.boxes.center[:, :2].double().numpy().T
    return int(np.count_nonzero((x < x0) | (x >= x1) | (y < y0) | (y >= y1)))


def fitting_extent(objects: DrawnObjects) -> tuple[float, float, float, float]:
    """Chooses the extent of a view from above by the farthest object.

    The range is that of the farthest object in steps of 10 m, at least 30 m and at most 100 m; to
    each side it is half as far. What is beyond is outside the view.

    Args:
        objects: any number of them, also none.

    Returns:
        x0, z0, x1, z1 in metres.
    """
    farthest = float(objects.boxes.center[:, 1].max()) if len(objects) else 0.0
    far = float(np.clip(10 * np.ceil((farthest + 3) / 10), 30, 100))
    return -far / 2, -2.0, far / 2, far


def _draw_ground(frame: BEVFrame, cam2img: npt.NDArray[np.floating[Any]], image_width: int) -> Image:
    """Draws range arcs, the field of view, and the camera as a triangle."""
    canvas = np.full((*frame.shape, 3), _UNSEEN, dtype=np.uint8)
    far = 4 * max(abs(limit) for limit in frame.extent)
    camera, left, right = _field_of_view(cam2img, image_width, far)
    corners = _pixels(frame, np.stack([camera, left, right]))
    cv2.fillConvexPoly(canvas, corners, (255, 255, 255), cv2.LINE_AA)
    cv2.polylines(canvas, [corners[[1, 0, 2]]], False, _BORDER, 1, cv2.LINE_AA)
    draw_rings(canvas, frame, float(np.arctan2(*(right - camera))))
    _, left, right = _field_of_view(cam2img, image_width, 1.5)
    cv2.fillConvexPoly(canvas, _pixels(frame, np.stack([camera, left, right])), _CAMERA, cv2.LINE_AA)
    return canvas


def _field_of_view(
    cam2img: npt.NDArray[np.floating[Any]], image_width: int, depth: float
) -> tuple[Array, Array, Array]:
    """Returns (x, z) of the camera's centre and of the image's left and right border at a depth, metres."""
    inverse = np.linalg.inv(cam2img[:3, :3].astype(np.float64))
    center = -inverse @ cam2img[:3, 3]
    row = float(
        cam2img[1, 2]
    )  # the row of the horizon; rectified images have no roll, so any row gives the same
    left, right = (center + depth * (inverse @ np.array([u, row, 1.0])) for u in (0.0, float(image_width)))
    return center[[0, 2]], left[[0, 2]], right[[0, 2]]


def _pixels(frame: BEVFrame, points: Array) -> npt.NDArray[np.int32]:
    pixels: npt.NDArray[np.int32] = np.rint(frame.to_pixels(points) - 0.5).astype(np.int32)
    return pixels
