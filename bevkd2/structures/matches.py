"""Which detections of a frame find which of its objects, and what the others are: far, false, missed.

The rule of a match is that of the data set's evaluation. What it leaves over is told apart by distance: an
object with a detection of its class at most so far away is *far* (a localisation error), others are missed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

OBJECT_STATES = ("found", "far", "missed", "ignored")
"""What an object is for a model; those that the evaluation does not count are ignored."""
DETECTION_STATES = ("true", "far", "false", "ignored")
"""What a detection is; ignored: its score is below the threshold, or the evaluation does not count it."""
FOUND, FAR, MISSED, IGNORED = range(4)
FALSE = MISSED  # of detections


@dataclass(frozen=True, eq=False)
class FrameMatches:
    """What a model's detections make of the objects of a frame.

    Attributes:
        labels: (N,) class of each object.
        objects: (N,) index into OBJECT_STATES.
        errors: (N,) metres on the ground between the centres of a found or far object and its detection; NaN
            for the others.
        detection_labels: (M,) class of each detection.
        detections: (M,) index into DETECTION_STATES.
    """

    labels: Ints
    objects: Ints
    errors: Floats
    detection_labels: Ints
    detections: Ints


def match_in_order(distances: Floats, limit: float) -> Ints:
    """Matches detections with objects, each with the nearest that is left.

    Args:
        distances: (M, N) of M detections, in the order in which they choose, to N objects; infinite where a
            detection may not match an object.
        limit: a match must be nearer.

    Returns:
        (M,) the object that each detection matches, -1 for none.
    """
    left = np.array(distances, dtype=np.float64)
    matched = np.full(len(left), -1, dtype=np.int64)
    if left.shape[1] == 0:
        return matched
    for row, there in enumerate(left):
        nearest = int(there.argmin())
        if there[nearest] < limit:
            matched[row] = nearest
            left[:, nearest] = np.inf
    return matched


def ground_distances(detections: Floats, objects: Floats) -> Floats:
    """Computes the distances between centres on the ground.

    Args:
        detections: (M, 2) or more columns, the first two are the centre in metres.
        objects: (N, 2) or more, the same.

    Returns:
        (M, N) metres.
    """
    apart: Floats = np.linalg.norm(detections[:, None, :2] - objects[None, :, :2], axis=-1)
    return apart


def same_class_distances(distances: Floats, detection_labels: Ints, labels: Ints) -> Floats:
    """Makes pairs of different classes infinitely far from each other.

    Args:
        distances: (M, N) of M detections to N objects, in any unit.
        detection_labels: (M,) classes.
        labels: (N,) classes.

    Returns:
        (M, N), a copy.
    """
    allowed: Floats = np.where(detection_labels[:, None] == labels[None], distances, np.inf)
    return allowed


def match_by_distance(
    distances: Floats,
    labels: Ints,
    detection_labels: Ints,
    scores: Floats,
    *,
    score_threshold: float,
    limit: float,
    far: float,
) -> FrameMatches:
    """Matches as nuScenes does: within a class, the best score first, each with the nearest object left.

    Of equal scores the last detection comes first, as in the devkit.

    Args:
        distances: (M, N) metres between centres on the ground.
        labels: (N,) of the objects; all of them count.
        detection_labels: (M,).
        scores: (M,).
        score_threshold: least score of a detection that counts.
        limit: metres; a match must be nearer.
        far: see :func:`classify`.

    Returns:
        The matches.
    """
    order = np.lexsort((np.arange(len(scores)), scores))[::-1]
    order = order[scores[order] >= score_threshold]
    allowed = same_class_distances(distances, detection_labels, labels)
    matched = np.full(len(labels), -1, dtype=np.int64)
    chosen = match_in_order(allowed[order], limit)
    matched[chosen[chosen >= 0]] = order[chosen >= 0]
    false = scores >= score_threshold
    false[matched[matched >= 0]] = False
    counted = np.ones(len(labels), dtype=np.bool_)
    return classify(distances, labels, detection_labels, matched, counted, false, far)


def classify(
    distances: Floats,
    labels: Ints,
    detection_labels: Ints,
    matched: Ints,
    counted: Mask,
    false: Mask,
    far: float,
) -> FrameMatches:
    """Tells objects without a match apart: far where a false detection of their class is near, else missed.

    The nearest pairs come first, and each detection is in one.

    Args:
        distances: (M, N) metres between centres on the ground.
        labels: (N,).
        detection_labels: (M,).
        matched: (N,) the detection that finds each object, -1 for none.
        counted: (N,) whether an object counts.
        false: (M,) whether a detection counts and finds no object.
        far: metres; a far detection is nearer to its object.

    Returns:
        The states of objects and detections.
    """
    found = counted & (matched >= 0)
    objects = np.where(found, FOUND, np.where(counted, MISSED, IGNORED)).astype(np.int64)
    detections = np.where(false, FALSE, IGNORED).astype(np.int64)
    detections[matched[found]] = FOUND
    errors = np.full(len(labels), np.nan)
    errors[found] = distances[matched[found], np.flatnonzero(found)]
    rows, columns = np.flatnonzero(false), np.flatnonzero(objects == MISSED)
    allowed = same_class_distances(distances, detection_labels, labels)[np.ix_(rows, columns)]
    for row, column in _nearest_pairs(allowed, far):
        objects[columns[column]], detections[rows[row]] = FAR, FAR
        errors[columns[column]] = allowed[row, column]
    return FrameMatches(labels, objects, errors, detection_labels, detections)


def _nearest_pairs(distances: Floats, limit: float) -> list[tuple[int, int]]:
    """Returns pairs of row and column nearer than a limit, the nearest first, each in one pair at most."""
    left, pairs = distances.copy(), []
    while left.size and left.min() < limit:
        row, column = divmod(int(left.argmin()), left.shape[1])
        left[row], left[:, column] = np.inf, np.inf
        pairs.append((row, column))
    return pairs
