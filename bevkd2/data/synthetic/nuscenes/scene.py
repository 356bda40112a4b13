"""One scene in nuScenes layout: the path of the ego along a curved road, and static and moving objects."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from bevkd2.data.synthetic.nuscenes.config import WorldConfig
from bevkd2.data.synthetic.nuscenes.rig import make_rig
from bevkd2.data.synthetic.scene import (
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

FRAME_INTERVAL = 0.5
"""Seconds between key frames: nuScenes annotates at 2 Hz."""

# Metres between the ego's reference point and every box, in addition to the radius of the box.
_EGO_RADIUS = 2.8
# Tries to place a box without overlap; if all fail, the one with the largest gap is taken.
_CANDIDATES = 64
_SIZE_SIGMA = 0.08
# Share of the vehicles with a heading along the road; the others have any heading.
_ALIGNED_SHARE = 0.6

CLASSES = (
    ObjectClass("car", "vehicle.car", (4.6, 1.95, 1.73), (2.0, 8.0), 0.5, "car"),
    ObjectClass("truck", "vehicle.truck", (6.9, 2.5, 2.8), (2.0, 7.0), 0.4, "truck"),
    ObjectClass(
        "construction_vehicle", "vehicle.construction", (6.4, 2.8, 3.2), (0.5, 2.0), 0.2, "construction"
    ),
    ObjectClass("bus", "vehicle.bus.rigid", (10.5, 2.9, 3.4), (2.0, 7.0), 0.4, "bus"),
    ObjectClass("trailer", "vehicle.trailer", (11.5, 2.9, 3.8), (2.0, 6.0), 0.2, "trailer"),
    ObjectClass("barrier", "movable_object.barrier", (0.5, 2.5, 0.98), (0.0, 0.0), 0.0, "barrier"),
    ObjectClass("motorcycle", "vehicle.motorcycle", (2.1, 0.77, 1.47), (2.0, 8.0), 0.5, "cycle"),
    ObjectClass("bicycle", "vehicle.bicycle", (1.7, 0.6, 1.3), (1.5, 5.0), 0.5, "cycle"),
    ObjectClass("pedestrian", "human.pedestrian.adult", (0.73, 0.67, 1.77), (0.6, 1.8), 0.6, "pedestrian"),
    ObjectClass("traffic_cone", "movable_object.trafficcone", (0.41, 0.41, 1.07), (0.0, 0.0), 0.0, "cone"),
)
"""In the order of the class labels."""

ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)
"""All attributes of nuScenes."""


def attribute_of(kind: ObjectClass, moving: bool, on_road: bool) -> str | None:
    """Returns the nuScenes attribute of an object; None for classes that have none.

    Args:
        kind: the object's class.
        moving: whether it moves.
        on_road: whether it is on the road, so that a vehicle that does not move is stopped, not
            parked.
    """
    if kind.name in ("barrier", "traffic_cone"):
        return None
    if kind.name == "pedestrian":
        return "pedestrian.moving" if moving else "pedestrian.standing"
    if kind.name in ("motorcycle", "bicycle"):
        return "cycle.with_rider" if moving else "cycle.without_rider"
    if moving:
        return "vehicle.moving"
    return "vehicle.stopped" if on_road else "vehicle.parked"


def make_scene(config: WorldConfig, index: int) -> Scene:
    """Draws a scene.

    Args:
        config: the world.
        index: index of the scene; with the seed it determines all random numbers.

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


def _deal_classes(rng: np.random.Generator, config: WorldConfig) -> list[ObjectClass | None]:
    """Returns classes in equal numbers, the rest drawn without repetition, then the distractors (None)."""
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
    """Draws an object that does not overlap the ego or other objects at any key frame, if possible."""
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
        size, color = draw_distractor(rng)
        return WorldObject(None, size, rng.uniform(-math.pi, math.pi), anchor, np.zeros(2), color, None)
    moving = rng.random() < kind.moving_share
    speed = rng.uniform(*kind.speeds) if moving else 0.0
    yaw = _draw_heading(rng, kind, ego_heading)
    velocity = speed * np.array([math.cos(yaw), math.sin(yaw)])
    right, left = road.edges
    on_road = bool(right < road.coordinates(*anchor)[1] < left)
    size = np.array(kind.size) * np.exp(_SIZE_SIGMA * rng.standard_normal(3))
    color = draw_color(rng, CLASSES.index(kind) / len(CLASSES), config.hue_sigma)
    position = anchor - anchor_time * velocity
    return WorldObject(kind, size, yaw, position, velocity, color, attribute_of(kind, moving, on_road))


def _draw_heading(rng: np.random.Generator, kind: ObjectClass, road_heading: float) -> float:
    if kind.name in ("pedestrian", "traffic_cone", "barrier") or rng.random() > _ALIGNED_SHARE:
        return rng.uniform(-math.pi, math.pi)
    heading: float = road_heading + rng.choice([0.0, math.pi]) + 0.1 * rng.standard_normal()
    return heading


def _clearance(candidate: WorldObject, path: EgoPath, times: Array, others: list[WorldObject]) -> float:
    """Returns the smallest gap (m) between the circumcircles of boxes and the ego, over all key frames."""
    track = candidate.position + times[:, None] * candidate.velocity
    radius = 0.5 * math.hypot(*candidate.size[:2])
    ego = np.array([path.pose(t)[0] for t in times])
    gap = float(np.linalg.norm(track - ego, axis=1).min()) - radius - _EGO_RADIUS
    for other in others:
        other_track = other.position + times[:, None] * other.velocity
        distance = float(np.linalg.norm(track - other_track, axis=1).min())
        gap = min(gap, distance - radius - 0.5 * math.hypot(*other.size[:2]))
    return gap
