"""Labels against the boxes that they describe, and against the pixels."""

import dataclasses

import numpy as np
import pytest
import torch

from bevkd2.data.synthetic import KittiWorldConfig
from bevkd2.data.synthetic.kitti.scene import TYPES, KittiFrame, make_frame
from bevkd2.data.synthetic.kitti.world import label_text, occlusion_level
from bevkd2.data.synthetic.render import SceneRenderer, View
from bevkd2.structures import CameraBoxes3D, projected_boxes2d

CONFIG = KittiWorldConfig.preset("hard", seed=2)
WIDTH, HEIGHT = CONFIG.image_size
CAR = TYPES[0].kind


def render(frame):
    return SceneRenderer(frame.scene, CONFIG.image_size).render(frame.scene.rig[0], 0.0)


@pytest.fixture(scope="module")
def labelled():
    frames = [make_frame(CONFIG, i) for i in range(16)]
    return [(frame, view, label_text(CONFIG, frame, view)) for frame in frames for view in [render(frame)]]


def rows(text, kind=None):
    fields = [line.split() for line in text.splitlines()]
    return [(f[0], np.array(f[1:], dtype=float)) for f in fields if kind in (None, f[0])]


def one_car(forward, left, relative_yaw=0.0, color=(1.0, 0.0, 1.0)) -> KittiFrame:
    """A magenta car of the mean size, alone in clear air."""
    frame = make_frame(CONFIG, 0)
    path = frame.scene.road.path
    cos, sin = np.cos(path.heading), np.sin(path.heading)
    item = dataclasses.replace(
        frame.scene.objects[0],
        kind=CAR,
        size=np.array(CAR.size),
        yaw=path.heading + relative_yaw,
        position=path.origin + np.array([[cos, -sin], [sin, cos]]) @ [forward, left],
        color=np.array(color),
    )
    light = dataclasses.replace(frame.scene.light, haze_distance=1e6)
    scene = dataclasses.replace(frame.scene, objects=[item], light=light)
    return dataclasses.replace(frame, scene=scene)


def test_every_row_has_kittis_columns_and_ranges(labelled):
    kinds = set()
    for _, _, text in labelled:
        for kind, v in rows(text):
            kinds.add(kind)
            assert len(v) == 14
            left, top, right, bottom = v[3:7]
            assert 0 <= left < right <= WIDTH
            assert 0 <= top < bottom <= HEIGHT
            if kind == "DontCare":
                assert v[:3].tolist() == [-1, -1, -10]
                assert v[7:].tolist() == [-1, -1, -1, -1000, -1000, -1000, -10]
            else:
                assert 0 <= v[0] <= 1
                assert v[1] in (0, 1, 2, 3)
    assert {"Car", "Pedestrian", "Cyclist", "Van", "DontCare"} <= kinds


def test_dont_care_comes_last_and_nothing_visible_is_dropped(labelled):
    for frame, view, text in labelled:
        kinds = [kind for kind, _ in rows(text)]
        assert kinds == sorted(kinds, key=lambda kind: kind == "DontCare")
        annotated = np.array([item.kind is not None for item in frame.scene.objects], dtype=bool)
        assert len(kinds) == int((annotated & (view.visible > 0)).sum())


def test_the_2d_box_and_alpha_follow_from_the_3d_box(labelled):
    """Within the rounding of two decimals, through P2 with its translation."""
    for frame, _, text in labelled:
        for kind, v in rows(text):
            if kind == "DontCare":
                continue
            h, w, length, x, y, z, ry = v[7:]
            box = CameraBoxes3D.from_bottom(torch.tensor([[x, y, z, length, h, w, ry]], dtype=torch.float64))
            expected = projected_boxes2d(box, torch.from_numpy(frame.calibration.cam2img), (HEIGHT, WIDTH))
            # 1 cm and 0.01 rad at 4 m are about a pixel.
            np.testing.assert_allclose(v[3:7], expected[0], atol=0.2 + 5 / z)
            turn = (box.alpha().item() - v[2] + np.pi) % (2 * np.pi) - np.pi
            assert turn == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(("forward", "left", "turn"), [(12.0, 0.0, 0.0), (15.0, 3.0, 0.7), (18.0, -4.0, 2.0)])
def test_the_pixels_are_where_the_label_says(forward, left, turn):
    frame = one_car(forward, left, turn)
    view = render(frame)
    ((_, v),) = rows(label_text(CONFIG, frame, view), "Car")
    image = view.image.astype(int)
    magenta = (image[..., 0] - image[..., 1] > 25) & (image[..., 2] - image[..., 1] > 25)
    found_rows, found_columns = np.nonzero(magenta)
    found = [found_columns.min(), found_rows.min(), found_columns.max() + 1, found_rows.max() + 1]
    # The wheels and the rear lamps are not magenta.
    np.testing.assert_allclose(v[3:7], found, atol=2.0)
    assert v[12] == pytest.approx(forward, abs=0.01)
    assert v[10] == pytest.approx(-left, abs=0.01)
    assert v[1] == 0
    assert v[0] == 0


def test_front_and_rear_differ_in_the_image():
    """Seen from behind, rotation_y is -pi/2 and the face is darker than the front that comes towards us."""
    tones = {}
    for name, turn in (("rear", 0.0), ("front", np.pi)):
        frame = one_car(12.0, 0.0, turn, color=(0.2, 0.3, 0.9))
        view = render(frame)
        ((_, v),) = rows(label_text(CONFIG, frame, view), "Car")
        assert np.sin(v[13]) == pytest.approx(-np.cos(turn), abs=0.01)
        left, _, right, bottom = v[3:7]
        tones[name] = view.image[int(bottom) - 10 : int(bottom) - 3, int(left) + 5 : int(right) - 5].mean()
    assert tones["front"] > 1.5 * tones["rear"]


def test_a_dark_rim_shows_where_a_box_meets_the_ground():
    """On the side that the sun shines on, too: in front of the box from every side."""
    for turn in (0.0, 1.5):
        frame = one_car(14.0, 0.0, turn)
        ((_, v),) = rows(label_text(CONFIG, frame, render(frame)), "Car")
        bare = dataclasses.replace(frame.scene, objects=[])
        left, _, right, bottom = v[3:7]
        where = (int(bottom), int(left + right) // 2)
        with_box = render(frame).image.astype(float)[where].mean()
        without = render(dataclasses.replace(frame, scene=bare)).image.astype(float)[where].mean()
        assert with_box < 0.6 * without


def test_truncated_is_the_share_beyond_the_border():
    """A car whose centre is on the left border is cut in the middle, but for perspective."""
    frame = one_car(16.0, 0.0)
    p2 = frame.calibration.projections[2]
    frame = one_car(16.0, 16.0 * p2[0, 2] / p2[0, 0], np.pi / 2)
    ((_, v),) = rows(label_text(CONFIG, frame, render(frame)), "Car")
    assert v[3] == 0
    assert v[0] == pytest.approx(0.5, abs=0.06)


def test_occlusion_levels():
    shares = [1.0, 0.81, 0.79, 0.5, 0.49, 0.2, 0.19, 0.01]
    assert [occlusion_level(share) for share in shares] == [0, 0, 1, 1, 2, 2, 3, 3]


def view_of(frame, visible, unoccluded=400.0) -> View:
    empty = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    return View(empty, np.array([visible]), np.array([unoccluded]))


@pytest.mark.parametrize(
    ("visible", "forward", "expected"),
    [(300.0, 12.0, "Car 1"), (60.0, 12.0, "Car 3"), (20.0, 12.0, "DontCare -1"), (60.0, 27.0, "DontCare -1")],
)
def test_hardly_visible_or_far_objects_are_dont_care(visible, forward, expected):
    frame = one_car(forward, 0.0)
    ((kind, v),) = rows(label_text(CONFIG, frame, view_of(frame, visible)))
    assert f"{kind} {v[1]:.0f}" == expected


def test_invisible_objects_have_no_line():
    frame = one_car(12.0, 0.0)
    assert label_text(CONFIG, frame, view_of(frame, 0.0)) == ""
