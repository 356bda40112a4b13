"""KITTI's object types as the synthetic world knows them."""

from __future__ import annotations

import dataclasses

from bevkd2.data.synthetic.scene import ObjectClass


@dataclasses.dataclass(frozen=True)
class KittiType:
    """How objects of a type look and where they are.

    Attributes:
        kind: name, mean size and look; nothing moves, as every frame is a scene of its own.
        share: of all objects.
        hue: on a circle of length 1.
        lane_share: the share that keeps to the lanes and to the direction of the road.
        kerb_share: the share that stands along the edges of the road; the rest is anywhere on the road and
            heads any way.
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
