import math

import numpy as np
import pytest
import torch

from bevkd2.structures import Boxes3D, CameraBoxes3D, project_boxes
from bevkd2.visualization.bev_view import BEVFrame
from bevkd2.visualization.mono_view import (
    count_outside,
    draw_mono_bev,
    draw_mono_image,
    fitting_extent,
    upright2img,
)
from bevkd2.visualization.objects import CLASS_COLORS, DrawnObjects

# 200 x 100 pixels, 90 degrees wide, with KITTI's kind of translation column.
CAM2IMG = np.array([[100.0, 0, 100, 4], [0, 100, 50, 0.2], [0, 0, 1, 0.003], [0, 0, 0, 1]])
BLACK = np.zeros((100, 200, 3), dtype=np.uint8)
FRAME = BEVFrame((-20.0, -2.0, 20.0, 38.0), 400)  # 10 pixels a metre


def record(*boxes, scores=None, labels=None):
    tensor = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 7)
    found = {"boxes": CameraBoxes3D(tensor), "labels": torch.tensor(labels or [0] * len(boxes))}
    return found if scores is None else {**found, "scores": torch.tensor(scores, dtype=torch.float64)}


def objects(*boxes, **kwargs):
    return DrawnObjects.from_dict(record(*boxes, **kwargs))


# Length along x, heading (cos ry, -sin ry) in (x, z): with ry = pi / 2 towards the camera.
CAR = (1.0, 1.5, 10.0, 4.0, 2.0, 1.6, 0.3)
TOWARDS = (0.0, 0.0, 10.0, 4.0, 2.0, 1.6, math.pi / 2)


def test_upright_boxes_project_where_the_camera_boxes_do():
    boxes = record(CAR, TOWARDS)["boxes"]
    upright = objects(CAR, TOWARDS).corners()
    homogeneous = np.concatenate([upright, np.ones((*upright.shape[:2], 1))], axis=2) @ upright2img(CAM2IMG).T
    ours = homogeneous[..., :2] / homogeneous[..., 2:3]
    theirs, _ = project_boxes(boxes, torch.from_numpy(CAM2IMG))
    for i in range(2):  # the two classes list their corners in different orders
        np.testing.assert_allclose(sorted(ours[i].tolist()), sorted(theirs[i].tolist()), atol=1e-9)


def test_a_calibration_that_is_not_padded_is_an_error():
    with pytest.raises(ValueError, match=r"cam2img is \(3, 4\), expected \(4, 4\)"):
        upright2img(CAM2IMG[:3])


def test_a_projected_corner_is_drawn_in_the_class_color():
    picture = draw_mono_image(BLACK, CAM2IMG, objects(CAR, labels=[6]))
    uv, _ = project_boxes(record(CAR)["boxes"], torch.from_numpy(CAM2IMG))
    for x, y in uv[0].numpy():
        area = picture[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].reshape(-1, 3).astype(int)
        assert (np.abs(area - CLASS_COLORS[6]).sum(axis=1) < 60).any()
    lit = np.argwhere(picture.any(axis=-1))[:, ::-1]
    np.testing.assert_allclose(lit.min(axis=0), uv[0].amin(dim=0), atol=2)
    np.testing.assert_allclose(lit.max(axis=0), uv[0].amax(dim=0), atol=2)


@pytest.mark.parametrize(("rotation", "depth"), [(math.pi / 2, 8.0), (-math.pi / 2, 12.0)])
def test_the_front_face_is_the_shaded_one(rotation, depth):
    """The front is 2 m off the centre, towards the camera or away; its pixels are shaded all over."""
    picture = draw_mono_image(BLACK, CAM2IMG, objects((*TOWARDS[:6], rotation)), scale=5.0)
    row, middle = picture[250 + 5].any(axis=-1), 5 * 100 + 2
    run = next(k for k in range(1, 100) if not row[middle + k])
    assert run == pytest.approx(5 * 100 * 1.0 / depth, abs=4)


def test_the_truth_is_white_under_the_predictions():
    alone = draw_mono_image(BLACK, CAM2IMG, objects(), objects(CAR))
    assert alone.max() > 240
    assert np.ptp(alone.astype(int), axis=-1).max() == 0  # no colour
    both = draw_mono_image(BLACK, CAM2IMG, objects(CAR), objects(CAR))
    assert (both.min(axis=-1) > 200).sum() < 0.1 * (alone.min(axis=-1) > 200).sum()


def test_a_score_is_written_above_the_box():
    bare = draw_mono_image(BLACK, CAM2IMG, objects(CAR))
    scored = draw_mono_image(BLACK, CAM2IMG, objects(CAR, scores=[0.87]))
    rows, _ = np.nonzero((bare != scored).any(axis=-1))
    top = np.nonzero(bare.any(axis=-1))[0].min()
    assert rows.max() <= top + 1
    assert rows.max() - rows.min() > 8


def test_boxes_grow_with_the_image():
    small = np.argwhere(draw_mono_image(BLACK, CAM2IMG, objects(CAR)).any(axis=-1))
    large = np.argwhere(draw_mono_image(BLACK, CAM2IMG, objects(CAR), scale=3.0).any(axis=-1))
    np.testing.assert_allclose(large.max(axis=0), 3 * small.max(axis=0), atol=6)


def changed(**kwargs):
    """Rows and columns that the objects change."""
    empty = draw_mono_bev(FRAME, CAM2IMG, 200)
    return np.nonzero((draw_mono_bev(FRAME, CAM2IMG, 200, **kwargs) != empty).any(axis=-1))


@pytest.mark.parametrize("kind", ["truth", "predictions"])
def test_x_is_to_the_right_and_z_upwards(kind):
    rows, columns = changed(**{kind: objects((5.0, 1.0, 20.0, 4.0, 2.0, 1.5, 0.0), scores=[0.9])})
    assert (columns.min(), columns.max()) == pytest.approx((230, 270), abs=3)
    assert (rows.min(), rows.max()) == pytest.approx((170, 190), abs=3)


def test_rotation_is_kittis():
    """Heading (cos ry, -sin ry) in (x, z): with ry = pi / 2 the front is at the lower end."""
    box = objects((0.0, 1.0, 20.0, 4.0, 2.0, 1.5, math.pi / 2), scores=[0.9], labels=[3])
    picture = draw_mono_bev(FRAME, CAM2IMG, 200, predictions=box).astype(int)
    front, rear = (np.abs(picture[row, 199:201] - CLASS_COLORS[3]).sum() for row in (190, 170))
    assert front < 60  # the line to the front, at z = 19 m
    assert rear > 200


def test_predictions_are_filled_and_the_truth_is_a_black_outline():
    box = (5.0, 1.0, 20.0, 4.0, 2.0, 1.5, 0.0)
    filled = draw_mono_bev(FRAME, CAM2IMG, 200, predictions=objects(box, scores=[0.9], labels=[3]))
    np.testing.assert_allclose(filled[183, 250], 0.45 * CLASS_COLORS[3] + 0.55 * 255, atol=6)
    outlined = draw_mono_bev(FRAME, CAM2IMG, 200, truth=objects(box, labels=[3]))
    blank = draw_mono_bev(FRAME, CAM2IMG, 200)
    assert (outlined[183, 245] == blank[183, 245]).all()
    assert outlined[170, 250].max() < 60
    # A line from the centre to the front, at larger x; none to the rear.
    assert outlined[180, 262].max() < 60
    assert (outlined[180, 240] == blank[180, 240]).all()


def test_ground_outside_the_field_of_view_is_grey():
    """90 degrees wide: at z = 10 m the image shows x from about -10 to 10 m."""
    picture = draw_mono_bev(FRAME, CAM2IMG, 200)
    row = int(FRAME.to_pixels(np.array([0.0, 15.0]))[1])  # between two arcs
    shown = np.nonzero((picture[row] == 255).all(axis=-1))[0]
    assert shown.min() == pytest.approx(200 - 150, abs=3)
    assert shown.max() == pytest.approx(200 + 150, abs=3)
    assert (picture[-1] != 255).all()  # behind the camera


def test_the_range_holds_the_farthest_object():
    assert fitting_extent(objects()) == (-15, -2, 15, 30)
    assert fitting_extent(objects((0.0, 1, 34.0, 4, 2, 1.5, 0))) == (-20, -2, 20, 40)
    assert fitting_extent(objects((0.0, 1, 38.0, 4, 2, 1.5, 0))) == (-25, -2, 25, 50)
    assert fitting_extent(objects((0.0, 1, 500.0, 4, 2, 1.5, 0)))[3] == 100


def test_objects_out_of_range_are_counted():
    places = [(0.0, 20.0), (25.0, 20.0), (0.0, 39.0), (-21.0, 5.0)]
    assert count_outside(FRAME, objects(*((x, 1.0, z, 4, 2, 1.5, 0) for x, z in places))) == 3
    assert count_outside(FRAME, DrawnObjects(Boxes3D.empty(), np.zeros(0, dtype=np.int64))) == 0


def test_without_objects_the_image_is_unchanged():
    assert (draw_mono_image(BLACK, CAM2IMG, objects(scores=[]), objects()) == BLACK).all()
