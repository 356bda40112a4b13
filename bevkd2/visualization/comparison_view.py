"""One frame, several models side by side: the cameras above, the scene from above below."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from bevkd2.structures.matches import (
    DETECTION_STATES,
    FALSE,
    FAR,
    FOUND,
    IGNORED,
    OBJECT_STATES,
    FrameMatches,
)
from bevkd2.visualization.bev_view import (
    BEVFrame,
    draw_bev,
    draw_filled,
    draw_headings,
    draw_outlined,
    draw_outlines,
    legend,
)
from bevkd2.visualization.camera_view import MOSAIC, MOSAIC_GAP, draw_box_edges, draw_boxes, mosaic
from bevkd2.visualization.canvas import put_text, stack, with_title
from bevkd2.visualization.mono_view import draw_mono_bev, upright2img
from bevkd2.visualization.objects import Array, DrawnObjects, Image, class_palette

STATE_COLORS: Image = np.array(
    [[40, 160, 60], [245, 130, 32], [225, 45, 45], [150, 150, 150]], dtype=np.uint8
)
"""(4, 3) RGB of OBJECT_STATES: found, far, missed, ignored."""
FALSE_COLOR = (170, 60, 215)
_WHITE = (255, 255, 255)
_RING_MARGIN = 1.0  # metres


@dataclasses.dataclass(frozen=True, eq=False)
class FrameView:
    """What the cameras of a frame saw.

    Attributes:
        images: camera name -> (H, W, 3) RGB; one of a monocular data set.
        projections: camera name -> (4, 4) metres to pixels of its image: from the frame of the boxes or, of a
            monocular data set, from the camera's own frame (``cam2img``).
        extent: x0, y0, x1, y1 of the view from above, metres.
        monocular: whether boxes are in the upright axes of the one camera.
    """

    images: Mapping[str, Image]
    projections: Mapping[str, Array]
    extent: tuple[float, float, float, float]
    monocular: bool

    def box2img(self, name: str) -> Array:
        """Returns the (4, 4) projection of boxes into a camera's image.

        Args:
            name: the camera's, a key of ``projections``.
        """
        return upright2img(self.projections[name]) if self.monocular else self.projections[name]


def comparison_figure(panels: Sequence[Image], title: str) -> Image:
    """Puts the panels of models side by side, below a title."""
    return with_title(stack(panels, axis=1), title, height=14)


def detection_panel(
    view: FrameView,
    truth: DrawnObjects,
    predictions: DrawnObjects,
    *,
    caption: str,
    class_names: Sequence[str],
    score_threshold: float,
    width: int,
) -> Image:
    """Draws a model's detections in the colours of their classes, and the ground truth.

    Args:
        view: what the cameras saw.
        truth: annotations: white edges in the cameras, pale from above.
        predictions: detections.
        caption: written above.
        class_names: in the order of the labels.
        score_threshold: detections below it are not drawn.
        width: of the panel in pixels.

    Returns:
        One image, ``width`` wide or, for a long caption, wider.

    Raises:
        ValueError: a label is not the index of a class.
    """
    truth = truth.in_class_colors(class_names)
    shown = predictions.above(score_threshold).by_score().in_class_colors(class_names)
    cameras = _draw_cameras(view, width, shown, truth, _WHITE)
    frame, above = _ground(view, width)
    if view.monocular:
        draw_filled(above, frame, shown)
        draw_outlines(above, frame, truth, (20, 20, 20))
        draw_headings(above, frame, truth, (20, 20, 20))
        text = "filled: predictions, black: ground truth"
    else:
        above = draw_bev(frame, truth, shown)
        text = "filled: ground truth, outlined: predictions"
    put_text(above, text, (0, 0), height=10)
    key = legend(class_names, class_palette(len(class_names)), width)
    return with_title(stack([cameras, above, key], axis=0), caption, height=12)


def match_panel(
    view: FrameView,
    truth: DrawnObjects,
    predictions: DrawnObjects,
    matches: FrameMatches,
    *,
    caption: str,
    width: int,
    marked: Sequence[int] = (),
) -> Image:
    """Draws what a model makes of the objects of a frame.

    Objects have the colours of ``STATE_COLORS``; those that are ignored are drawn from above only. False
    detections, and those that are too far from their object, are drawn as edges.

    Args:
        view: what the cameras saw.
        truth: N annotations.
        predictions: M detections.
        matches: of the two.
        caption: written above.
        width: of the panel in pixels.
        marked: objects that get a ring from above: those that the reference finds and this model does not.

    Returns:
        One image, ``width`` wide or, for a long caption, wider.
    """
    states = dataclasses.replace(truth, labels=matches.objects, colors=STATE_COLORS)
    seen = states.only(matches.objects < IGNORED)
    false, far = (predictions.only(matches.detections == state) for state in (FALSE, FAR))
    far_color = _rgb(STATE_COLORS[FAR])
    cameras = _draw_cameras(view, width, seen, false, FALSE_COLOR, (far, far_color))
    frame, above = _ground(view, width)
    draw_filled(above, frame, states)
    colors = np.array([FALSE_COLOR, STATE_COLORS[FAR], STATE_COLORS[FOUND]], dtype=np.uint8)
    found = predictions.only(matches.detections == FOUND)
    for place, objects in enumerate((false, far, found)):
        labels = np.full(len(objects), place, dtype=np.int64)
        draw_outlined(above, frame, dataclasses.replace(objects, labels=labels, colors=colors))
    _ring(above, frame, truth, marked)
    names = [*OBJECT_STATES, f"{DETECTION_STATES[FALSE]} detection"]
    key = legend(names, np.concatenate([STATE_COLORS, np.array([FALSE_COLOR], np.uint8)]), width)
    put_text(above, "filled: objects, outlined: detections", (0, 0), height=10)
    return with_title(stack([cameras, above, key], axis=0), caption, height=12)


def _rgb(color: Image) -> tuple[int, int, int]:
    r, g, b = color.tolist()
    return r, g, b


def _draw_cameras(
    view: FrameView,
    width: int,
    solid: DrawnObjects,
    edges: DrawnObjects,
    color: tuple[int, int, int],
    *more: tuple[DrawnObjects, tuple[int, int, int]],
) -> Image:
    """Draws solid boxes, and thin edges over them, into all cameras; the mosaic is at most ``width`` wide."""
    tiles = {}
    columns = len(MOSAIC[0]) if len(view.images) > 1 else 1
    tile_width = (width - MOSAIC_GAP * (columns - 1)) // columns
    for name, image in view.images.items():
        tile = draw_boxes(image, solid, view.box2img(name), tile_width / image.shape[1])
        shrink = np.diag([tile.shape[1] / image.shape[1], tile.shape[0] / image.shape[0], 1.0, 1.0])
        for objects, edge_color in ((edges, color), *more):
            draw_box_edges(tile, objects, shrink @ view.box2img(name), edge_color)
        tiles[name] = tile
    return mosaic(tiles) if len(tiles) > 1 else next(iter(tiles.values()))


def _ground(view: FrameView, width: int) -> tuple[BEVFrame, Image]:
    """Returns the view from above, without objects, at most ``width`` wide."""
    x0, y0, x1, y1 = view.extent
    frame = BEVFrame(view.extent, int(width * (y1 - y0) / (x1 - x0)))
    if not view.monocular:
        return frame, draw_bev(frame)
    (name, image), *_ = view.images.items()
    return frame, draw_mono_bev(frame, view.projections[name], image.shape[1])


def _ring(canvas: Image, frame: BEVFrame, objects: DrawnObjects, marked: Sequence[int]) -> None:
    """Draws a ring about objects, in place."""
    centers = frame.to_pixels(objects.boxes.center[:, :2].double().numpy())
    radii = objects.boxes.size[:, :2].double().norm(dim=1).numpy() / 2 + _RING_MARGIN
    for i in marked:
        x, y = np.rint(centers[i] - 0.5).astype(int).tolist()
        cv2.circle(canvas, (x, y), round(radii[i] * frame.pixels_per_meter), (0, 0, 0), 2, cv2.LINE_AA)
