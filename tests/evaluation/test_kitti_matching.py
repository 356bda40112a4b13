"""Matches of single images add up to the counts of the official evaluation."""

import dataclasses

import numpy as np
import pytest

from bevkd2.evaluation.kitti_matching import KittiRule, match_image
from bevkd2.kitti.ap import kitti_scores
from bevkd2.kitti.labels import KittiObjects
from bevkd2.structures.matches import FALSE, FAR, FOUND, IGNORED, MISSED

CLASSES = ("Pedestrian", "Cyclist", "Car")
TYPES = np.array(["Car", "Van", "Pedestrian", "Person_sitting", "Cyclist"])
SIZES = {"Car": (1.5, 1.6, 4.0), "Van": (2.0, 1.9, 5.0)}


def random_truth(rng, count):
    types = rng.choice(TYPES, count, p=[0.4, 0.15, 0.2, 0.1, 0.15])
    location = np.column_stack([rng.uniform(-8, 8, count), np.full(count, 1.6), rng.uniform(6, 40, count)])
    sizes = np.array([SIZES.get(str(name), (1.7, 0.7, 1.2)) for name in types]).reshape(-1, 3)
    top = rng.uniform(100, 150, count)
    boxes2d = np.column_stack([np.zeros(count), top, np.full(count, 50.0), top + rng.uniform(15, 110, count)])
    return KittiObjects(
        types=types,
        truncated=rng.choice([0.0, 0.2, 0.6], count, p=[0.7, 0.2, 0.1]),
        occluded=rng.choice(4, count, p=[0.6, 0.2, 0.1, 0.1]),
        alpha=np.zeros(count),
        boxes2d=boxes2d,
        sizes=sizes,
        location=location,
        rotation_y=rng.uniform(-3, 3, count),
    )


def detections_of(truth, rng):
    """Two noisy copies of every object, some of another class or too low, and some of nothing."""
    extra = random_truth(rng, 4)
    parts = [truth, truth, extra]
    joined = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in dataclasses.fields(KittiObjects)
        if field.name != "scores"
    }
    count = len(joined["types"])
    joined["location"] = joined["location"] + rng.normal(0, 0.2, (count, 3)) * [1, 0, 1]
    joined["sizes"] = joined["sizes"] * rng.uniform(0.95, 1.05, (count, 3))
    joined["boxes2d"] = joined["boxes2d"] + rng.uniform(-6, 6, (count, 1)) * [0, 0, 0, 1]
    changed = rng.random(count) < 0.1
    joined["types"] = np.where(changed, "Car", joined["types"])
    return KittiObjects(**joined, scores=rng.permutation(count) / count + 0.001 * rng.random(count))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(4)
    truths = [random_truth(rng, int(rng.integers(0, 12))) for _ in range(60)]
    return truths, [detections_of(truth, rng) for truth in truths]


@pytest.mark.parametrize("difficulty", ["easy", "moderate", "hard"])
@pytest.mark.parametrize("overlap", [None, 0.3])
def test_counts_are_those_of_the_evaluation_at_each_threshold(images, difficulty, overlap):
    rule = KittiRule.official(overlap, difficulty)
    overlaps = {name.lower(): (value,) * 3 for name, value in rule.min_overlaps.items()}
    scores = kitti_scores(*images, min_overlaps=overlaps)
    compared = 0
    for label, name in enumerate(CLASSES):
        curve = scores.curves[f"{name.lower()}/3d/{difficulty}"]
        for place in range(0, len(curve.thresholds), 6):
            matches = [
                match_image(*pair, CLASSES, rule, score_threshold=curve.thresholds[place], far=0.0)
                for pair in zip(*images, strict=True)
            ]

            def count(kind, state, matches=matches, label=label):
                labels = "labels" if kind == "objects" else "detection_labels"
                return sum(
                    int(((getattr(m, kind) == state) & (getattr(m, labels) == label)).sum()) for m in matches
                )

            assert count("objects", FOUND) == count("detections", FOUND) == curve.tp[place]
            assert count("objects", MISSED) == curve.fn[place]
            assert count("detections", FALSE) == curve.fp[place]
            compared += 1
    assert compared >= 8


def test_a_car_beyond_the_overlap_is_far(images):
    truth = images[0][1][:0]
    car = dataclasses.replace(
        truth,
        types=np.array(["Car"]),
        truncated=np.zeros(1),
        occluded=np.zeros(1, dtype=np.int64),
        alpha=np.zeros(1),
        boxes2d=np.array([[0.0, 100.0, 90.0, 150.0]]),
        sizes=np.array([[1.5, 1.6, 4.0]]),
        location=np.array([[0.0, 1.6, 20.0]]),
        rotation_y=np.zeros(1),
    )
    found = dataclasses.replace(car, location=np.array([[0.0, 1.6, 22.0]]), scores=np.array([0.9]))
    rule = KittiRule.official()
    matches = match_image(car, found, CLASSES, rule, score_threshold=0.3, far=4.0)
    assert matches.objects.tolist() == [FAR] and matches.detections.tolist() == [FAR]
    assert matches.errors.tolist() == [pytest.approx(2.0)]
    hidden = dataclasses.replace(car, occluded=np.array([3]))
    assert match_image(hidden, found, CLASSES, rule, score_threshold=0.3, far=4.0).objects[0] == IGNORED


@pytest.mark.parametrize("overlap", [-0.1, 1.0])
def test_an_overlap_that_cannot_be_is_an_error(overlap):
    with pytest.raises(ValueError, match="expected an IoU from 0 to below 1"):
        KittiRule.official(overlap)


def test_labels_in_the_place_of_detections_are_an_error(images):
    truths, _ = images
    with pytest.raises(ValueError, match=r"found, \d+ objects, has no scores; expected detections"):
        match_image(truths[0], truths[0], CLASSES, KittiRule.official(), score_threshold=0.3, far=4.0)
