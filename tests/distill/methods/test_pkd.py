"""PKD as a method: its loss and gradient are those of the plain form on every map, summed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from bevkd2.d2 import ShapeSpec
from bevkd2.distill.methods.pkd import PKD
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import Knowledge
from tests.distill.methods.harness import method_node

STRIDES = (8, 16)


def build(widths: Sequence[int] = (4, 4)) -> PKD:
    """The method for two levels of a student with these widths; the teacher's are 4."""

    def shapes(channels: Sequence[int]) -> FeatureShapes:
        fpn = [ShapeSpec(channels=c, stride=s) for c, s in zip(channels, STRIDES, strict=True)]
        return FeatureShapes(backbone={}, fpn=fpn)

    torch.manual_seed(0)
    return PKD(method_node("PKD"), shapes(widths), shapes((4, 4)))


def levels(seed: int, widths: Sequence[int] = (4, 4), dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (3 * torch.randn(3, width, 96 // stride, 128 // stride, generator=generator) - 1).to(dtype)
        for width, stride in zip(widths, STRIDES, strict=True)
    ]


def plain_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Equations 5 to 7 of the paper, in float32."""

    def normalized(features: Tensor) -> Tensor:
        features = features.float()
        std, mean = torch.std_mean(features, dim=(0, 2, 3), keepdim=True)
        return (features - mean) / (std + 1e-6)

    pairs = zip(student, teacher, strict=True)
    return torch.stack([(normalized(s) - normalized(t)).square().mean() / 2 for s, t in pairs]).sum()


def compared(ours: Sequence[Tensor], teacher: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The loss of the method and that of the plain form."""
    method = build()
    student = Knowledge(fpn=list(ours), fpn_strides=list(STRIDES))
    loss = method(student, Knowledge(fpn=list(teacher), fpn_strides=list(STRIDES)), None)
    return loss, plain_loss(ours, teacher)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_is_the_plain_form(dtype: torch.dtype, layout: torch.memory_format) -> None:
    ours = [x.to(memory_format=layout).requires_grad_() for x in levels(0, dtype=dtype)]
    loss, expected = compared(ours, levels(1, dtype=dtype))
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
    found, wanted = torch.autograd.grad(10 * loss, ours), torch.autograd.grad(10 * expected, ours)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9}[dtype]
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def test_a_constant_channel_is_normalised_to_zero() -> None:
    ours, teacher = levels(0), levels(1)
    ours[0][:, 1], teacher[0][:, 2] = 100.1, -0.3
    for level in ours:
        level.requires_grad_()
    loss, expected = compared(ours, teacher)
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
    found, wanted = torch.autograd.grad(loss, ours), torch.autograd.grad(expected, ours)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_maps_with_and_without_an_adapter_under_autocast() -> None:
    """The adapter's map is bfloat16 there, the other float32."""
    method = build(widths=(4, 6))
    ours = [x.requires_grad_() for x in levels(0, widths=(4, 6))]
    student = Knowledge(fpn=ours, fpn_strides=list(STRIDES))
    with torch.autocast("cpu", torch.bfloat16):
        adapted = method.adapted(method.pairs(student, student))
        loss = method(student, Knowledge(fpn=levels(1), fpn_strides=list(STRIDES)), None)
    assert [x.dtype for x in adapted] == [torch.float32, torch.bfloat16]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain_loss(adapted, levels(1)), rtol=2e-6, atol=0)
    found = torch.autograd.grad(loss, ours)
    wanted = torch.autograd.grad(plain_loss(adapted, levels(1)), ours)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() <= 0.02 * b.abs().max()
