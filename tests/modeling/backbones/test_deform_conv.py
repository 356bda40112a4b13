"""Deformable convolution: initialisation and dtypes."""

import pytest
import torch
from torch.nn import functional as F

from bevkd2.modeling.backbones.layers import DeformConv2d


@pytest.mark.parametrize("bias", [False, True])
def test_it_starts_as_half_a_plain_convolution(bias: bool):
    conv = DeformConv2d(3, 5, stride=2, bias=bias)
    x = torch.randn(2, 3, 9, 8)
    plain = 0.5 * F.conv2d(x, conv.weight, stride=2, padding=1)
    if bias:
        assert conv.bias is not None
        plain = plain + conv.bias[:, None, None]
    torch.testing.assert_close(conv(x), plain, rtol=1e-5, atol=1e-5)


def test_double_stays_double_and_autocast_is_float32():
    conv = DeformConv2d(3, 4)
    x = torch.randn(1, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(x.bfloat16()).dtype == torch.float32
    assert conv.double()(x.double()).dtype == torch.float64
