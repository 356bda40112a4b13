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


@pytest.mark.parametrize("where", ["input", "offset's weight", "offset's bias", "modulation"])
def test_nan_comes_out_where_it_went_in(where: str):
    conv = DeformConv2d(2, 3)
    x = torch.randn(1, 2, 9, 9)
    with torch.no_grad():
        if where == "input":
            x[0, 1, 2, 2] = float("nan")
        elif where == "offset's weight":
            conv.conv_offset.weight[3, 0, 1, 1] = float("nan")
        else:  # the last offset, or the first of the logits behind it
            conv.conv_offset.bias[17 if where == "offset's bias" else 18] = float("nan")
    x.requires_grad_()
    out = conv(x)
    out.sum().backward()
    if where == "input":
        assert out[..., 1:4, 1:4].isnan().all() and not out[..., 5:, :].isnan().any()
    else:
        assert out.isnan().all()
