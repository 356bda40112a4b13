"""Number and pixel area of the objects of single images by depth (depth-guided distillation, Fig. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bevkd2.data.mono.index import MonoIndex, MonoRecord, annotated_objects, depths_of
from bevkd2.structures import projected_boxes2d

Floats = npt.NDArray[np.float64]

_MOST_BINS = 1000


@dataclass(frozen=True, eq=False)
class ObjectStatistics:
    """M objects.

    Attributes:
        depths: (M,) metres along the camera's axis.
        areas: (M,) pixels of the image file inside the image-plane box.
        labels: (M,) class.
        left_out: objects without area in their image, which are in none of the arrays.
    """

    depths: Floats
    areas: Floats
    labels: npt.NDArray[np.int64]
    left_out: int


def object_statistics(index: MonoIndex) -> ObjectStatistics:
    """Measures the objects of a split; no image is read.

    The area is that of the label's own image-plane box; where the format has none, of the projected corners'
    box, clipped to the image.

    Args:
        index: annotated images.

    Raises:
        ValueError: an image without annotations.
    """
    depths, areas, labels = [], [], []
    for i in range(len(index)):
        record = index.record(i)
        depths.append(depths_of(record).double().numpy())
        areas.append(_areas(record))
        labels.append(annotated_objects(record)[1].numpy())
    area = np.concatenate(areas)
    seen = area > 0
    left_out = int((~seen).sum())
    return ObjectStatistics(np.concatenate(depths)[seen], area[seen], np.concatenate(labels)[seen], left_out)


def _areas(record: MonoRecord) -> Floats:
    boxes = record.boxes2d
    if boxes is None:
        cam2img = torch.from_numpy(record.cam2img)
        boxes = projected_boxes2d(annotated_objects(record)[0], cam2img, (record.height, record.width))
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    areas: Floats = sides.double().prod(dim=1).numpy()
    return areas


def by_depth(found: ObjectStatistics, class_names: Sequence[str], bin_size: float) -> dict[str, Any]:
    """Counts the objects in bins of depth.

    Args:
        found: the objects.
        class_names: in the order of the labels.
        bin_size: metres.

    Returns:
        "objects", "left_out", and "bins": "low" and "high" in metres, "number", "share" of all objects,
        "farther", the share of objects in this bin or beyond, "area", the mean in pixels (None in an empty
        bin), and "per_class", the number of each class.

    Raises:
        ValueError: there is no object, the size of a bin cannot be, or there would be too many bins.
    """
    if not bin_size > 0:
        raise ValueError(f"the size of a bin is {bin_size:g}, expected metres above 0")
    total = len(found.depths)
    if not total:
        raise ValueError(f"the split has no object of {', '.join(class_names)}: nothing to count")
    farthest = float(found.depths.max())
    if farthest / bin_size >= _MOST_BINS:
        raise ValueError(
            f"an object is {farthest:g} m away, which needs {farthest / bin_size:.0f} bins of {bin_size:g} "
            f"m, expected {_MOST_BINS} at most; give larger bins, or mend the label"
        )
    places = (found.depths // bin_size).astype(np.int64)
    bins = []
    for place in range(int(places.max()) + 1):
        there = places == place
        number = int(there.sum())
        bins.append(
            {
                "low": place * bin_size,
                "high": (place + 1) * bin_size,
                "number": number,
                "share": number / total,
                "farther": int((places >= place).sum()) / total,
                "area": float(found.areas[there].mean()) if number else None,
                "per_class": {
                    name: int((found.labels[there] == label).sum()) for label, name in enumerate(class_names)
                },
            }
        )
    return {"objects": total, "left_out": found.left_out, "bins": bins}
