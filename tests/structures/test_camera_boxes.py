import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bevkd2.ops import rotated_iou
from bevkd2.structures import Boxes3D, CameraBoxes3D, project_boxes, project_points, projected_boxes2d
from bevkd2.structures.box_tensor import BoxTensor

# KITTI's P2 as a (4, 4): its translation column moves pixels and depths.
CAM2IMG = torch.tensor(
    [
        [721.5377, 0, 609.5593, 44.85728],
        [0, 721.5377, 172.854, 0.2163791],
        [0, 0, 1, 0.002745884],
        [0, 0, 0, 1],
    ],
    dtype=torch.float64,
)
IMAGE = (375, 1242)


def random_boxes(n: int, seed: int = 0, columns: int = 9) -> CameraBoxes3D:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn((n, columns), generator=generator, dtype=torch.float64) * 5
    tensor[:, 2] = tensor[:, 2].abs() + 20
    tensor[:, 3:6] = tensor[:, 3:6].abs() + 0.5
    return CameraBoxes3D(tensor)


def one_box(**changes: float) -> CameraBoxes3D:
    row = {"x": 0.0, "y": 1.0, "z": 10.0, "length": 4.0, "width": 2.0, "height": 1.5, "ry": 0.0, **changes}
    return CameraBoxes3D(torch.tensor([list(row.values())], dtype=torch.float64))


def test_errors_name_the_class_and_its_columns() -> None:
    with pytest.raises(ValueError, match=r"CameraBoxes3D: .* \(2, 8\), expected .* rotation_y\[, vx, vz\]"):
        CameraBoxes3D(torch.zeros(2, 8))
    with pytest.raises(ValueError, match=r"CameraBoxes3D: the tensor is torch.int64"):
        CameraBoxes3D(torch.zeros((2, 7), dtype=torch.int64))
    with pytest.raises(ValueError, match=r"CameraBoxes3D.cat: boxes with \[7, 9\] columns"):
        CameraBoxes3D.cat([random_boxes(1), random_boxes(1, columns=7)])
    with pytest.raises(ValueError, match=r"CameraBoxes3D.velocity: these boxes have 7 columns"):
        _ = random_boxes(1, columns=7).velocity


def test_operations_return_the_same_class() -> None:
    boxes = random_boxes(4)
    made: list[BoxTensor] = [boxes[1], boxes[1:], boxes.clone(), boxes.to(torch.float32), boxes.flip()]
    made += [CameraBoxes3D.cat([boxes, boxes]), CameraBoxes3D.empty(7)]
    assert all(type(b) is CameraBoxes3D for b in made)
    assert [len(b) for b in made] == [1, 3, 4, 4, 4, 8, 0]
    assert repr(boxes) == "CameraBoxes3D(num_boxes=4, columns=9, device=cpu)"
    assert not isinstance(boxes, Boxes3D)


def test_axes_of_one_box() -> None:
    """Length along the heading (cos, -sin) in (x, z); y points down."""
    boxes = one_box(ry=-math.pi / 2)  # heading +z: away from the camera
    corners = boxes.corners()[0]
    torch.testing.assert_close(corners[4:, 2], torch.full((4,), 12.0).double())  # the front face
    torch.testing.assert_close(corners[:4, 2], torch.full((4,), 8.0).double())
    torch.testing.assert_close(
        corners[:, 0].aminmax(), (torch.tensor(-1.0).double(), torch.tensor(1.0).double())
    )
    # Top right, top left, bottom left, bottom right as seen along the heading: camera's right is +x.
    assert (corners[4:, 0] > 0).tolist() == [True, False, False, True]
    assert (corners[4:, 1] < 1).tolist() == [True, True, False, False]
    torch.testing.assert_close(boxes.bottom_center[0], torch.tensor([0.0, 1.75, 10]).double())


def test_alpha_of_a_box_that_faces_along_its_ray() -> None:
    boxes = one_box(x=10.0, z=10.0, ry=0.3)
    assert float(boxes.alpha()) == pytest.approx(0.3 - math.pi / 4)
    assert float(boxes.depth) == 10.0


@given(seed=st.integers(0, 10_000), columns=st.sampled_from([7, 9]))
@settings(max_examples=25, deadline=None)
def test_conversions_do_not_change_their_input(seed: int, columns: int) -> None:
    boxes = random_boxes(6, seed, columns)
    for back in (
        CameraBoxes3D.from_bottom(boxes.to_bottom()),
        CameraBoxes3D.from_upright(boxes.upright()),
        boxes.flip().flip(),
    ):
        torch.testing.assert_close(back.tensor, boxes.tensor, rtol=0, atol=1e-12)
    as_rows = boxes.to_bottom()
    torch.testing.assert_close(as_rows[:, :3], boxes.bottom_center)
    torch.testing.assert_close(as_rows[:, 3:6], boxes.size[:, [0, 2, 1]])


def sorted_corners(corners: Tensor) -> Tensor:
    """The corners of each box in an order that does not hang on their names."""
    keys = (corners * torch.tensor([1.0, 100.0, 10_000.0]).double()).sum(-1)
    return corners.gather(1, keys.argsort(dim=1)[..., None].expand(-1, -1, 3))


def test_upright_boxes_have_the_same_corners_velocity_and_footprint() -> None:
    boxes = random_boxes(8)
    upright = boxes.upright()
    x, y, z = upright.corners().unbind(-1)
    torch.testing.assert_close(
        sorted_corners(torch.stack([x, -z, y], -1)), sorted_corners(boxes.corners()), rtol=0, atol=1e-9
    )
    torch.testing.assert_close(upright.velocity, boxes.velocity)
    torch.testing.assert_close(upright.tensor[:, [0, 1, 3, 4, 6]], boxes.bev())


def test_bev_is_the_footprint_that_the_ops_read() -> None:
    """A box turned in the camera's frame overlaps a thin probe where its corners say."""
    boxes = one_box(length=6.0, width=1.0, ry=0.5)
    front = boxes.corners()[0, 4:].mean(dim=0)
    probe = torch.tensor([[float(front[0]), float(front[2]), 0.02, 0.02, 0.0]], dtype=torch.float64)
    assert float(rotated_iou(boxes.bev(), probe)) > 0
    probe[0, 1] += 2 * (10 - probe[0, 1])  # mirrored: the front of a box turned the other way
    assert float(rotated_iou(boxes.bev(), probe)) == 0


def test_flip_mirrors_corners_and_velocity() -> None:
    boxes = random_boxes(8)
    mirrored = boxes.corners() * torch.tensor([-1.0, 1, 1]).double()
    torch.testing.assert_close(sorted_corners(boxes.flip().corners()), sorted_corners(mirrored))
    torch.testing.assert_close(boxes.flip().velocity, boxes.velocity * torch.tensor([-1.0, 1]).double())
    heading = torch.stack([boxes.rotation_y.cos(), -boxes.rotation_y.sin()], dim=1)
    flipped = boxes.flip().rotation_y
    torch.testing.assert_close(
        torch.stack([flipped.cos(), -flipped.sin()], dim=1), heading * torch.tensor([-1.0, 1]).double()
    )


def test_projection_uses_the_whole_matrix() -> None:
    boxes = random_boxes(5, columns=7)
    uv, depth = project_boxes(boxes, CAM2IMG)
    homogeneous = torch.cat([boxes.corners(), torch.ones(5, 8, 1).double()], dim=-1) @ CAM2IMG.T
    torch.testing.assert_close(uv, homogeneous[..., :2] / homogeneous[..., 2:3])
    torch.testing.assert_close(depth, homogeneous[..., 2])
    torch.testing.assert_close(depth, boxes.corners()[..., 2] + 0.002745884)


def test_projection_keeps_its_precision_under_autocast() -> None:
    boxes = random_boxes(5, columns=7).to(torch.float32)
    plain, size = project_boxes(boxes, CAM2IMG), projected_boxes2d(boxes, CAM2IMG, IMAGE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        uv, depth = project_boxes(boxes, CAM2IMG)
        inside = projected_boxes2d(boxes, CAM2IMG, IMAGE)
    torch.testing.assert_close((uv, depth), plain, rtol=0, atol=0)
    torch.testing.assert_close(inside, size, rtol=0, atol=0)


def test_boxes2d_surround_the_corners_within_the_image() -> None:
    boxes = random_boxes(30, 3, columns=7)
    uv, _ = project_boxes(boxes, CAM2IMG)
    border = torch.tensor([IMAGE[1], IMAGE[0]]).double()
    expected = torch.cat([uv.amin(1), uv.amax(1)], dim=1).clamp(min=0).minimum(border.repeat(2))
    boxes2d = projected_boxes2d(boxes, CAM2IMG, IMAGE)
    torch.testing.assert_close(boxes2d, expected)
    assert bool((boxes2d[:, 2:] >= boxes2d[:, :2]).all())


def test_boxes2d_of_a_box_that_crosses_the_image_plane() -> None:
    """A long car beside the camera leaves the image by its right border, and its lower one."""
    boxes = one_box(x=2.5, y=1.0, z=1.0, length=8.0, ry=-math.pi / 2)
    x1, y1, x2, y2 = projected_boxes2d(boxes, CAM2IMG, IMAGE)[0].tolist()
    far_left, _ = project_points(torch.tensor([[1.5, 0.25, 5.0]]).double(), CAM2IMG)
    assert x1 == pytest.approx(float(far_left[0, 0]))
    assert (x2, y2) == (1242, 375)
    assert 0 < y1 < 375


def test_boxes2d_behind_the_camera_are_zero_and_have_no_nan_gradient() -> None:
    tensor = torch.cat([one_box(z=-10.0).tensor, one_box().tensor]).requires_grad_()
    boxes2d = projected_boxes2d(CameraBoxes3D(tensor), CAM2IMG, IMAGE)
    assert boxes2d[0].tolist() == [0, 0, 0, 0]
    boxes2d.sum().backward()
    assert tensor.grad is not None
    assert bool(tensor.grad.isfinite().all())
    assert bool((tensor.grad[0] == 0).all()) and bool((tensor.grad[1] != 0).any())


def test_no_boxes() -> None:
    empty = CameraBoxes3D.empty(7)
    assert empty.corners().shape == (0, 8, 3)
    assert empty.bev().shape == (0, 5) and empty.to_bottom().shape == (0, 7)
    assert len(empty.upright()) == 0 and empty.upright().tensor.shape[1] == 7
    assert projected_boxes2d(empty, CAM2IMG, IMAGE).shape == (0, 4)
