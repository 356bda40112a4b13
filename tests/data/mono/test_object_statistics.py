"""Objects by depth and pixel area."""

import numpy as np
import pytest

from bevkd2.data import load_nuscenes
from bevkd2.data.kitti import load_kitti
from bevkd2.data.mono.object_statistics import ObjectStatistics, by_depth, object_statistics
from bevkd2.data.nuscenes_mono import NuScenesMonoIndex
from bevkd2.kitti.labels import read_labels
from tests.data.kitti_fixture import TRAIN
from tests.data.nuscenes_fixture import VERSION

CLASSES = ("Pedestrian", "Cyclist", "Car")


def test_kittis_areas_are_those_of_its_label_files(kitti_world):
    found = object_statistics(load_kitti(kitti_world, "train", CLASSES))
    files = [read_labels(kitti_world / "training" / "label_2" / f"{name}.txt") for name in TRAIN]
    labels = [objects[np.isin(objects.types, CLASSES)] for objects in files]
    areas = np.concatenate([np.prod(o.boxes2d[:, 2:] - o.boxes2d[:, :2], axis=1) for o in labels])
    assert len(found.areas) == len(areas) > 5 and found.left_out == 0
    np.testing.assert_allclose(found.areas, areas, rtol=1e-4)
    depths = np.concatenate([o.location[:, 2] for o in labels])
    assert abs(found.depths - depths).max() < 0.1  # P2's translation


def test_without_labels_of_the_image_plane_boxes_are_projected(fixture_world):
    index = NuScenesMonoIndex(load_nuscenes(fixture_world.root, VERSION, "both"), ("car", "pedestrian"))
    found = object_statistics(index)
    records = [index.record(i) for i in range(len(index))]
    assert len(found.depths) == sum(len(record.boxes) for record in records) > 0
    largest = max(record.height * record.width for record in records)
    assert found.areas.min() > 0 and found.areas.max() <= largest


def statistics(depths, areas, labels):
    return ObjectStatistics(np.array(depths, float), np.array(areas, float), np.array(labels), 2)


def test_bins_hold_number_share_and_mean_area():
    found = by_depth(statistics([1, 2.9, 3, 10], [100, 300, 50, 7], [0, 1, 1, 0]), ("a", "b"), 3.0)
    assert (found["objects"], found["left_out"]) == (4, 2)
    assert [entry["number"] for entry in found["bins"]] == [2, 1, 0, 1]
    assert [entry["area"] for entry in found["bins"]] == [200, 50, None, 7]
    assert [entry["share"] for entry in found["bins"]] == [0.5, 0.25, 0, 0.25]
    assert [entry["farther"] for entry in found["bins"]] == [1, 0.5, 0.25, 0.25]
    assert found["bins"][0]["per_class"] == {"a": 1, "b": 1} and found["bins"][3]["high"] == 12


@pytest.mark.parametrize(
    ("depths", "size", "message"),
    [
        ([], 3, "no object of a"),
        ([1], 0, "above 0"),
        ([5, 1e6], 3, r"1e\+06 m away, which needs 333333 bins of 3 m, expected 1000"),
    ],
)
def test_what_cannot_be_counted_is_an_error(depths, size, message):
    with pytest.raises(ValueError, match=message):
        by_depth(statistics(depths, [1] * len(depths), [0] * len(depths)), ("a",), size)
