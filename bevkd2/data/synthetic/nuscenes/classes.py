"""The ten detection classes as the world knows them: sizes, motion, attributes."""

from __future__ import annotations

from bevkd2.data.synthetic.scene import ObjectClass

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
"""All of nuScenes's."""


def attribute_of(kind: ObjectClass, moving: bool, on_road: bool) -> str | None:
    """Returns the nuScenes attribute; None for the classes that have none."""
    if kind.name in ("barrier", "traffic_cone"):
        return None
    if kind.name == "pedestrian":
        return "pedestrian.moving" if moving else "pedestrian.standing"
    if kind.name in ("motorcycle", "bicycle"):
        return "cycle.with_rider" if moving else "cycle.without_rider"
    if moving:
        return "vehicle.moving"
    return "vehicle.stopped" if on_road else "vehicle.parked"
