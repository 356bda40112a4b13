"""The parts of a scene in every layout: a road, the path of the ego vehicle, objects, sun and haze."""

from __future__ import annotations

import colorsys
import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from bevkd2.structures import pose_matrix

Array = npt.NDArray[np.float64]

AXES_QUATERNION = np.array([0.5, -0.5, 0.5, -0.5])
"""From camera axes (x right, y down, z forward) to ego axes (x forward, y left, z up), for a camera that
looks forward: a third of a turn about (-1, 1, -1)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sensor:
    """One calibrated sensor.

    Attributes:
        channel: the name: a channel of nuScenes, or a folder of KITTI.
        translation: (3,) position in the ego frame, metres.
        rotation: (4,) quaternion w, x, y, z from the sensor frame to the ego frame.
        intrinsics: (3, 3) pinhole matrix in pixels; None for the lidar.
        delay: microseconds from the key frame to this sensor's exposure.
    """

    channel: str
    translation: Array
    rotation: Array
    intrinsics: Array | None
    delay: int

    @property
    def sensor2ego(self) -> Array:
        """Returns the (4, 4) rigid transform from the sensor frame to the ego frame."""
        return pose_matrix(self.translation, self.rotation)


LANE_WIDTH = 3.5
"""Metres."""


@dataclasses.dataclass(frozen=True, eq=False)
class EgoPath:
    """A path along an arc at constant speed, in the global frame.

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
        path: the middle of the ego lane.
        num_lanes: number of lanes, from the ego lane to the left.
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


@dataclasses.dataclass(frozen=True)
class ObjectClass:
    """Appearance and motion of the objects of a class.

    Attributes:
        name: detection class.
        category: nuScenes category, a name that the devkit maps to ``name``.
        size: mean length, width, height in metres, close to the means of the class in nuScenes.
        speeds: (lowest, highest) speed of moving objects, m/s.
        moving_share: share of the objects that move.
        look: name of the painter in textures.py.
    """

    name: str
    category: str
    size: tuple[float, float, float]
    speeds: tuple[float, float]
    moving_share: float
    look: str


@dataclasses.dataclass(frozen=True, eq=False)
class WorldObject:
    """A box on the ground that moves along a straight line.

    Attributes:
        kind: the class; None for a distractor.
        size: (3,) length, width, height in metres.
        yaw: heading in the global frame, radians.
        position: (2,) of the centre at time 0, global, metres.
        velocity: (2,) global, m/s.
        color: (3,) RGB in 0..1.
        attribute: nuScenes attribute; None for classes that have none.
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
    """Sun and haze of a scene.

    Attributes:
        sun: (3,) unit vector towards the sun, global.
        ambient: share of ambient light; the rest comes from the sun.
        haze_distance: metres after which the contrast is 1/e.
        haze_color: (3,) RGB in 0..1.
        contact_rim: width in metres of the contact shadow around the footprint of a box, independent of the
            sun; 0: none.
    """

    sun: Array
    ambient: float
    haze_distance: float
    haze_color: Array
    contact_rim: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """Everything from which the images and annotations of a scene are made.

    Attributes:
        rig: the cameras; in nuScenes layout after LIDAR_TOP.
        road: the road, with the path of the ego vehicle.
        objects: annotated objects first, then the distractors.
        light: sun and haze.
        texture_seed: seed of the painters.
    """

    rig: list[Sensor]
    road: Road
    objects: list[WorldObject]
    light: Light
    texture_seed: int


def draw_light(rng: np.random.Generator) -> Light:
    """Draws sun and haze at random: the sun 25 to 65 degrees high, haze of 90 to 200 metres.

    Args:
        rng: the source of randomness.
    """
    azimuth, elevation = rng.uniform(-math.pi, math.pi), math.radians(rng.uniform(25.0, 65.0))
    level = math.cos(elevation)
    sun = np.array([level * math.cos(azimuth), level * math.sin(azimuth), math.sin(elevation)])
    gray = rng.uniform(0.72, 0.86)
    haze_color = np.array([gray - 0.03, gray, gray + 0.04])
    return Light(sun, rng.uniform(0.55, 0.7), rng.uniform(90.0, 200.0), haze_color)


def draw_color(rng: np.random.Generator, hue: float, hue_sigma: float) -> Array:
    """Draws the colour of an object.

    Args:
        rng: generator of the scene.
        hue: mean hue of its class, on a circle of length 1.
        hue_sigma: standard deviation of the hue.

    Returns:
        (3,) RGB in 0..1.
    """
    hue = (hue + hue_sigma * rng.standard_normal()) % 1.0
    return np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.75, 0.95), rng.uniform(0.7, 0.95)))


def draw_distractor(rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws a distractor: a block of a nearly grey colour.

    Args:
        rng: the source of randomness.

    Returns:
        size: (3,) length, width, height in metres. color: (3,) RGB in 0..1.
    """
    size = np.array([rng.uniform(0.3, 4.0), rng.uniform(0.3, 3.0), rng.uniform(0.8, 4.0)])
    return size, np.clip(rng.uniform(0.25, 0.75) + 0.02 * rng.standard_normal(3), 0.0, 1.0)
