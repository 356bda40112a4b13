"""What a student loses against its teacher, frame by frame."""

import numpy as np

from bevkd2.evaluation.failures import SORT_KEYS, counts_of, failure_table, loss_of, rank_frames, summary
from bevkd2.structures.matches import FALSE, FAR, FOUND, IGNORED, MISSED, FrameMatches

CLASSES = ("car", "bus")


def frame(objects, detections=(), labels=None, errors=None, detection_labels=None):
    labels = [0] * len(objects) if labels is None else labels
    detection_labels = [0] * len(detections) if detection_labels is None else detection_labels
    given = errors or [0.5 if state == FOUND else np.nan for state in objects]
    columns = (labels, objects, given, detection_labels, detections)
    kinds = (np.int64, np.int64, np.float64, np.int64, np.int64)
    return FrameMatches(*(np.array(column, dtype=kind) for column, kind in zip(columns, kinds, strict=True)))


TEACHER = frame([FOUND, FOUND, FOUND, MISSED, IGNORED], [FOUND, FALSE], [0, 0, 1, 1, 0])
STUDENT = frame(
    [FOUND, FAR, MISSED, FOUND, IGNORED],
    [FALSE, FALSE, FALSE],
    [0, 0, 1, 1, 0],
    [1.2, 3.0, np.nan, 0.4, np.nan],
    [0, 1, 1],
)


def test_losses_are_those_of_objects_that_the_reference_finds():
    loss = loss_of(TEACHER, STUDENT)
    assert (loss.missed, loss.far, loss.gained, loss.false, loss.both) == (1, 1, 1, 2, 1)
    assert loss.loss == 4 and np.isclose(loss.error, 0.7)
    assert loss_of(TEACHER, STUDENT, 0).to_json() == {
        **{"loss": 1, "missed": 0, "far": 1, "gained": 0, "false": 0, "error": 0.7, "both": 1},
    }
    assert loss_of(TEACHER, STUDENT, 1).missed == 1 and loss_of(TEACHER, STUDENT, 1).false == 2


def test_nothing_is_lost_against_oneself_and_fewer_false_detections_are_no_loss():
    assert loss_of(STUDENT, STUDENT).loss == 0
    assert loss_of(STUDENT, TEACHER).false == 0


def test_counts_add_up():
    counts = counts_of([TEACHER, STUDENT])
    assert counts["objects"] == counts["found"] + counts["far"] + counts["missed"] == 8
    assert counts["false"] == 4 and counts["error"] == 0.62
    assert counts_of([frame([])])["error"] is None


def test_frames_are_sorted_by_what_is_asked():
    teacher = [frame([FOUND] * 3)] * 4
    student = [
        frame([FOUND, FAR, FAR], [FALSE]),
        frame([MISSED, FOUND, FOUND]),
        frame([FOUND] * 3, errors=[2.0] * 3),
        frame([FOUND] * 3, [FALSE] * 5),
    ]
    matches = {"teacher": teacher, "student": student}
    first = {key: rank_frames(matches, "student", key)[0] for key in SORT_KEYS}
    assert first == {"loss": 3, "missed": 1, "far": 0, "false": 3, "error": 2}
    assert rank_frames(matches, "student", "loss") == [3, 0, 1, 2]


def test_table_has_models_frames_and_lost_objects():
    table = failure_table({"t": [TEACHER], "s": [STUDENT]}, ["f0"], CLASSES, [0])
    assert table["reference"] == "t" and table["models"]["s"]["per_class"]["bus"]["missed"] == 1
    (entry,) = table["frames"]
    assert entry["frame"] == "f0" and entry["models"]["t"]["found"] == 3
    assert entry["losses"].keys() == {"s"}
    assert entry["losses"]["s"]["objects"] == [
        {"object": 1, "class": "car", "state": "far", "error": 3.0},
        {"object": 2, "class": "bus", "state": "missed", "error": None},
    ]


def test_the_caption_says_the_counts():
    assert summary(STUDENT) == "4 objects: 2 found, 1 far, 1 missed, 3 false, centre error 0.80 m"
