import pytest
import torch
import torch.nn.functional as F

from bevkd2.d2 import ShapeSpec
from bevkd2.modeling.necks import FPN

SHAPES = {"res3": ShapeSpec(channels=4, stride=8), "res4": ShapeSpec(channels=6, stride=16)}


def features() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"res3": torch.randn(2, 4, 7, 9), "res4": torch.randn(2, 6, 4, 5)}


def test_levels_extra_levels_and_strides():
    fpn = FPN(SHAPES, in_features=["res3", "res4"], out_channels=5, num_outs=4)
    outs = fpn(features())
    assert [tuple(out.shape) for out in outs] == [(2, 5, 7, 9), (2, 5, 4, 5), (2, 5, 2, 3), (2, 5, 1, 2)]
    assert fpn.strides == [8, 16, 32, 64]
    # the first extra level reads the coarsest output as it is, the second one through a ReLU
    torch.testing.assert_close(outs[2], fpn.output_convs[2](outs[1]))
    torch.testing.assert_close(outs[3], fpn.output_convs[3](outs[2].relu()))


def test_top_down_path_is_nearest():
    fpn = FPN(SHAPES, in_features=["res3", "res4"], out_channels=5, num_outs=2)
    x = features()
    lateral3, lateral4 = fpn.lateral_convs[0](x["res3"]), fpn.lateral_convs[1](x["res4"])
    expected = fpn.output_convs[0](lateral3 + F.interpolate(lateral4, size=(7, 9), mode="nearest"))
    torch.testing.assert_close(fpn(x)[0], expected)


def test_fewer_outputs_are_the_finest():
    fpn = FPN(SHAPES, in_features=["res3", "res4"], out_channels=5, num_outs=1)
    assert [tuple(out.shape) for out in fpn(features())] == [(2, 5, 7, 9)]
    assert fpn.strides == [8]


def test_unknown_features_are_named():
    with pytest.raises(ValueError, match=r"IN_FEATURES: the backbone has no \['res9'\]"):
        FPN(SHAPES, in_features=["res9"], out_channels=5, num_outs=1)
    with pytest.raises(ValueError, match="NUM_OUTS is 0"):
        FPN(SHAPES, in_features=["res3"], out_channels=5, num_outs=0)
