"""The dense head: its maps, its initial state, and what levels share."""

from __future__ import annotations

import pytest
import torch

from bevkd2.modeling.backbones.layers import DeformConv2d
from bevkd2.modeling.mono.fcos3d.head import DenseHead, DenseHeadOptions, TowerShape
from bevkd2.modeling.mono.fcos3d.priors import BoxPrior

KITTI = DenseHeadOptions(depth_bins=8, uncertainty=True, keypoints=True, boxes2d=True)
NUSCENES = DenseHeadOptions(num_attributes=9, velocity=True, depth_bins=6, boxes2d=True)
PLAIN = DenseHeadOptions()


def make_head(options: DenseHeadOptions, convs: int = 2, deformable_last: bool = True) -> DenseHead:
    torch.manual_seed(0)
    names = ["class", "direction", "centerness", *options.regressors(), *options.extras()]
    return DenseHead(
        TowerShape(in_channels=16, channels=16, convs=convs, deformable_last=deformable_last),
        num_classes=3,
        num_levels=2,
        widths={name: [16] for name in names},
        prior=BoxPrior(3),
        options=options,
    )


@pytest.mark.parametrize(
    ("options", "columns", "present"),
    [
        (KITTI, 7, {"depth_bins": 8, "uncertainty": 1, "keypoints": 16, "boxes2d": 4}),
        (NUSCENES, 9, {"depth_bins": 6, "boxes2d": 4, "attributes": 9}),
        (PLAIN, 7, {}),
    ],
)
def test_maps_are_those_asked_for(options: DenseHeadOptions, columns: int, present: dict[str, int]):
    with torch.no_grad():
        outputs = make_head(options)([torch.randn(2, 16, 6, 8), torch.randn(2, 16, 3, 4)])
    assert [level.shape for level in outputs.boxes] == [(2, columns, 6, 8), (2, columns, 3, 4)]
    for name in ("depth_bins", "uncertainty", "keypoints", "boxes2d", "attributes"):
        levels = getattr(outputs, name)
        assert (levels is not None) == (name in present)
        if levels is not None:
            assert [level.shape[1] for level in levels] == [present[name]] * 2
    if outputs.boxes2d is not None:
        assert min(float(level.min()) for level in outputs.boxes2d) >= 0
    if outputs.keypoints is not None:
        assert max(float(level.abs().max()) for level in outputs.keypoints) <= 1


def test_classes_start_rare_and_depths_even():
    with torch.no_grad():
        outputs = make_head(KITTI)([torch.randn(2, 16, 6, 8), torch.randn(2, 16, 3, 4)])
    assert float(outputs.logits[0].sigmoid().mean()) == pytest.approx(0.01, rel=0.3)
    assert float(outputs.centerness[0].sigmoid().mean()) == pytest.approx(0.5, rel=0.2)
    assert float(outputs.depth_bins[0].softmax(dim=1).max()) < 0.2
    weight = make_head(KITTI).fuse_lambda
    assert weight is not None
    assert weight.sigmoid().item() == pytest.approx(0.5, abs=1e-3)
    assert make_head(PLAIN).fuse_lambda is None


def test_levels_share_all_but_their_factors():
    head = make_head(KITTI)
    x = torch.randn(1, 16, 6, 8)
    same = head([x, x])
    assert torch.equal(same.boxes[0], same.boxes[1])
    with torch.no_grad():
        head.scales[1]["offset"].fill_(2.0)
    scaled = head([x, x])
    torch.testing.assert_close(scaled.boxes[1][:, :2], 2 * scaled.boxes[0][:, :2])
    assert torch.equal(scaled.boxes[1][:, 2:], scaled.boxes[0][:, 2:])


def test_only_the_last_convolution_of_a_tower_is_deformable():
    head = make_head(PLAIN, convs=3)
    kinds = [isinstance(block.conv, DeformConv2d) for block in head.class_tower]
    assert kinds == [False, False, True]
    plain = make_head(PLAIN, deformable_last=False)
    assert not any(isinstance(module, DeformConv2d) for module in plain.modules())


def test_the_number_of_levels_is_fixed():
    with pytest.raises(ValueError, match="zip"):
        make_head(PLAIN)([torch.randn(1, 16, 4, 4)])
