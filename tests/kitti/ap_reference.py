"""Reference implementation of KITTI's rules, one image at a time, for tests of the compiled evaluation.

Overlaps on the ground come from shapely, so nothing is shared with the code that is tested.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from shapely.geometry import Polygon

from bevkd2.kitti.labels import KittiObjects

MIN_HEIGHT, MAX_OCCLUDED, MAX_TRUNCATED = (40, 25, 25), (0, 1, 2), (0.15, 0.3, 0.5)
NEIGHBOUR = {"car": "van", "pedestrian": "person_sitting"}


def image_overlap(det: KittiObjects, j: int, other: KittiObjects, i: int, of_detection: bool) -> float:
    a, b = det.boxes2d[j], other.boxes2d[i]
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area_a if of_detection else area_a + area_b - width * height)


def footprint(objects: KittiObjects, i: int) -> Polygon:
    _, w, l = objects.sizes[i]
    x, _, z = objects.location[i]
    cos, sin = math.cos(objects.rotation_y[i]), math.sin(objects.rotation_y[i])
    corners = [(l / 2, w / 2), (l / 2, -w / 2), (-l / 2, -w / 2), (-l / 2, w / 2)]
    return Polygon([(x + cos * dx + sin * dz, z - sin * dx + cos * dz) for dx, dz in corners])


def ground_overlap(det: KittiObjects, j: int, other: KittiObjects, i: int, of_detection: bool) -> float:
    a, b = footprint(det, j), footprint(other, i)
    shared = a.intersection(b).area
    size = a.area if of_detection else a.area + b.area - shared
    return shared / size if size else 0.0


def solid_overlap(det: KittiObjects, j: int, other: KittiObjects, i: int, of_detection: bool) -> float:
    a, b = footprint(det, j), footprint(other, i)
    bottom_a, bottom_b = det.location[j, 1], other.location[i, 1]
    height_a, height_b = det.sizes[j, 0], other.sizes[i, 0]
    height = min(bottom_a, bottom_b) - max(bottom_a - height_a, bottom_b - height_b)
    shared = a.intersection(b).area * max(0.0, height)
    size = a.area * height_a if of_detection else a.area * height_a + b.area * height_b - shared
    return shared / size if shared else 0.0


OVERLAP = {"bbox": image_overlap, "bev": ground_overlap, "3d": solid_overlap}


class Image:
    """One image: who may match whom, for a class, a metric and a difficulty."""

    def __init__(
        self, truth: KittiObjects, det: KittiObjects, cls: str, metric: str, level: int, least: float
    ) -> None:
        self.truth, self.det, self.least = truth, det, least
        names, found = [t.lower() for t in truth.types], [t.lower() for t in det.types]
        self.truth_state = []
        for i, name in enumerate(names):
            height = truth.boxes2d[i, 3] - truth.boxes2d[i, 1]
            hard = (
                truth.occluded[i] > MAX_OCCLUDED[level]
                or truth.truncated[i] > MAX_TRUNCATED[level]
                or height <= MIN_HEIGHT[level]
            )
            ours, near = name == cls, name == NEIGHBOUR.get(cls)
            self.truth_state.append(0 if ours and not hard else 1 if ours or near else -1)
        self.det_state = []
        for j, name in enumerate(found):
            low = int(abs(det.boxes2d[j, 1] - det.boxes2d[j, 3])) < MIN_HEIGHT[level]
            self.det_state.append(1 if low else 0 if name == cls else -1)
        overlap = OVERLAP[metric]
        self.overlap = np.array(
            [[overlap(det, j, truth, i, False) for j in range(len(det))] for i in range(len(truth))]
        ).reshape(len(truth), len(det))
        regions = [i for i, name in enumerate(names) if name == "dontcare"]
        self.unlabelled = [
            any(overlap(det, j, truth, i, True) > least for i in regions) for j in range(len(det))
        ]

    def match(self, threshold: float | None) -> tuple[list[float], int, int, float]:
        """Scores of true positives, fp, fn and similarity; by score if there is no threshold."""
        taken: set[int] = set()
        matched, similarity, fn = [], 0.0, 0
        for i, state in enumerate(self.truth_state):
            if state == -1:
                continue
            allowed = [
                j
                for j in range(len(self.det))
                if self.det_state[j] != -1
                and j not in taken
                and self.overlap[i, j] > self.least
                and (threshold is None or self.det.scores[j] >= threshold)
            ]
            if threshold is None:
                best = max(allowed, key=lambda j: self.det.scores[j], default=None)
            else:
                counting = [j for j in allowed if self.det_state[j] == 0]
                best = max(counting, key=lambda j, i=i: self.overlap[i, j], default=(allowed or [None])[0])
            if best is None:
                fn += state == 0
                continue
            taken.add(best)
            if state == 0 and self.det_state[best] == 0:
                matched.append(float(self.det.scores[best]))
                similarity += (1 + math.cos(self.truth.alpha[i] - self.det.alpha[best])) / 2
        fp = sum(
            self.det_state[j] == 0
            and j not in taken
            and not self.unlabelled[j]
            and (threshold is None or self.det.scores[j] >= threshold)
            for j in range(len(self.det))
        )
        return matched, fp, fn, similarity


def precision_and_aos(
    truths: Sequence[KittiObjects],
    dets: Sequence[KittiObjects],
    cls: str,
    metric: str,
    level: int,
    least: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The 41 precisions and orientation similarities of a class, made monotone."""
    images = [Image(t, d, cls, metric, level, least) for t, d in zip(truths, dets, strict=True)]
    n_gt = sum(state == 0 for image in images for state in image.truth_state)
    scores = sorted((s for image in images for s in image.match(None)[0]), reverse=True)
    thresholds, recall = [], 0.0
    for i, score in enumerate(scores):
        last = i == len(scores) - 1
        left, right = (i + 1) / n_gt, (i + 1 if last else i + 2) / n_gt
        if right - recall < recall - left and not last:
            continue
        thresholds.append(score)
        recall += 1 / 40
    precision, aos = np.zeros(41), np.zeros(41)
    for k, threshold in enumerate(thresholds):
        found = [image.match(threshold) for image in images]
        tp, fp = sum(len(f[0]) for f in found), sum(f[1] for f in found)
        precision[k], aos[k] = tp / (tp + fp), sum(f[3] for f in found) / (tp + fp)
    return tuple(np.maximum.accumulate(values[::-1])[::-1] for values in (precision, aos))
