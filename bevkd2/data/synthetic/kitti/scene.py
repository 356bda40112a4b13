"""One frame in KITTI layout: a road with traffic ahead of the camera, without motion."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import numpy.typing as npt

from bevkd2.data.synthetic.kitti.calibration import CAMERA_HEIGHT, Calibration, make_calibration
from bevkd2.data.synthetic.kitti.config import KittiWorldConfig
from bevkd2.data.synthetic.scene import (
    LANE_WIDTH,
    EgoPath,
    ObjectClass,
    Road,
    Scene,
    WorldObject,
    draw_color,
    draw_distractor,
    draw_light,
)

Array = npt.NDArray[np.float64]

# Tries to place a box; if all fail, the frame does not get the box.
_CANDIDATES = 24
# Smallest gap between boxes, and smallest depth of a corner, metres.
_GAP = 0.3
_NEAREST_CORNER = 1.5
# Centres are at most this far outside the image, as a share of its width, so that some boxes are truncated.
_BESIDE_IMAGE = 0.05
_CONTACT_RIM = 0.25
# Share of the cars at the kerb that are not parallel to it.
_ANGLED_SHARE = 0.3
# Standard deviation in radians of headings relative to the road.
_HEADING_SIGMA = 0.05


@dataclasses.dataclass(frozen=True)
class KittiType:
    """Appearance and positions of the objects of a type.

    Attributes:
        kind: name, mean size and look; objects do not move, since every frame is its own scene.
        share: share of all objects.
        hue: mean hue, on a circle of length 1.
        lane_share: share of the objects that are in a lane and head along the road.
        kerb_share: share of the objects along the edges of the road; the rest is anywhere on the road, with
            any heading.
    """

    kind: ObjectClass
    share: float
    hue: float
    lane_share: float
    kerb_share: float


def _kind(name: str, size: tuple[float, float, float], look: str) -> ObjectClass:
    return ObjectClass(name, name, size, (0.0, 0.0), 0.0, look)


# Sizes (length, width, height) are near the means of KITTI's training labels.
TYPES = (
    KittiType(_kind("Car", (3.88, 1.63, 1.53), "sedan"), 0.58, 0.60, 0.60, 0.28),
    KittiType(_kind("Pedestrian", (0.84, 0.66, 1.76), "pedestrian"), 0.15, 0.09, 0.0, 0.7),
    KittiType(_kind("Cyclist", (1.76, 0.60, 1.74), "cycle"), 0.13, 0.33, 0.75, 0.0),
    KittiType(_kind("Van", (5.08, 1.90, 2.21), "van"), 0.06, 0.75, 0.6, 0.35),
    KittiType(_kind("Truck", (10.1, 2.58, 3.25), "truck"), 0.04, 0.88, 1.0, 0.0),
    KittiType(_kind("Person_sitting", (0.80, 0.59, 1.27), "pedestrian"), 0.04, 0.0, 0.0, 1.0),
)


@dataclasses.dataclass(frozen=True, eq=False)
class KittiFrame:
    """A frame.

    Attributes:
        scene: the scene for the renderer; the frame is at time 0, and its objects have the kinds of TYPES.
        calibration: calibration of the frame.
    """

    scene: Scene
    calibration: Calibration

    def boxes(self) -> Array:
        """Returns (n, 7) all objects in the camera's frame, laid out as in ``CameraBoxes3D``."""
        path = self.scene.road.path
        return np.array([_camera_box(item, path) for item in self.scene.objects]).reshape(-1, 7)


def make_frame(config: KittiWorldConfig, index: int) -> KittiFrame:
    """Draws a frame.

    Args:
        config: the world.
        index: index of the frame; with the seed it determines all random numbers.

    Returns:
        The frame.
    """
    rng = np.random.default_rng([config.seed, index])
    calibration = make_calibration(rng, config)
    road = _draw_road(rng)
    count = rng.integers(config.min_objects, config.max_objects + 1)
    drawn = rng.choice(len(TYPES), size=count, p=[t.share for t in TYPES])
    types: list[KittiType | None] = [TYPES[i] for i in drawn]
    objects: list[WorldObject] = []
    for kitti_type in types + [None] * config.distractors:
        item = _place(rng, config, calibration, road, kitti_type, objects)
        if item is not None:
            objects.append(item)
    light = dataclasses.replace(draw_light(rng), contact_rim=_CONTACT_RIM)
    scene = Scene([calibration.camera()], road, objects, light, int(rng.integers(2**31)))
    return KittiFrame(scene, calibration)


def _camera_box(item: WorldObject, path: EgoPath) -> Array:
    forward, left = _ego_coordinates(path, item.position)
    # A heading at the angle a to the left of forward is (x, z) = (-sin a, cos a) = (cos ry, -sin ry).
    rotation_y = (path.heading - item.yaw + math.pi / 2) % (2 * math.pi) - math.pi
    return np.array([-left, CAMERA_HEIGHT - item.size[2] / 2, forward, *item.size, rotation_y])


def _ego_coordinates(path: EgoPath, points: Array) -> Array:
    """Returns (..., 2) metres forward and to the left of the camera, of global points (..., 2)."""
    cos, sin = math.cos(path.heading), math.sin(path.heading)
    coordinates: Array = (points - path.origin) @ np.array([[cos, -sin], [sin, cos]])
    return coordinates


def _draw_road(rng: np.random.Generator) -> Road:
    curvature = rng.uniform(0.0002, 0.008) * rng.choice([-1.0, 1.0])
    # At 1 m/s, time in seconds is distance in metres.
    path = EgoPath(rng.uniform(200.0, 1800.0, size=2), rng.uniform(-math.pi, math.pi), 1.0, float(curvature))
    return Road(path, int(rng.integers(2, 5)))


def _place(
    rng: np.random.Generator,
    config: KittiWorldConfig,
    calibration: Calibration,
    road: Road,
    kitti_type: KittiType | None,
    others: list[WorldObject],
) -> WorldObject | None:
    """Draws an object that is in view and does not overlap others; None if all candidates fail."""
    for _ in range(_CANDIDATES):
        item = _draw_object(rng, config, road, kitti_type)
        if _in_view(item, road.path, calibration, config) and all(
            _apart(item, other, road.path, config.overlap) for other in others
        ):
            return item
    return None


def _draw_object(
    rng: np.random.Generator, config: KittiWorldConfig, road: Road, kitti_type: KittiType | None
) -> WorldObject:
    if kitti_type is None:
        size, color = draw_distractor(rng)
    else:
        size = np.array(kitti_type.kind.size) * np.exp(config.size_sigma * rng.standard_normal(3))
        color = draw_color(rng, kitti_type.hue, config.hue_sigma)
    nearest = config.nearest + size[0] / 2
    along = nearest * (max(config.farthest, nearest) / nearest) ** rng.random()
    lateral, turn = _draw_spot(rng, road, kitti_type)
    middle, road_heading = road.path.pose(along)
    position = middle + lateral * np.array([-math.sin(road_heading), math.cos(road_heading)])
    kind = None if kitti_type is None else kitti_type.kind
    return WorldObject(kind, size, road_heading + turn, position, np.zeros(2), color, None)


def _draw_spot(rng: np.random.Generator, road: Road, kitti_type: KittiType | None) -> tuple[float, float]:
    """Returns the lateral offset to the left in metres, and the heading relative to the road in radians."""
    right, left = road.edges
    any_way = rng.uniform(-math.pi, math.pi)
    side = rng.choice([-1.0, 1.0])
    edge = left if side > 0 else right
    if kitti_type is None:
        return edge + side * rng.uniform(2.0, 10.0), any_way
    draw = rng.random() - kitti_type.lane_share
    if draw < 0:
        lane = int(rng.integers(road.num_lanes))
        oncoming = lane >= (road.num_lanes + 1) // 2
        lateral = lane * LANE_WIDTH + 0.3 * rng.standard_normal()
        return lateral, math.pi * oncoming + _HEADING_SIGMA * rng.standard_normal()
    if draw >= kitti_type.kerb_share:
        return rng.uniform(right, left), any_way
    if kitti_type.kind.size[0] < 1.0:
        return edge + side * rng.uniform(-0.5, 2.5), any_way
    turn = rng.choice([0.0, math.pi]) + _HEADING_SIGMA * rng.standard_normal()
    if rng.random() < _ANGLED_SHARE:
        turn += rng.uniform(math.pi / 4, 3 * math.pi / 4)
    return edge + side * rng.uniform(0.8, 1.6), turn


def _in_view(item: WorldObject, path: EgoPath, calibration: Calibration, config: KittiWorldConfig) -> bool:
    (forward, left), (focal, _, cx, _) = _ego_coordinates(path, item.position), calibration.projections[2, 0]
    if _ego_coordinates(path, _footprint(item))[:, 0].min() < _NEAREST_CORNER:
        return False
    share = (cx - focal * left / forward) / config.image_size[0]
    return bool(-_BESIDE_IMAGE < share < 1 + _BESIDE_IMAGE)


def _footprint(item: WorldObject) -> Array:
    """Returns (4, 2) corners on the ground, global, metres."""
    along = 0.5 * item.size[0] * np.array([math.cos(item.yaw), math.sin(item.yaw)])
    across = 0.5 * item.size[1] * np.array([-math.sin(item.yaw), math.cos(item.yaw)])
    corners: Array = item.position + np.array(
        [along + across, along - across, -along - across, -along + across]
    )
    return corners


def _apart(a: WorldObject, b: WorldObject, path: EgoPath, overlap: float) -> bool:
    """Returns whether two boxes have a gap, and the nearer covers at most ``overlap`` of the other."""
    region, _ = cv2.rotatedRectangleIntersection(_widened(a, path), _widened(b, path))
    if region != cv2.INTERSECT_NONE:
        return False
    spans = []
    for item in (a, b):
        corners = _ego_coordinates(path, _footprint(item))
        slopes = corners[:, 1] / corners[:, 0]
        spans.append((corners[:, 0].mean(), slopes.min(), slopes.max()))
    (_, near_low, near_high), (_, far_low, far_high) = sorted(spans)
    shared = min(near_high, far_high) - max(near_low, far_low)
    return bool(shared <= overlap * (far_high - far_low))


def _widened(item: WorldObject, path: EgoPath) -> tuple[list[float], list[float], float]:
    """Returns centre, sides and angle (degrees) of a footprint with half the gap around it, for OpenCV."""
    center = _ego_coordinates(path, item.position).tolist()
    return center, (item.size[:2] + _GAP).tolist(), math.degrees(item.yaw - path.heading)
