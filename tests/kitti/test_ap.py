from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from bevkd2.kitti.ap import (
    CLASSES,
    DIFFICULTIES,
    METRICS,
    MIN_OVERLAPS,
    ap_by_distance,
    kitti_scores,
    to_json,
    to_object_table,
    to_table,
    why_zero,
)
from bevkd2.kitti.labels import KittiObjects
from tests.kitti.ap_reference import precision_and_aos

SIZES = {
    "Car": (1.5, 1.6, 4.0),
    "Van": (2.2, 1.9, 5.0),
    "Pedestrian": (1.8, 0.6, 0.8),
    "Person_sitting": (1.3, 0.6, 0.8),
    "Cyclist": (1.7, 0.6, 1.8),
    "DontCare": (-1, -1, -1),
}


def thing(kind="Car", box=(100, 100, 200, 150), x=0.0, y=1.7, z=20.0, ry=0.0, score=None, **changes):
    """One object; by default it is fully visible."""
    unlabelled = kind == "DontCare"
    values = {
        "types": np.array([kind]),
        "truncated": np.array([0.0]),
        "occluded": np.array([0]),
        "alpha": np.array([-10.0 if unlabelled else ry]),
        "boxes2d": np.array([box], dtype=float),
        "sizes": np.array([SIZES[kind]], dtype=float),
        "location": np.array([(-1000.0,) * 3 if unlabelled else (x, y, z)]),
        "rotation_y": np.array([-10.0 if unlabelled else ry]),
        "scores": None if score is None else np.array([score], dtype=float),
    }
    values.update({name: np.array([value]) for name, value in changes.items()})
    return KittiObjects(**values)


def together(*things: KittiObjects) -> KittiObjects:
    if not things:
        return thing(score=1)[:0]
    columns = {
        field.name: None
        if getattr(things[0], field.name) is None
        else np.concatenate([getattr(t, field.name) for t in things])
        for field in dataclasses.fields(KittiObjects)
    }
    return KittiObjects(**columns)


def counts(truths, dets, key="car/bbox/moderate"):
    """(tp, fp, fn) at the lowest threshold of one image, and the number of objects to be found."""
    curve = kitti_scores([together(*truths)], [together(*dets)]).curves[key]
    return (
        (*(int(n[-1]) for n in (curve.tp, curve.fp, curve.fn)), curve.n_gt) if len(curve.tp) else curve.n_gt
    )


def random_set(seed: int, images: int = 40):
    """Ground truth and detections that crowd, so that matches are contested, with few different scores."""
    rng = np.random.default_rng(seed)

    def some(n, kinds):
        found = []
        for _ in range(n):
            kind = kinds[rng.integers(len(kinds))]
            z = float(rng.choice([8, 15, 25, 36]))
            x, height = float(rng.integers(-1, 2)) * 3 + rng.normal(0, 0.3), 700 * SIZES[kind][0] / z
            if kind == "DontCare":
                height = 60.0
            left, top = 600 + 700 * x / z + rng.normal(0, 2), 150 + rng.normal(0, 2)
            box = (left, top, left + 0.9 * height + 20, top + height)
            ry = float(rng.choice([0.0, 1.5, -2.0])) + rng.normal(0, 0.1)
            one = thing(kind, box, x, 1.7 + rng.normal(0, 0.1), z + rng.normal(0, 0.2), ry)
            if kind != "DontCare":
                one = dataclasses.replace(
                    one,
                    sizes=one.sizes * rng.uniform(0.9, 1.1, (1, 3)),
                    occluded=rng.choice([0, 0, 0, 1, 2, 3], 1),
                    truncated=rng.choice([0, 0, 0, 0.15, 0.2, 0.4, 0.6], 1),
                )
            found.append(one)
        return found

    truths, dets = [], []
    for _ in range(images):
        labels = some(int(rng.integers(0, 7)), list(SIZES))
        copies = [
            dataclasses.replace(
                one,
                types=np.where(rng.random(1) < 0.1, "Pedestrian", one.types),
                boxes2d=one.boxes2d + rng.normal(0, 3, (1, 4)),
                location=one.location + rng.normal(0, 0.1, (1, 3)),
                alpha=one.alpha + rng.normal(0, 0.5, 1),
            )
            for one in labels
            for _ in range(int(rng.integers(0, 3)))
            if one.types[0] != "DontCare"
        ]
        found = copies + some(int(rng.integers(0, 4)), ["Car", "Pedestrian", "Cyclist"])
        order = rng.permutation(len(found))
        scored = [dataclasses.replace(found[k], scores=np.round(rng.random(1), 1)) for k in order]
        truths.append(together(*labels) if labels else thing()[:0])
        dets.append(together(*scored))
    return truths, dets


@pytest.mark.parametrize("seed", range(4))
def test_random_sets_score_as_the_rules_say(seed: int):
    truths, dets = random_set(seed)
    scores = kitti_scores(truths, dets)
    assert not scores.not_evaluated
    matched = 0
    for cls in CLASSES:
        for m, metric in enumerate(METRICS):
            for level, difficulty in enumerate(DIFFICULTIES):
                least = MIN_OVERLAPS[cls][m]
                precision, aos = precision_and_aos(truths, dets, cls, metric, level, least)
                curve = scores.curves[f"{cls}/{metric}/{difficulty}"]
                np.testing.assert_allclose(curve.precision, precision, rtol=0, atol=1e-12)
                assert curve.ap_r40 == pytest.approx(100 * precision[1:].mean(), abs=1e-9)
                assert curve.ap_r11 == pytest.approx(100 * precision[::4].mean(), abs=1e-9)
                if metric == "bbox":
                    np.testing.assert_allclose(curve.aos, aos, rtol=0, atol=1e-12)
                else:
                    assert curve.aos is None
                matched += len(curve.thresholds)
                assert scores.objects[f"{cls}/{difficulty}"].counted == curve.n_gt
    assert matched > 80  # thresholds of 27 curves


def test_perfect_detections_of_many_objects_score_100():
    truths = [thing(z=z, ry=0.3) for z in np.linspace(5, 30, 120)]
    dets = [dataclasses.replace(t, scores=np.array([1 - i / 200])) for i, t in enumerate(truths)]
    scores = kitti_scores(truths, dets)
    assert set(scores.curves) == {f"car/{metric}/{d}" for metric in METRICS for d in DIFFICULTIES}
    for curve in scores.curves.values():
        assert len(curve.thresholds) == 41 and curve.n_gt == 120
        assert (curve.ap_r40, curve.ap_r11) == (100, 100)
    assert scores.aos_r40()["car/bbox/easy"] == pytest.approx(100)


def test_few_objects_score_far_below_100():
    # Precision is indexed by the threshold: ten objects make ten of the 41 points, the first is not averaged.
    truths = [thing() for _ in range(10)]
    dets = [dataclasses.replace(t, scores=np.array([1 - i / 20])) for i, t in enumerate(truths)]
    assert kitti_scores(truths, dets).ap_r40()["car/3d/easy"] == pytest.approx(100 * 9 / 40)


def test_classes_without_detections_are_not_evaluated():
    truths, dets = [together(thing(), thing("Cyclist"))], [thing(score=0.5)]
    scores = kitti_scores(truths, dets)
    assert set(scores.not_evaluated) == {
        f"{cls}/{metric}/{d}" for cls in ("pedestrian", "cyclist") for metric in METRICS for d in DIFFICULTIES
    }
    report = json.loads(json.dumps(to_json(scores), allow_nan=False))
    assert "cyclist/3d/easy" not in report["AP_R40"] and "cyclist/3d/easy" in report["not_evaluated"]
    lines = [line.split() for line in to_table(scores).splitlines()]
    assert ["cyclist", "3d", *"------"] in lines and ["car", "3d", *["0.0000"] * 3, *["9.0909"] * 3] in lines
    # Detections in the image alone: x, z and sizes say so.
    flat = dataclasses.replace(dets[0], location=np.full((1, 3), -1000.0), sizes=np.full((1, 3), -1.0))
    assert set(kitti_scores(truths, [flat]).curves) == {f"car/bbox/{d}" for d in DIFFICULTIES}
    # Without a height there is a footprint, no volume.
    low = dataclasses.replace(dets[0], sizes=np.array([[0, 1.6, 4.0]]))
    assert "car/bev/easy" in kitti_scores(truths, [low]).curves
    assert "car/3d/easy" in kitti_scores(truths, [low]).not_evaluated
    # Nothing of it in the image: x1 is negative.
    left = dataclasses.replace(dets[0], boxes2d=np.array([[-1.0, 0, 5, 90]]))
    assert "car/bbox/easy" in kitti_scores(truths, [left]).not_evaluated


def test_objects_that_do_not_count_are_told_with_the_reasons():
    flat = [thing(box=(-1, -1, -1, -1)), thing(box=(100, 100, 160, 124.0), occluded=3, truncated=0.9)]
    truths = [together(*flat, thing(box=(0, 100, 50, 130)), thing("Cyclist", occluded=2))]
    dets = [together(thing(score=0.5), thing("Cyclist", score=0.5), thing("Pedestrian", score=0.5))]
    scores = kitti_scores(truths, dets)
    easy, hard = scores.objects["car/easy"], scores.objects["car/hard"]
    assert dataclasses.astuple(easy) == (3, 0, 3, 1, 1, 1, 0)
    assert dataclasses.astuple(hard) == (3, 1, 2, 1, 1, 1, 0)
    car, pedestrian, cyclist = why_zero(scores)
    assert car == (
        "car: no object counts at easy, so AP is 0 there: of 3 labelled, 3 have a box in the image that is "
        "not higher than 40 pixels, 1 are occluded beyond 0, 1 truncated beyond 0.15 (at easy)"
    )
    assert pedestrian.endswith("at easy, moderate, hard, so AP is 0 there: none is labelled")
    assert (
        cyclist.startswith("cyclist: no object counts at easy, moderate, so") and "(at moderate)" in cyclist
    )
    lines = [line.split() for line in to_object_table(scores).splitlines()]
    assert ["car", "hard", "3", "1", "2", "1", "1", "1", "0"] in lines
    assert to_json(scores)["objects"]["cyclist/hard"]["counted"] == 1


def test_detections_that_do_not_count_are_told():
    found = thing(box=(-1, -1, -1, -1), score=0.5)
    scores = kitti_scores([thing()], [found])
    assert scores.ap_r11()["car/bev/hard"] == 0
    assert why_zero(scores) == [
        "car: no detection counts at easy, moderate, hard, so AP is 0 there: all 1 have a box in the image "
        "that is lower than 25 pixels"
    ]
    assert not why_zero(kitti_scores([thing()], [together()]))  # a class that is not evaluated


def test_objects_of_a_bin_of_distance_are_those_in_it():
    near, far = ap_by_distance([together(thing(z=10), thing(z=30))], [thing(z=30, score=0.5)], (0, 20, 40))
    counts = [part.scores.objects["car/hard"] for part in (near, far)]
    assert [(count.labelled, count.detected) for count in counts] == [(1, 0), (1, 1)]


def test_one_unknown_alpha_switches_orientation_off():
    truths = [together(thing(), thing("Pedestrian")), thing()]
    dets = [thing(score=0.9), thing(score=0.8)]
    assert set(kitti_scores(truths, dets).aos_r40()) == {f"car/bbox/{d}" for d in DIFFICULTIES}
    dets[1] = dataclasses.replace(dets[1], alpha=np.array([-10.0]))
    scores = kitti_scores(truths, dets)
    assert scores.aos_r40() == {} and scores.ap_r40()["car/bbox/easy"] > 0
    assert to_json(scores)["AOS_R40"] == {}


@pytest.mark.parametrize(
    ("height", "n_gt", "expected"),
    [(25.0, 0, None), (25.01, 1, (1, 0, 0)), (24.99, 0, None)],
)
def test_an_object_of_exactly_25_pixels_is_ignored(height: float, n_gt: int, expected):
    box = (100, 100, 160, 100 + height)
    found = counts([thing(box=box)], [thing(box=(100, 100, 160, 126), score=0.5)])
    assert found == (0 if expected is None else (*expected, n_gt))


def test_a_detection_of_exactly_25_or_40_pixels_counts():
    truth = thing(box=(100, 100, 160, 126))
    for height, tp in ((25.0, 1), (25.99, 1), (24.99, None)):
        found = counts([truth], [thing(box=(100, 100, 160, 100 + height), score=0.5)])
        assert found == ((1, 0, 0, 1) if tp else 1)
    # The height has no sign: one that is upside down has no overlap in the image, but one on the ground.
    assert counts([thing()], [thing(box=(100, 150, 200, 100), score=0.5)], "car/bev/easy") == (1, 0, 0, 1)
    # At easy a detection needs 40.
    far = thing(box=(300, 100, 360, 139.99), score=0.5)
    near = thing(box=(100, 100, 200, 150), score=0.5)
    assert counts([thing()], [near, far], "car/bbox/easy") == (1, 0, 0, 1)
    assert counts([thing()], [near, far], "car/bbox/moderate") == (1, 1, 0, 1)


def test_a_low_detection_of_any_class_takes_an_object():
    # With 40.5 pixels the object counts at easy; its detection has 39 and is ignored, so it is not missed.
    truths = [thing(box=(100, 100, 160, 140.5)), thing(box=(400, 100, 500, 150))]
    dets = [
        thing("Cyclist", box=(100, 100, 160, 139.5), score=0.9),
        thing(box=(400, 100, 500, 150), score=0.5),
    ]
    assert counts(truths, dets, "car/bbox/easy") == (1, 0, 0, 2)
    assert counts(truths, dets, "car/bbox/moderate") == (1, 0, 1, 2)
    # A detection that counts is taken instead, though it overlaps less and wherever it is in the file.
    better = thing(box=(100, 102, 160, 142.5), score=0.5)
    assert counts(truths, [*dets, better], "car/bbox/easy") == (2, 0, 0, 2)
    assert counts(truths, [better, *dets], "car/bbox/easy") == (2, 0, 0, 2)


def test_of_equal_scores_the_first_in_the_file_is_taken():
    # The first object could take either; the second one only what lies between them.
    truths = [thing(box=(100, 100, 200, 200)), thing(box=(112, 100, 212, 200))]
    outer, between = thing(box=(92, 100, 192, 200), score=0.5), thing(box=(106, 100, 206, 200), score=0.5)
    for dets, matches in (((outer, between), 2), ((between, outer), 1)):
        curve = kitti_scores([together(*truths)], [together(*dets)]).curves["car/bbox/easy"]
        assert len(curve.thresholds) == matches


def test_of_equal_overlaps_the_first_in_the_file_is_taken():
    right, turned = thing(score=0.9, alpha=0.2), thing(score=0.9, alpha=0.2 + np.pi)
    for dets, similarity in (((right, turned), 1), ((turned, right), 0)):
        curve = kitti_scores([thing(alpha=0.2)], [together(*dets)]).curves["car/bbox/easy"]
        assert curve.similarity == pytest.approx([similarity], abs=1e-12)


def test_of_ignored_detections_the_first_in_the_file_is_taken():
    # Low detections: one fits either object, one only the first.
    truths = [
        thing(box=(100, 100, 200, 140.5)),
        thing(box=(112, 100, 212, 140.5)),
        thing(box=(400, 100, 500, 150)),
    ]
    either, first_only = (thing(box=(left, 100, left + 100, 139.5), score=0.9) for left in (106, 92))
    found = thing(box=(400, 100, 500, 150), score=0.5)
    assert counts(truths, [either, first_only, found], "car/bbox/easy") == (1, 0, 1, 3)
    assert counts(truths, [first_only, either, found], "car/bbox/easy") == (1, 0, 0, 3)


@pytest.mark.parametrize(
    ("occluded", "truncated", "levels"),
    [(0, 0.15, 3), (0, 0.16, 2), (1, 0.3, 2), (0, 0.31, 1), (2, 0.5, 1), (2, 0.51, 0), (3, 0.0, 0)],
)
def test_difficulty_is_by_occlusion_and_truncation(occluded: int, truncated: float, levels: int):
    truth = thing(occluded=occluded, truncated=truncated)
    scores = kitti_scores([truth], [thing(score=0.5)])
    found = [scores.curves[f"car/bbox/{difficulty}"].n_gt for difficulty in DIFFICULTIES]
    assert found == [0] * (3 - levels) + [1] * levels


def test_the_overlap_must_exceed_the_minimum():
    truth = thing("Pedestrian", box=(100, 100, 200, 200))
    half = thing("Pedestrian", box=(100, 100, 200, 150), score=0.5)
    more = thing("Pedestrian", box=(100, 100, 200, 150.5), score=0.5)
    assert counts([truth], [half], "pedestrian/bbox/moderate") == 1
    assert counts([truth], [more], "pedestrian/bbox/moderate") == (1, 0, 0, 1)


@pytest.mark.parametrize(
    ("cls", "neighbour", "kind"), [("car", "Van", "Car"), ("pedestrian", "Person_sitting", "Pedestrian")]
)
def test_detections_of_neighbour_classes_are_ignored(cls: str, neighbour: str, kind: str):
    truths = [thing(neighbour, box=(300, 100, 400, 180)), thing(kind)]
    dets = [thing(kind, box=(300, 100, 400, 180), score=0.9), thing(kind, score=0.5)]
    assert counts(truths, dets, f"{cls}/bbox/moderate") == (1, 0, 0, 1)
    truths[0] = dataclasses.replace(truths[0], types=np.array(["Tram"]))
    assert counts(truths, dets, f"{cls}/bbox/moderate") == (1, 1, 0, 1)


def test_unlabelled_regions_excuse_detections_in_the_image_only():
    truths = [thing(), thing("DontCare", box=(300, 100, 500, 200))]
    inside, across = (310, 110, 400, 190), (260, 110, 400, 190)
    right = thing(score=0.5)
    assert counts(truths, [right, thing(box=inside, x=9, score=0.9)]) == (1, 0, 0, 1)
    assert counts(truths, [right, thing(box=across, x=9, score=0.9)]) == (1, 0, 0, 1)  # 100 of 140
    assert counts(truths, [right, thing(box=(250, 110, 400, 190), x=9, score=0.9)]) == (1, 1, 0, 1)
    assert counts(truths, [right, thing(box=inside, x=9, score=0.9)], "car/bev/moderate") == (1, 1, 0, 1)


def test_a_region_must_hold_more_than_the_minimum():
    truths = [thing("Pedestrian"), thing("DontCare", box=(350, 100, 500, 200))]
    right = thing("Pedestrian", score=0.5)
    for left, false in ((300, 1), (301, 0)):  # half of it is inside, or slightly more
        det = thing("Pedestrian", box=(left, 100, left + 100, 200), score=0.9)
        assert counts(truths, [right, det], "pedestrian/bbox/moderate") == (1, false, 0, 1)


def test_thresholds_take_the_highest_score_and_counts_the_largest_overlap():
    truth = thing(box=(100, 100, 200, 200))
    loose, tight = thing(box=(100, 100, 200, 180), score=0.9), thing(box=(100, 100, 200, 199), score=0.3)
    curve = kitti_scores([together(truth)], [together(loose, tight)]).curves["car/bbox/easy"]
    assert curve.thresholds.tolist() == [0.9]  # so the tight one is not seen
    assert (curve.tp.tolist(), curve.fp.tolist()) == ([1], [0])
    # Where the other object's threshold lets it in, it is the match, and the loose one is false.
    other = thing(box=(400, 100, 500, 200))
    dets = together(loose, tight, dataclasses.replace(other, scores=np.array([0.2])))
    curve = kitti_scores([together(truth, other)], [dets]).curves["car/bbox/easy"]
    assert curve.thresholds.tolist() == [0.9, 0.2]
    assert (curve.tp.tolist(), curve.fp.tolist(), curve.fn.tolist()) == ([1, 2], [0, 1], [1, 0])


def test_orientation_similarity_falls_with_the_angle():
    truth = thing(alpha=0.2)
    for turn, share in ((0.0, 1.0), (np.pi / 2, 0.5), (np.pi, 0.0)):
        curve = kitti_scores([truth], [thing(score=0.5, alpha=0.2 + turn)]).curves["car/bbox/easy"]
        assert curve.similarity == pytest.approx([share], abs=1e-12)
        assert curve.precision[0] == 1 and curve.aos[0] == pytest.approx(share, abs=1e-12)


def test_undefined_scores_are_null():
    # The van takes the car's detection where overlaps decide; what it took before lies in a region without
    # labels. So at the only threshold nothing counts: 0 / 0, as the official tool has it.
    van = thing("Van", box=(100, 100, 200, 200))
    car = thing(box=(115, 100, 215, 200))
    region = thing("DontCare", box=(80, 90, 120, 210))
    fits_van_only = thing(box=(90, 100, 190, 200), score=0.9)
    fits_both = thing(box=(101, 100, 201, 200), score=0.5)
    region = dataclasses.replace(region, boxes2d=np.array([[80.0, 90, 195, 210]]))
    scores = kitti_scores([together(van, car, region)], [together(fits_van_only, fits_both)])
    curve = scores.curves["car/bbox/easy"]
    assert (curve.tp.tolist(), curve.fp.tolist(), curve.fn.tolist()) == ([0], [0], [1])
    assert np.isnan(curve.precision[0]) and curve.ap_r40 == 0
    assert to_json(scores)["AP_R11"]["car/bbox/easy"] is None
    json.dumps(to_json(scores), allow_nan=False)


def test_sizes_that_are_not_given_match_nothing_in_3d():
    flat = thing(score=0.9, sizes=(-1.0, -1.0, -1.0), location=(-1000.0, -1000.0, -1000.0))
    truths = [thing()]
    found = counts(truths, [thing(score=0.5), flat], "car/3d/easy")
    assert found == (1, 1, 0, 1)
    for sizes in ((1.5, 0.0, 4.0), (1.5, -1.6, 4.0), (0.0, 1.6, 4.0)):
        empty = thing(score=0.9, sizes=sizes)
        assert counts(truths, [thing(score=0.5), empty], "car/3d/easy") == (1, 1, 0, 1)
    # Both below 0 make the corners, so the rectangle, of their absolute values.
    turned = thing(score=0.9, sizes=(1.5, -1.6, -4.0))
    assert counts([*truths, thing(x=9.0)], [turned, thing(x=9.0, score=0.5)], "car/3d/easy") == (2, 0, 0, 2)


def test_bins_of_distance_ignore_what_is_outside():
    truths = [together(*(thing(z=z, box=(40 * z, 100, 40 * z + 30, 150)) for z in (8.0, 12.0, 30.0)))]
    dets = [together(*(dataclasses.replace(truths[0][k : k + 1], scores=np.array([0.9])) for k in (0, 2)))]
    false = thing(z=33.0, x=8.0, box=(900, 200, 990, 290), score=0.95)
    dets = [together(dets[0], false)]
    bins = ap_by_distance(truths, dets)
    assert [(entry.low, entry.high) for entry in bins] == [(0, 20), (20, 40), (40, np.inf)]
    for metric in METRICS:
        near, middle, far = (entry.scores.curves[f"car/{metric}/easy"] for entry in bins)
        assert (near.n_gt, near.tp.tolist(), near.fp.tolist(), near.fn.tolist()) == (2, [1], [0], [1])
        assert (middle.n_gt, middle.tp.tolist(), middle.fp.tolist(), middle.fn.tolist()) == (1, [1], [1], [0])
        assert (far.n_gt, len(far.tp)) == (0, 0)
    whole = ap_by_distance(truths, dets, (0, np.inf))[0].scores
    assert whole.ap_r40() == kitti_scores(truths, dets).ap_r40()
    with pytest.raises(ValueError, match="rising distances"):
        ap_by_distance(truths, dets, (0, 40, 20))


def test_loose_overlaps_can_be_asked_for():
    truths, dets = [thing()], [thing(x=1.0, score=0.5)]  # a metre along its length: IoU 0.6
    loose = {**MIN_OVERLAPS, "car": (0.7, 0.5, 0.5)}
    assert not len(kitti_scores(truths, dets).curves["car/3d/easy"].tp)
    assert kitti_scores(truths, dets, min_overlaps=loose).curves["car/3d/easy"].tp.tolist() == [1]


def test_invalid_arguments_are_refused():
    good = thing(score=0.5)
    with pytest.raises(ValueError, match="ground truth of 2 images and there are detections of 1"):
        kitti_scores([thing(), thing()], [good])
    with pytest.raises(ValueError, match="0 images"):
        kitti_scores([], [])
    with pytest.raises(ValueError, match="image 0 have no scores"):
        kitti_scores([thing()], [thing()])
    with pytest.raises(ValueError, match=r"detections of image 1, object 1: Car .*nan"):
        kitti_scores([thing(), thing()], [good, together(good, thing(score=np.nan))])
    with pytest.raises(ValueError, match=r"ground truth of image 0, object 0: Bus"):
        kitti_scores([dataclasses.replace(thing(), types=np.array(["Bus"]))], [good])
