"""Which detections find which objects, and what the others are."""

import numpy as np
import pytest

from bevkd2.structures.matches import (
    DETECTION_STATES,
    OBJECT_STATES,
    ground_distances,
    match_by_distance,
    match_in_order,
)


def match(objects, detections, *, threshold=0.3, limit=2.0, far=4.0):
    """Matches (x, class) with (x, class, score), along a line."""
    places = [np.array([[row[0], 0.0] for row in rows]).reshape(-1, 2) for rows in (detections, objects)]
    return match_by_distance(
        ground_distances(*places),
        np.array([row[1] for row in objects], dtype=np.int64),
        np.array([row[1] for row in detections], dtype=np.int64),
        np.array([row[2] for row in detections], dtype=np.float64),
        score_threshold=threshold,
        limit=limit,
        far=far,
    )


def states(matches):
    return (
        [OBJECT_STATES[state] for state in matches.objects],
        [DETECTION_STATES[state] for state in matches.detections],
    )


def test_each_detection_takes_the_nearest_object_that_is_left():
    distances = np.array([[1.0, 1.5], [0.1, 1.9], [0.2, 0.3]])
    assert match_in_order(distances, 2.0).tolist() == [0, 1, -1]
    assert match_in_order(distances, 1.0).tolist() == [-1, 0, 1]
    assert match_in_order(np.zeros((2, 0)), 2.0).tolist() == [-1, -1]


def test_objects_are_found_far_or_missed():
    objects = [(0, 0), (20, 0), (40, 0), (60, 0)]
    detections = [(0.5, 0, 0.9), (23, 0, 0.8), (46, 0, 0.7), (60, 1, 0.9), (60, 0, 0.1)]
    matches = match(objects, detections)
    assert states(matches) == (
        ["found", "far", "missed", "missed"],
        ["true", "far", "false", "false", "ignored"],
    )
    assert np.allclose(matches.errors, [0.5, 3.0, np.nan, np.nan], equal_nan=True)


def test_the_best_score_chooses_first_and_each_object_is_found_once():
    matches = match([(0, 0)], [(0.1, 0, 0.5), (1.0, 0, 0.9), (3.0, 0, 0.8)])
    assert states(matches) == (["found"], ["false", "true", "false"])
    assert matches.errors.tolist() == [1.0]


def test_of_equal_scores_the_last_comes_first_as_in_the_devkit():
    assert states(match([(0, 0)], [(1, 0, 0.5), (0.5, 0, 0.5)]))[1] == ["false", "true"]
    assert states(match([(0, 0)], [(0.5, 0, 0.5), (1, 0, 0.5)]))[1] == ["false", "true"]


def test_a_far_detection_is_used_once():
    matches = match([(0, 0), (5, 0)], [(2.5, 0, 0.9)])
    assert sorted(states(matches)[0]) == ["far", "missed"]


def test_the_nearest_far_pairs_come_first():
    matches = match([(0, 0), (10, 0)], [(7, 0, 0.9), (12.5, 0, 0.8)], far=8.0)
    assert np.allclose(matches.errors, [7.0, 2.5])


def test_far_of_zero_leaves_only_missed_ones():
    assert states(match([(0, 0)], [(3, 0, 0.9)], far=0.0)) == (["missed"], ["false"])


@pytest.mark.parametrize(("objects", "detections"), [([], [(0, 0, 1.0)]), ([(0, 0)], []), ([], [])])
def test_nothing_matches_nothing(objects, detections):
    found, made = states(match(objects, detections))
    assert found == ["missed"] * len(objects) and made == ["false"] * len(detections)
