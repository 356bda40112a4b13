"""A few boxes put by hand, seen by the renderer and by the devkit's own projection."""

import dataclasses
import math

import numpy as np
import pytest
from nuscenes.utils.data_classes import Box
from nuscenes.utils.geometry_utils import view_points
from pyquaternion import Quaternion

from bevkd2.data.synthetic import WorldConfig
from bevkd2.data.synthetic.nuscenes.scene import CLASSES, make_scene
from bevkd2.data.synthetic.render import SceneRenderer
from bevkd2.data.synthetic.scene import EgoPath, Road, Scene, WorldObject

SIZE = (352, 128)
MAGENTA = np.array([1.0, 0.0, 1.0])


def make_box(forward, left, size=(4.0, 2.0, 1.8), yaw=0.0, color=MAGENTA, velocity=(0.0, 0.0)):
    return WorldObject(
        None, np.array(size), yaw, np.array([forward, left], float), np.array(velocity), color, None
    )


def build(objects) -> Scene:
    """An ego at rest at the origin that heads along x, without haze."""
    scene = make_scene(WorldConfig(image_size=SIZE, seed=1), 0)
    light = dataclasses.replace(scene.light, haze_distance=1e6)
    road = Road(EgoPath(np.zeros(2), 0.0, 0.0, 0.001), 2)
    return dataclasses.replace(scene, objects=objects, road=road, light=light)


def render(objects, channel="CAM_FRONT", time=0.0):
    scene = build(objects)
    camera = next(s for s in scene.rig if s.channel == channel)
    return SceneRenderer(scene, SIZE).render(camera, time), camera


def is_magenta(image):
    r, g, b = image[..., 0].astype(int), image[..., 1].astype(int), image[..., 2].astype(int)
    return (r - g > 40) & (b - g > 40)


def devkit_extent(item, camera, time=0.0):
    """(left, top, right, bottom) of the devkit's projection of the box, in pixels."""
    length, width, height = item.size
    box = Box(item.center(time), [width, length, height], Quaternion(axis=[0, 0, 1], angle=item.yaw))
    box.translate(-camera.translation)
    box.rotate(Quaternion(camera.rotation).inverse)
    points = view_points(box.corners(), camera.intrinsics, normalize=True)[:2]
    return np.array([*points.min(axis=1), *points.max(axis=1)])


@pytest.mark.parametrize(
    ("channel", "place"),
    [
        ("CAM_FRONT", (15.0, 2.0)),
        ("CAM_FRONT_RIGHT", (10.0, -12.0)),
        ("CAM_FRONT_LEFT", (9.0, 14.0)),
        ("CAM_BACK", (-11.0, -1.0)),
        ("CAM_BACK_LEFT", (-4.0, 13.0)),
        ("CAM_BACK_RIGHT", (-5.0, -12.0)),
    ],
)
@pytest.mark.parametrize("yaw", [0.0, 0.6, -2.1])
def test_a_box_shows_where_the_devkit_projects_it(channel, place, yaw):
    item = make_box(*place, yaw=yaw)
    view, camera = render([item], channel)
    rows, columns = np.nonzero(is_magenta(view.image))
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    np.testing.assert_allclose(found, devkit_extent(item, camera), atol=1.5)
    # The hull's area is about the number of pixels; the mask's threshold costs some of the border.
    assert view.visible[0] == pytest.approx(len(rows), rel=0.1, abs=20)


def test_a_moving_box_is_drawn_where_it_is_at_that_time():
    item = make_box(12.0, -3.0, velocity=(0.0, 4.0))
    view, camera = render([item], time=1.5)
    columns = np.nonzero(is_magenta(view.image))[1]
    left, _, right, _ = devkit_extent(item, camera, time=1.5)
    assert columns.min() == pytest.approx(left, abs=1.5)
    assert columns.max() + 1 == pytest.approx(right, abs=1.5)


def test_nearer_box_occludes_the_farther_in_any_order():
    near, far = make_box(8.0, 0.0, size=(1.0, 4.0, 3.0), color=np.full(3, 0.5)), make_box(20.0, 0.0)
    for objects in ([near, far], [far, near]):
        view, _ = render(objects)
        i = objects.index(far)
        assert view.visible[i] == 0
        assert view.unoccluded[i] > 50
        assert not is_magenta(view.image).any()
        assert view.visible[1 - i] == view.unoccluded[1 - i] > 0


def test_half_occluded_box_is_half_visible():
    far = make_box(20.0, 0.0, size=(0.5, 4.0, 2.0))
    near = make_box(10.0, 5.0, size=(0.1, 10.0, 4.0), color=np.full(3, 0.5))
    view, _ = render([far, near])
    assert view.visible[0] / view.unoccluded[0] == pytest.approx(0.5, abs=0.05)


def test_long_boxes_that_cross_in_depth_are_sorted_by_pixel():
    """A painter's order by centre would hide the wall's near end behind the post."""
    wall = make_box(16.0, 2.0, size=(20.0, 0.4, 2.5), yaw=0.0)
    post = make_box(12.0, 2.6, size=(0.4, 0.4, 2.5), color=np.array([0.0, 1.0, 0.0]))
    view, _ = render([wall, post])
    # The post is on the far side of the wall, although its centre is nearer than that of the wall.
    assert view.visible[1] == 0
    assert view.unoccluded[1] > 10


def test_a_box_beside_the_camera_is_clipped():
    """From behind the image plane to before it; nothing may show right of the optical axis."""
    view, _ = render([make_box(2.0, 2.5, size=(12.0, 1.0, 2.0))])
    columns = np.nonzero(is_magenta(view.image))[1]
    assert len(columns) > 500
    assert columns.min() == 0
    assert columns.max() < SIZE[0] / 2


def test_a_box_behind_the_camera_is_not_visible():
    view, _ = render([make_box(-10.0, 0.0)])
    assert view.visible[0] == view.unoccluded[0] == 0


def test_haze_reduces_contrast_with_distance():
    scene = build([make_box(10.0, 0.0), make_box(40.0, -10.0)])
    scene = dataclasses.replace(scene, light=dataclasses.replace(scene.light, haze_distance=30.0))
    camera = scene.rig[1]
    image = SceneRenderer(scene, SIZE).render(camera, 0.0).image.astype(float)
    saturation = []
    for item in scene.objects:
        left, top, right, bottom = devkit_extent(item, camera).astype(int)
        patch = image[(top + bottom) // 2, (left + right) // 2]
        saturation.append(patch.max() - patch.min())
    assert saturation[1] < 0.6 * saturation[0]


def test_a_box_casts_its_shadow_away_from_the_sun():
    scene = build([make_box(9.0, 0.0)])
    sun = np.array([0.0, math.cos(0.6), math.sin(0.6)])
    lit = dataclasses.replace(scene, light=dataclasses.replace(scene.light, sun=sun))
    with_box = SceneRenderer(lit, SIZE).render(lit.rig[1], 0.0).image.astype(float)
    # A box that is not there: same ground, same grain.
    empty = dataclasses.replace(lit, objects=[make_box(-500.0, 0.0)])
    without = SceneRenderer(empty, SIZE).render(lit.rig[1], 0.0).image.astype(float)
    darker = (without - with_box).mean(axis=-1) > 10
    darker &= ~is_magenta(with_box)
    left, _, right, _ = devkit_extent(scene.objects[0], scene.rig[1])
    assert darker[:, int(right) + 2 :].sum() > 50
    assert darker[:, : int(left) - 2].sum() == 0


def test_the_sky_is_above_the_horizon_and_the_road_below():
    view, camera = render([])
    horizon = int(camera.intrinsics[1, 2])
    assert view.image[:4].mean() > 140
    assert view.image[-8:].mean() < view.image[:4].mean()
    assert view.image.shape == (128, 352, 3)
    assert 40 < horizon < 70


def test_every_class_can_be_painted():
    for kind in CLASSES:
        item = dataclasses.replace(make_box(8.0, 0.0), kind=kind, size=np.array(kind.size))
        assert render([item])[0].visible[0] > 6
