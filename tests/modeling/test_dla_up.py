import pytest
import torch
import torch.nn.functional as F

from bevkd2.d2 import ShapeSpec
from bevkd2.modeling.necks import DLAUp, IDAUp, Upsample
from tests.tolerance import assert_same_sum

SHAPE = {f"res{i}": ShapeSpec(channels=4 * 2**i, stride=2**i) for i in range(2, 6)}
NAMES = list(SHAPE)


def features(count: int = 1, requires_grad: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        name: torch.randn(count, spec.channels, 64 // spec.stride, 96 // spec.stride).requires_grad_(
            requires_grad
        )
        for name, spec in SHAPE.items()
    }


@pytest.mark.parametrize(("out_channels", "expected"), [(0, 16), (24, 24)])
def test_one_level_of_the_finest_stride_that_sees_every_feature(out_channels: int, expected: int):
    neck = DLAUp(SHAPE, in_features=NAMES, out_channels=out_channels)
    assert (neck.strides, neck.out_channels) == ([4], expected)
    maps = features(requires_grad=True)
    (level,) = neck(maps)
    assert level.shape == (1, expected, 16, 24)
    level.square().sum().backward()
    assert all(m.grad is not None and m.grad.abs().sum() > 0 for m in maps.values())
    assert all(p.grad is not None for p in neck.parameters())


def test_batch_of_two_equals_two_batches_of_one():
    neck = DLAUp(SHAPE, in_features=NAMES[:3])
    for parameter in neck.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    both = features(2)
    alone = [neck({name: m[i : i + 1] for name, m in both.items()})[0] for i in range(2)]
    assert_same_sum(neck(both)[0], torch.cat(alone), max(weight[0].numel() for weight in neck.parameters()))


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_upsampling_starts_as_bilinear(factor: int):
    x = torch.randn(1, 3, 6, 7)
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear")
    inner = slice(factor, -factor)  # the transposed convolution fades out at the border
    ours = Upsample(3, factor)(x)
    assert ours.shape == expected.shape
    torch.testing.assert_close(ours[..., inner, inner], expected[..., inner, inner])


def test_bad_features_are_errors():
    with pytest.raises(ValueError, match="expected two or more of"):
        DLAUp(SHAPE, in_features=["res2", "res9"])
    with pytest.raises(ValueError, match="strides \\[4, 16\\]"):
        DLAUp(SHAPE, in_features=["res2", "res4"])


def test_a_finest_level_of_other_channels_is_an_error():
    with pytest.raises(ValueError, match="the finest level has 16 channels, expected out_channels, 32"):
        IDAUp([16, 32], 32, [1, 2])
