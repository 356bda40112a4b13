"""Which attribute a detection gets: by class and speed, or by what the model predicts."""

from __future__ import annotations

from bevkd2.nuscenes.layout import ATTRIBUTE_NAMES, NO_ATTRIBUTE

MOVING_SPEED = 0.2
"""m/s above which an object counts as moving, as in the published evaluation of BEVFormer."""

_VEHICLES = ("car", "truck", "construction_vehicle", "bus", "trailer")
_CYCLES = ("motorcycle", "bicycle")
_MOVING_ATTRIBUTE = {
    **dict.fromkeys(_VEHICLES, "vehicle.moving"),
    **dict.fromkeys(_CYCLES, "cycle.with_rider"),
    "pedestrian": "pedestrian.moving",
}
_RESTING_ATTRIBUTE = {
    **dict.fromkeys(_VEHICLES, "vehicle.parked"),
    "bus": "vehicle.stopped",
    **dict.fromkeys(_CYCLES, "cycle.without_rider"),
    "pedestrian": "pedestrian.standing",
}
# A class's attribute where the predicted one cannot be: DefaultAttribute of mmdetection3d's NuScenesDataset.
_DEFAULT_ATTRIBUTE = {
    **dict.fromkeys(_VEHICLES, "vehicle.parked"),
    "bus": "vehicle.moving",
    **dict.fromkeys(_CYCLES, "cycle.without_rider"),
    "pedestrian": "pedestrian.moving",
}


def attribute_of(class_name: str, speed: float) -> str:
    """Returns the attribute that a detection gets by rule.

    Args:
        class_name: one of CLASS_NAMES.
        speed: m/s.

    Returns:
        A nuScenes attribute; "" for barriers and traffic cones, which have none.
    """
    return (_MOVING_ATTRIBUTE if speed > MOVING_SPEED else _RESTING_ATTRIBUTE).get(class_name, "")


def predicted_attribute(class_name: str, attribute: int) -> str:
    """Returns the attribute that a detection gets where the model predicts one.

    Args:
        class_name: one of CLASS_NAMES.
        attribute: index into ATTRIBUTE_NAMES, or NO_ATTRIBUTE.

    Returns:
        The predicted attribute where the class may have it, else the class's default, as published: a
        vehicle is parked (a bus moves), a cycle is without rider, a pedestrian moves. "" for barriers and
        traffic cones, which have none.
    """
    default = _DEFAULT_ATTRIBUTE.get(class_name, "")
    # Attributes are named <kind of object>.<state>, and a class may have all of its kind.
    kind = default.partition(".")[0]
    if attribute != NO_ATTRIBUTE and ATTRIBUTE_NAMES[attribute].partition(".")[0] == kind:
        return ATTRIBUTE_NAMES[attribute]
    return default
