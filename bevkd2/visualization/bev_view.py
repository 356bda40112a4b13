"""The scene from above: x to the right, y upwards, as in the frame of the multi-view boxes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from bevkd2.visualization.canvas import put_text
from bevkd2.visualization.objects import Array, DrawnObjects, Image

_GRID = (214, 214, 214)
_EGO = (60, 60, 60)
_RING_STEP = 10.0
_RING_LABEL_WIDTH = 40  # pixels
# Metres, about those of a car.
_EGO_LENGTH, _EGO_WIDTH = 4.6, 1.9
# Metres per second; slower objects get no arrow.
_LEAST_SPEED = 0.3


@dataclasses.dataclass(frozen=True)
class BEVFrame:
    """The part of the ground that a picture shows.

    Attributes:
        extent: x0, y0, x1, y1 in metres.
        pixels: height of the picture; its width follows the extent.
    """

    extent: tuple[float, float, float, float] = (-51.2, -51.2, 51.2, 51.2)
    pixels: int = 512

    def __post_init__(self) -> None:
        x0, y0, x1, y1 = self.extent
        if not (x0 < x1 and y0 < y1):
            raise ValueError(f"BEVFrame.extent is {self.extent}, expected x0 < x1 and y0 < y1")

    @property
    def pixels_per_meter(self) -> float:
        """The scale, the same along both axes."""
        return self.pixels / (self.extent[3] - self.extent[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels, round(self.pixels_per_meter * (self.extent[2] - self.extent[0]))

    def to_pixels(self, points: Array) -> Array:
        """Returns continuous pixel coordinates (x right, y down) of points (..., 2) in metres."""
        x = (points[..., 0] - self.extent[0]) * self.pixels_per_meter
        y = (self.extent[3] - points[..., 1]) * self.pixels_per_meter
        return np.stack([x, y], axis=-1)


def draw_bev(
    frame: BEVFrame,
    truth: DrawnObjects | None = None,
    predictions: DrawnObjects | None = None,
    base: Image | None = None,
) -> Image:
    """Draws objects from above: annotations filled, predictions as outlines; a bar marks the front.

    Args:
        frame: what part of the ground.
        truth: annotations, filled in a pale tone of the class's colour.
        predictions: outlines in the class's colour, thicker from a score of 0.5.
        base: (H, W, 3) picture of the frame's shape to draw upon; white with range rings by default.

    Returns:
        A new image of ``frame.shape``.

    Raises:
        ValueError: ``base`` has another shape.
    """
    if base is None:
        canvas = np.full((*frame.shape, 3), 255, dtype=np.uint8)
        draw_rings(canvas, frame)
    elif base.shape[:2] == frame.shape:
        canvas = base.copy()
    else:
        raise ValueError(f"draw_bev: base is {base.shape[:2]}, expected the frame's {frame.shape}")
    if truth is not None:
        draw_filled(canvas, frame, truth)
    if predictions is not None:
        draw_outlined(canvas, frame, predictions)
    _draw_ego(canvas, frame)
    return canvas


def draw_outlines(canvas: Image, frame: BEVFrame, objects: DrawnObjects, color: tuple[int, int, int]) -> None:
    """Draws thin outlines of one colour, in place.

    Args:
        canvas: (H, W, 3) uint8, of the frame's shape.
        frame: where the canvas is, in metres.
        objects: their footprints are drawn.
        color: RGB, 0 to 255.
    """
    for footprint in _footprints(frame, objects):
        cv2.polylines(canvas, [footprint], True, color, 1, cv2.LINE_AA)


def draw_headings(
    canvas: Image, frame: BEVFrame, objects: DrawnObjects, color: tuple[int, int, int] | None = None
) -> None:
    """Draws a line from each centre to the middle of the front, in place.

    Args:
        canvas: of ``frame.shape``.
        frame: what part of the ground.
        objects: what to draw.
        color: RGB; None: the colour of each object's class.
    """
    for i, footprint in enumerate(_footprints(frame, objects)):
        middles = np.rint([footprint.mean(axis=0), footprint[:2].mean(axis=0)]).astype(int).tolist()
        (x0, y0), (x1, y1) = middles
        line = objects.color(i) if color is None else color
        cv2.line(canvas, (x0, y0), (x1, y1), line, 2 if color is None else 1, cv2.LINE_AA)


def _footprints(frame: BEVFrame, objects: DrawnObjects) -> npt.NDArray[np.int32]:
    """Returns (N, 4, 2) pixels of the bottom faces: front left, front right, rear right, rear left."""
    bottom = objects.corners()[:, [3, 2, 6, 7], :2]
    return _round(frame.to_pixels(bottom))


def _round(points: Array) -> npt.NDArray[np.int32]:
    return np.ascontiguousarray(np.rint(np.clip(points - 0.5, -1e6, 1e6)), dtype=np.int32)


def draw_rings(canvas: Image, frame: BEVFrame, bearing: float = 0.0) -> None:
    """Draws circles of constant distance from the origin, every 10 m, in place.

    Args:
        canvas: of ``frame.shape``.
        frame: what part of the ground.
        bearing: radians to the right of +y, where the distances are written; if that is outside the
            picture, they are written farther left on the circle.
    """
    farthest = max(abs(limit) for limit in frame.extent)
    center = tuple(_round(frame.to_pixels(np.zeros(2))).tolist())
    rightmost = frame.extent[2] - _RING_LABEL_WIDTH / frame.pixels_per_meter
    for radius in np.arange(_RING_STEP, 1.5 * farthest, _RING_STEP):
        cv2.circle(canvas, center, round(radius * frame.pixels_per_meter), _GRID, 1, cv2.LINE_AA)
        side = float(np.clip(radius * np.sin(bearing), -radius, min(rightmost, radius)))
        x, y = _round(frame.to_pixels(np.array([side, np.sqrt(radius**2 - side**2)]))).tolist()
        if 0 < y < frame.shape[0] - 12:
            cv2.putText(
                canvas, f"{radius:.0f} m", (x + 2, y + 11), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (150, 150, 150), 1
            )


def draw_filled(canvas: Image, frame: BEVFrame, objects: DrawnObjects) -> None:
    """Draws footprints filled in a pale tone of the class's colour, in place; a bar marks the front.

    Args:
        canvas: (H, W, 3) uint8, of the frame's shape.
        frame: where the canvas is, in metres.
        objects: those with a velocity get an arrow.
    """
    pale = canvas.copy()
    for i, footprint in enumerate(_footprints(frame, objects)):
        cv2.fillPoly(pale, [footprint], objects.color(i), cv2.LINE_AA)
    cv2.addWeighted(pale, 0.45, canvas, 0.55, 0, dst=canvas)
    for i, footprint in enumerate(_footprints(frame, objects)):
        _draw_front(canvas, footprint, objects.color(i), 2)
        _draw_velocity(canvas, frame, objects, i)


def draw_outlined(canvas: Image, frame: BEVFrame, objects: DrawnObjects) -> None:
    """Draws footprints as outlines in the class's colour, in place; a bar marks the front.

    Args:
        canvas: (H, W, 3) uint8, of the frame's shape.
        frame: where the canvas is, in metres.
        objects: higher scores are drawn later, and from 0.5 on thicker, as annotations are.
    """
    order = range(len(objects)) if objects.scores is None else np.argsort(objects.scores)
    footprints = _footprints(frame, objects)
    for i in order:
        sure = objects.scores is None or objects.scores[i] >= 0.5
        cv2.polylines(canvas, [footprints[i]], True, objects.color(i), 2 if sure else 1, cv2.LINE_AA)
        _draw_front(canvas, footprints[i], objects.color(i), 3 if sure else 2)
        _draw_velocity(canvas, frame, objects, i)


def _draw_front(
    canvas: Image, footprint: npt.NDArray[np.int32], color: tuple[int, int, int], thickness: int
) -> None:
    left, right = footprint[0].tolist(), footprint[1].tolist()
    cv2.line(canvas, tuple(left), tuple(right), color, thickness, cv2.LINE_AA)


def _draw_velocity(canvas: Image, frame: BEVFrame, objects: DrawnObjects, index: int) -> None:
    """Draws an arrow to the place where the object will be after one second, in place."""
    if not objects.boxes.has_velocity:
        return
    velocity = objects.boxes.velocity[index].double().numpy()
    if not np.hypot(*velocity) > _LEAST_SPEED:  # also for NaN, where the velocity is unknown
        return
    start = objects.boxes.center[index, :2].double().numpy()
    tail, head = _round(frame.to_pixels(np.stack([start, start + velocity]))).tolist()
    cv2.arrowedLine(canvas, tuple(tail), tuple(head), objects.color(index), 1, cv2.LINE_AA, tipLength=0.25)


def _draw_ego(canvas: Image, frame: BEVFrame) -> None:
    half = 0.5 * np.array([_EGO_WIDTH, _EGO_LENGTH])
    corners = half * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 0.5], [0.0, 1.0], [-1.0, 0.5]])
    cv2.fillPoly(canvas, [_round(frame.to_pixels(corners))], _EGO, cv2.LINE_AA)


def legend(names: Sequence[str], colors: Image, width: int) -> Image:
    """Draws class names, each beside its colour.

    Args:
        names: of the classes.
        colors: (K, 3) RGB; class k has the colour of row k % K, as in ``DrawnObjects``.
        width: of the picture in pixels.

    Returns:
        (H, width, 3).
    """
    column, line = 165, 18
    columns = max(1, width // column)
    rows = -(-len(names) // columns)
    canvas = np.full((rows * line + 4, width, 3), 255, dtype=np.uint8)
    for i, name in enumerate(names):
        x, y = (i % columns) * column + 4, (i // columns) * line + 2
        canvas[y + 3 : y + 13, x : x + 10] = colors[i % len(colors)]
        put_text(canvas, name, (x + 12, y + 1), height=10, box=False)
    return canvas
