"""The auxiliary box heads: where they are read, what they should say, and that they are off by default."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bevkd2.config import CfgNode
from bevkd2.d2 import build_model
from bevkd2.modeling.bev.dense_boxes import (
    BETA,
    VELOCITY,
    bev_box_loss,
    bev_box_targets,
    image_box_loss,
    image_box_targets,
)
from bevkd2.modeling.bev.inputs import BEVTargets
from bevkd2.structures import Boxes3D
from tests.modeling.conftest import HEIGHT, WIDTH, camera_matrix

Make = Callable[..., dict[str, Any]]
RANGE = (-10.0, -8.0, -5.0, 10.0, 8.0, 3.0)
SIZE = torch.tensor([float(HEIGHT), float(WIDTH)])
FOCAL = 60.0  # of camera_matrix


def box(x: float, y: float, *, z: float = 1.0, size: float = 1.0, yaw: float = 0.0, v=(0.0, 0.0)) -> list:
    return [x, y, z, size, size, size, yaw, *v]


def targets_of(rows: list[list[float]]) -> BEVTargets:
    return BEVTargets(
        boxes=[Boxes3D(torch.tensor(rows).reshape(-1, 9))],
        labels=[torch.zeros(len(rows), dtype=torch.int64)],
        codes=[],
        lidar2img=camera_matrix(math.pi / 2)[None, None],
        image_sizes=SIZE[None, None],
    )


def test_bev_targets_are_row_column_offset_heading_velocity():
    boxes = Boxes3D(torch.tensor([box(5.75, -7.5, yaw=0.5, v=(1.0, -2.0)), box(11.0, 0.0)]))
    cells, values = bev_box_targets(boxes, (16, 20), RANGE)
    assert cells.tolist() == [[0, 15]]  # the second is outside
    expected = [[0.25, 0.0, math.sin(0.5), math.cos(0.5), 1.0, -2.0]]
    torch.testing.assert_close(values, torch.tensor(expected))


def test_bev_headings_can_be_relative_to_the_ray():
    boxes = Boxes3D(torch.tensor([box(3.0, 3.0, yaw=1.5)]))
    _, values = bev_box_targets(boxes, (16, 20), RANGE, ray_heading=True)
    assert float(torch.atan2(values[0, 2], values[0, 3])) == pytest.approx(1.5 - math.pi / 4, abs=1e-6)


@pytest.mark.parametrize("turn", [0.0, 0.4, -0.4])
def test_local_yaw_is_what_the_camera_sees(turn: float):
    """Turning an object about the camera, heading and all, leaves its local yaw as it is."""
    boxes = Boxes3D(torch.tensor([box(0.0, 6.0, yaw=1.1)])).rotate(turn)
    cells, values = image_box_targets(boxes, camera_matrix(math.pi / 2)[None], SIZE[None], 4)
    local = torch.atan2(values[0, 0], values[0, 1])
    assert float(local) == pytest.approx(1.1 - math.pi / 2, abs=1e-5)
    assert cells.tolist() == [[0, HEIGHT // 2 // 4, int(WIDTH / 2 - FOCAL * math.tan(turn)) // 4]]


def test_local_yaw_is_relative_to_the_camera_and_not_to_the_origin():
    camera = camera_matrix(math.pi / 2)
    shift = torch.eye(4)
    shift[:3, 3] = torch.tensor([-2.0, 0.0, 0.0])  # the camera is 2 m to the right
    _, values = image_box_targets(
        Boxes3D(torch.tensor([box(2.0, 6.0, yaw=1.1)])), (camera @ shift)[None], SIZE[None], 4
    )
    assert float(torch.atan2(values[0, 0], values[0, 1])) == pytest.approx(1.1 - math.pi / 2, abs=1e-5)


def test_scale_is_what_a_pixel_spans_whatever_the_focal_length():
    rows = torch.tensor([box(0.0, 6.0, size=2.0)])
    for focal in (60.0, 120.0):
        _, values = image_box_targets(Boxes3D(rows), camera_matrix(math.pi / 2, focal)[None], SIZE[None], 4)
        assert values[0, 2:].tolist() == pytest.approx([math.log(2.0)] * 3 + [math.log(100 * 6 / focal)])


def test_an_object_behind_another_or_behind_the_camera_is_not_asked_for():
    near, far, back = box(0.0, 6.0), box(0.0, 12.0), box(0.0, -6.0)
    beside = box(4.0, 12.0)
    boxes = Boxes3D(torch.tensor([far, near, back, beside]))
    _, values = image_box_targets(boxes, camera_matrix(math.pi / 2)[None], SIZE[None], 4)
    assert values[:, 5].exp().tolist() == pytest.approx([10.0, 20.0], rel=1e-5)
    assert len(image_box_targets(boxes[1:], camera_matrix(math.pi / 2)[None], SIZE[None], 4)[1]) == 2


def test_a_box_across_the_image_plane_hides_nothing():
    boxes = Boxes3D(torch.tensor([box(0.0, 1.0, size=4.0), box(2.0, 12.0)]))
    assert len(image_box_targets(boxes, camera_matrix(math.pi / 2)[None], SIZE[None], 4)[1]) == 2


def test_every_camera_of_a_sample_is_read_apart():
    """What one camera sees neither hides nor moves what another one sees."""
    boxes = Boxes3D(torch.tensor([box(0.0, 6.0), box(0.0, 12.0), box(12.0, 0.0, yaw=0.3)]))
    cameras = torch.stack([camera_matrix(math.pi / 2), camera_matrix(0.0)])
    sizes = SIZE.expand(2, 2)
    cells, values = image_box_targets(boxes, cameras, sizes, 4)
    alone = [image_box_targets(boxes, camera[None], SIZE[None], 4) for camera in cameras]
    assert cells[:, 0].tolist() == [0, 1]
    torch.testing.assert_close(values, torch.cat([found for _, found in alone]))
    assert torch.equal(cells[:, 1:], torch.cat([where for where, _ in alone])[:, 1:])


def test_losses_are_zero_at_the_truth_and_smooth_l1_elsewhere():
    targets = targets_of([box(1.0, 6.0, yaw=2.0, v=(3.0, 0.0)), box(-1.0, 6.0)])
    grid, image = torch.zeros(1, 6, 16, 20), torch.zeros(1, 6, HEIGHT // 4, WIDTH // 4)
    cells, values = bev_box_targets(targets.boxes[0], (16, 20), RANGE)
    grid[0][:, cells[:, 0], cells[:, 1]] = values.T
    seen, wanted = image_box_targets(targets.boxes[0], targets.lidar2img[0], SIZE[None], 4)
    image[0][:, seen[:, 1], seen[:, 2]] = wanted.T
    assert float(bev_box_loss(grid, targets, RANGE)) == 0 == float(image_box_loss(image, targets, 4))
    grid[0][4, cells[0, 0], cells[0, 1]] += 2.0
    image[0][0, seen[0, 1], seen[0, 2]] += 0.1
    assert float(bev_box_loss(grid, targets, RANGE)) == pytest.approx((2.0 - BETA / 2) / 2)
    assert float(image_box_loss(image, targets, 4)) == pytest.approx(0.1**2 / (2 * BETA) / 2, rel=1e-4)


def test_losses_without_objects_are_zero_and_keep_the_graph():
    head = torch.zeros(1, 6, 16, 20, requires_grad=True)
    bev_box_loss(head, targets_of([]), RANGE).backward()
    assert torch.equal(head.grad, torch.zeros_like(head))


def test_image_targets_are_exact_under_autocast():
    targets = targets_of([box(3.03, 6.1, z=1.27)])
    image = torch.randn(1, 6, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    expected = image_box_loss(image, targets, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(image_box_loss(image, targets, 1), expected)


def test_velocities_of_the_dense_head_are_those_of_the_boxes(tiny_cfg: CfgNode, make_sample: Make):
    """With DENSE_VELOCITY the loss of the boxes reaches the head, and detections have its velocities."""
    bev = tiny_cfg.MODEL.BEVFORMER
    bev.DROPOUT, bev.DENSE_VELOCITY = 0.0, True
    with pytest.raises(ValueError, match=r"DENSE_VELOCITY reads the dense BEV head.*AUX\.BEV_BOX_WEIGHT"):
        build_model(tiny_cfg)
    bev.AUX.BEV_BOX_WEIGHT = 1.0
    model, samples = build_model(tiny_cfg), [make_sample(1, history=1)]
    losses = model.train()(samples)
    losses["loss_box"].backward()
    rows = model.bev_box_head[2].weight.grad.abs().sum(dim=(1, 2, 3))
    assert rows[VELOCITY].min() > 0 == rows[: VELOCITY.start].max()
    model.eval()
    before = model.extract(model.preprocess(samples)).box_codes
    with torch.no_grad():
        model.bev_box_head[2].bias[VELOCITY] += torch.tensor([3.0, -4.0])
    moved = model.extract(model.preprocess(samples)).box_codes - before
    assert moved[..., :8].abs().max() == 0
    torch.testing.assert_close(moved[..., 8:], torch.tensor([3.0, -4.0]).expand_as(moved[..., 8:]))


def test_heads_exist_where_their_weight_is_not_zero(tiny_cfg: CfgNode, make_sample: Make):
    """Without them the model is the one before: the same parameters from the same seed."""
    torch.manual_seed(0)
    plain = build_model(tiny_cfg).state_dict()
    assert not any("box_head" in name for name in plain)
    aux = tiny_cfg.MODEL.BEVFORMER.AUX
    aux.BEV_BOX_WEIGHT, aux.IMAGE_BOX_WEIGHT = 0.5, 2.0
    torch.manual_seed(0)
    model = build_model(tiny_cfg).train()
    full = model.state_dict()
    added = {name.split(".")[0] for name in full.keys() - plain.keys()}
    assert added == {"bev_box_head", "image_box_head"}
    assert all(torch.equal(full[name], value) for name, value in plain.items())
    samples = [make_sample(1, history=1), make_sample(2)]
    tiny_cfg.MODEL.BEVFORMER.DROPOUT = 0.0
    losses = model(samples)
    assert {"loss_bev_boxes", "loss_image_boxes"} < set(losses)
    sum(losses.values()).backward()
    for head in (model.bev_box_head, model.image_box_head):
        assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())
    model.eval()
    knowledge = model.extract(model.preprocess(samples))
    assert knowledge.bev_boxes is None and knowledge.image_boxes is None
