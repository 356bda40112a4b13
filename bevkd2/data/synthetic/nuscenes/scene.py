"""One scene: the ego's path along a curved road, and what stands and moves around it."""

from __future__ import annotations

import colorsys
import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from bevkd2.data.synthetic.nuscenes.classes import CLASSES, ObjectClass
from bevkd2.data.synthetic.nuscenes.config import WorldConfig
from bevkd2.data.synthetic.nuscenes.rig import Sensor, make_rig

Array = npt.NDArray[np.float64]

FRAME_INTERVAL = 0.5
"""Seconds between key frames: nuScenes annotates at 2 Hz."""
LANE_WIDTH = 3.5
"""Metres."""

# Metres that every box keeps from the ego's reference point, beyond its own radius.
_EGO_RADIUS = 2.8
# Tries to place a box where it meets no other; the least crowded of them is taken when all fail.
_CANDIDATES = 64
_SIZE_SIGMA = 0.08
# Of what drives, the share that keeps to the direction of the road; the others stand or go any way.
_ALIGNED_SHARE = 0.6


@dataclasses.dataclass(frozen=True, eq=False)
class EgoPath:
    """A drive along an arc at constant speed, in the global frame.

    Attributes:
        origin: (2,) position at time 0, metres.
        heading: radians at time 0.
        speed: m/s.
        curvature: 1/m, positive to the left, never 0.
    """

    origin: Array
    heading: float
    speed: float
    curvature: float

    def pose(self, time: float) -> tuple[Array, float]:
        """Returns the position (2,) in metres and heading in radians at ``time`` in seconds."""
        turn = self.curvature * self.speed * time
        # The chord of an arc has length arc * sinc(turn / 2) and the mean of the two headings.
        chord = self.speed * time * float(np.sinc(turn / (2 * math.pi)))
        middle = self.heading + turn / 2
        return self.origin + chord * np.array([math.cos(middle), math.sin(middle)]), self.heading + turn


@dataclasses.dataclass(frozen=True, eq=False)
class Road:
    """A road of parallel lanes along the ego's path; the ego drives in the rightmost one.

    Attributes:
        path: the middle of the ego's lane.
        num_lanes: lanes, counted from the ego's to the left.
    """

    path: EgoPath
    num_lanes: int

    @property
    def edges(self) -> tuple[float, float]:
        """Returns the lateral offsets of the right and the left edge, metres, positive to the left."""
        return -LANE_WIDTH / 2, (self.num_lanes - 0.5) * LANE_WIDTH

    def coordinates(
        self, x: npt.NDArray[Any], y: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Returns the distance along the road and lateral offset to the left of the ego's path.

        Args:
            x: global x in metres, any shape.
            y: global y in metres, same shape.

        Returns:
            (along, lateral) in metres, of the same shape and dtype.
        """
        cos, sin = math.cos(self.path.heading), math.sin(self.path.heading)
        dx, dy = x - float(self.path.origin[0]), y - float(self.path.origin[1])
        radius = 1 / self.path.curvature
        sign = math.copysign(1.0, radius)
        forward, left = cos * dx + sin * dy, cos * dy - sin * dx
        lateral = radius - sign * np.hypot(forward, left - radius)
        along = radius * np.arctan2(sign * forward, sign * (radius - left))
        return along, lateral


@dataclasses.dataclass(frozen=True, eq=False)
class WorldObject:
    """A box that stands on the ground and moves along a straight line.

    Attributes:
        kind: the class; None for a distractor.
        size: (3,) length, width, height in metres.
        yaw: heading in the global frame, radians.
        position: (2,) of the centre at time 0, global, metres.
        velocity: (2,) global, m/s.
        color: (3,) RGB in 0..1.
        attribute: nuScenes attribute, None for classes without.
    """

    kind: ObjectClass | None
    size: Array
    yaw: float
    position: Array
    velocity: Array
    color: Array
    attribute: str | None

    def center(self, time: float) -> Array:
        """Returns (3,) gravity centre at ``time`` in seconds, global, metres."""
        return np.array([*(self.position + time * self.velocity), self.size[2] / 2])


@dataclasses.dataclass(frozen=True, eq=False)
class Light:
    """Sun and air of a scene.

    Attributes:
        sun: (3,) unit vector towards the sun, global.
        ambient: share of the light that comes from everywhere; the rest comes from the sun.
        haze_distance: metres after which 1/e of the contrast is left.
        haze_color: (3,) RGB in 0..1.
        contact_rim: metres by which the dark under a box reaches out from its foot on all sides, whatever the
            sun; 0 for none.
    """

    sun: Array
    ambient: float
    haze_distance: float
    haze_color: Array
    contact_rim: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """Everything that a scene's images and annotations are made from.

    Attributes:
        rig: LIDAR_TOP, then the cameras.
        road: with the ego's path.
        objects: annotated ones first, then the distractors.
        light: sun and air.
        texture_seed: for the painters.
    """

    rig: list[Sensor]
    road: Road
    objects: list[WorldObject]
    light: Light
    texture_seed: int


def make_scene(config: WorldConfig, index: int) -> Scene:
    """Draws a scene.

    Args:
        config: the world.
        index: of the scene; with the seed it decides every draw.

    Returns:
        The scene.
    """
    rng = np.random.default_rng([config.seed, index])
    rig = make_rig(rng, config.image_size)
    road = _draw_road(rng)
    times = FRAME_INTERVAL * np.arange(config.frames_per_scene)
    objects: list[WorldObject] = []
    for kind in _deal_classes(rng, config):
        objects.append(_place(rng, config, road, times, kind, objects))
    return Scene(rig, road, objects, draw_light(rng), int(rng.integers(2**31)))


def _draw_road(rng: np.random.Generator) -> Road:
    origin = rng.uniform(200.0, 1800.0, size=2)
    curvature = rng.uniform(0.0005, 0.02) * rng.choice([-1.0, 1.0])
    speed = 0.0 if rng.random() < 0.1 else rng.uniform(1.0, 6.0)
    path = EgoPath(origin, rng.uniform(-math.pi, math.pi), float(speed), float(curvature))
    return Road(path, int(rng.integers(2, 5)))


def draw_light(rng: np.random.Generator) -> Light:
    """Draws sun and air of a random day."""
    azimuth, elevation = rng.uniform(-math.pi, math.pi), math.radians(rng.uniform(25.0, 65.0))
    level = math.cos(elevation)
    sun = np.array([level * math.cos(azimuth), level * math.sin(azimuth), math.sin(elevation)])
    gray = rng.uniform(0.72, 0.86)
    haze_color = np.array([gray - 0.03, gray, gray + 0.04])
    return Light(sun, rng.uniform(0.55, 0.7), rng.uniform(90.0, 200.0), haze_color)


def _deal_classes(rng: np.random.Generator, config: WorldConfig) -> list[ObjectClass | None]:
    """Classes in equal numbers, the remainder drawn without repetition, then the distractors (None)."""
    rounds = -(-config.objects_per_scene // len(CLASSES))
    deck = (
        np.concatenate([rng.permutation(len(CLASSES)) for _ in range(rounds)]) if rounds else np.zeros(0, int)
    )
    kinds: list[ObjectClass | None] = [CLASSES[i] for i in deck[: config.objects_per_scene]]
    return kinds + [None] * config.distractors


def _place(
    rng: np.random.Generator,
    config: WorldConfig,
    road: Road,
    times: Array,
    kind: ObjectClass | None,
    others: list[WorldObject],
) -> WorldObject:
    """Draws an object that keeps clear of the ego and of the others at every key frame."""
    best, best_gap = None, -math.inf
    for _ in range(_CANDIDATES):
        candidate = _draw_object(rng, config, road, times[-1], kind)
        gap = _clearance(candidate, road.path, times, others)
        if gap > best_gap:
            best, best_gap = candidate, gap
        if gap > 0:
            break
    assert best is not None
    return best


def _draw_object(
    rng: np.random.Generator, config: WorldConfig, road: Road, duration: float, kind: ObjectClass | None
) -> WorldObject:
    anchor_time = rng.uniform(0.0, duration)
    ego, ego_heading = road.path.pose(anchor_time)
    offset = rng.uniform(-config.world_radius, config.world_radius, size=2)
    cos, sin = math.cos(ego_heading), math.sin(ego_heading)
    anchor = ego + np.array([cos * offset[0] - sin * offset[1], sin * offset[0] + cos * offset[1]])
    if kind is None:
        size = np.array([rng.uniform(0.3, 4.0), rng.uniform(0.3, 3.0), rng.uniform(0.8, 4.0)])
        color = np.clip(rng.uniform(0.25, 0.75) + 0.02 * rng.standard_normal(3), 0.0, 1.0)
        return WorldObject(None, size, rng.uniform(-math.pi, math.pi), anchor, np.zeros(2), color, None)
    moving = rng.random() < kind.moving_share
    speed = rng.uniform(*kind.speeds) if moving else 0.0
    yaw = _draw_heading(rng, kind, ego_heading)
    velocity = speed * np.array([math.cos(yaw), math.sin(yaw)])
    right, left = road.edges
    on_road = bool(right < road.coordinates(*anchor)[1] < left)
    size = np.array(kind.size) * np.exp(_SIZE_SIGMA * rng.standard_normal(3))
    color = _draw_color(rng, config.hue_sigma, CLASSES.index(kind))
    position = anchor - anchor_time * velocity
    return WorldObject(kind, size, yaw, position, velocity, color, kind.attribute(moving, on_road))


def _draw_heading(rng: np.random.Generator, kind: ObjectClass, road_heading: float) -> float:
    if kind.name in ("pedestrian", "traffic_cone", "barrier") or rng.random() > _ALIGNED_SHARE:
        return rng.uniform(-math.pi, math.pi)
    heading: float = road_heading + rng.choice([0.0, math.pi]) + 0.1 * rng.standard_normal()
    return heading


def _draw_color(rng: np.random.Generator, hue_sigma: float, label: int) -> Array:
    hue = (label / len(CLASSES) + hue_sigma * rng.standard_normal()) % 1.0
    return np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.75, 0.95), rng.uniform(0.7, 0.95)))


def _clearance(candidate: WorldObject, path: EgoPath, times: Array, others: list[WorldObject]) -> float:
    """Returns the least gap (m) between the circles about boxes and the ego, over the key frames."""
    track = candidate.position + times[:, None] * candidate.velocity
    radius = 0.5 * math.hypot(*candidate.size[:2])
    ego = np.array([path.pose(t)[0] for t in times])
    gap = float(np.linalg.norm(track - ego, axis=1).min()) - radius - _EGO_RADIUS
    for other in others:
        other_track = other.position + times[:, None] * other.velocity
        distance = float(np.linalg.norm(track - other_track, axis=1).min())
        gap = min(gap, distance - radius - 0.5 * math.hypot(*other.size[:2]))
    return gap
