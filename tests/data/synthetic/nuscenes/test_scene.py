import collections
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bevkd2.data.synthetic import WorldConfig
from bevkd2.data.synthetic.nuscenes.scene import CLASSES, FRAME_INTERVAL, attribute_of, make_scene
from bevkd2.data.synthetic.scene import EgoPath, Road
from bevkd2.nuscenes.layout import CLASS_NAMES

paths = st.builds(
    EgoPath,
    origin=st.tuples(st.floats(-500, 500), st.floats(-500, 500)).map(np.array),
    heading=st.floats(-3.1, 3.1),
    speed=st.floats(0, 8),
    curvature=st.floats(0.0005, 0.02).flatmap(lambda c: st.sampled_from([c, -c])),
)


@given(paths, st.floats(0, 4))
def test_the_path_moves_along_its_heading(path, time):
    step = 1e-4
    (before, _), (after, _) = path.pose(time - step), path.pose(time + step)
    heading = path.pose(time)[1]
    np.testing.assert_allclose(
        (after - before) / (2 * step),
        path.speed * np.array([math.cos(heading), math.sin(heading)]),
        atol=1e-5,
    )


@given(paths, st.floats(0, 4), st.floats(-15, 15))
def test_road_coordinates_measure_along_and_across_the_path(path, time, offset):
    position, heading = path.pose(time)
    x, y = position + offset * np.array([-math.sin(heading), math.cos(heading)])
    along, lateral = Road(path, 2).coordinates(x, y)
    assert lateral == pytest.approx(offset, abs=1e-6)
    assert along == pytest.approx(path.speed * time, abs=1e-6)


def test_the_ego_drives_on_the_road():
    right, left = Road(EgoPath(np.zeros(2), 0.0, 1.0, 0.01), 3).edges
    assert right < 0 < left
    assert left - right == pytest.approx(3 * 3.5)


def test_a_scene_depends_on_seed_and_index_alone():
    config = WorldConfig(seed=5)
    first, again, other = make_scene(config, 2), make_scene(config, 2), make_scene(config, 3)
    assert all(
        np.array_equal(a.position, b.position) for a, b in zip(first.objects, again.objects, strict=True)
    )
    assert not np.array_equal(first.objects[0].position, other.objects[0].position)
    reseeded = make_scene(WorldConfig(seed=6), 2)
    assert not np.array_equal(first.objects[0].position, reseeded.objects[0].position)


def test_classes_are_equally_frequent():
    objects = make_scene(WorldConfig(objects_per_scene=30, distractors=4), 0).objects
    counts = collections.Counter(item.kind.name if item.kind else "distractor" for item in objects)
    assert counts == {**{c.name: 3 for c in CLASSES}, "distractor": 4}


def test_objects_do_not_overlap_each_other_or_the_ego():
    config = WorldConfig()
    for index in range(5):
        scene = make_scene(config, index)
        for time in FRAME_INTERVAL * np.arange(config.frames_per_scene):
            centers = np.array([item.center(time)[:2] for item in scene.objects])
            radii = np.array([0.5 * math.hypot(*item.size[:2]) for item in scene.objects])
            gaps = np.linalg.norm(centers[:, None] - centers, axis=-1) - radii[:, None] - radii
            assert gaps[~np.eye(len(radii), dtype=bool)].min() > 0
            assert (np.linalg.norm(centers - scene.road.path.pose(time)[0], axis=1) - radii).min() > 2


def test_objects_move_along_their_heading():
    moving = [o for i in range(5) for o in make_scene(WorldConfig(), i).objects if np.any(o.velocity)]
    assert len(moving) > 10
    for item in moving:
        assert math.atan2(item.velocity[1], item.velocity[0]) == pytest.approx(
            math.remainder(item.yaw, 2 * math.pi), abs=1e-9
        )


def test_classes_are_in_the_order_of_the_labels():
    assert tuple(c.name for c in CLASSES) == CLASS_NAMES


@pytest.mark.parametrize("label", range(10))
def test_attributes_are_those_that_the_devkit_expects(label):
    from nuscenes.eval.detection.utils import category_to_detection_name, detection_name_to_rel_attributes

    kind = CLASSES[label]
    assert category_to_detection_name(kind.category) == kind.name
    allowed = detection_name_to_rel_attributes(kind.name) or [None]
    given_attributes = {
        attribute_of(kind, moving, road) for moving in (True, False) for road in (True, False)
    }
    assert given_attributes <= set(allowed)


def test_hues_stay_near_their_class_when_sigma_is_small():
    import colorsys

    for item in make_scene(WorldConfig(hue_sigma=0.0), 1).objects[:18]:
        hue = colorsys.rgb_to_hsv(*item.color)[0]
        assert (hue * 10 + 0.5) % 10 - 0.5 == pytest.approx(CLASSES.index(item.kind), abs=1e-6)
