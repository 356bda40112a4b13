"""CWD against its formula in loops."""

import math

import pytest
import torch

from tests.distill.methods.inputs import build_method, fpn_knowledge, fpn_shapes, gradient, normal


def naive(student, teacher, temperature):
    images, channels, rows, columns = student.shape
    total = 0.0
    for i in range(images):
        for c in range(channels):
            ours = [student[i, c, y, x].item() / temperature for y in range(rows) for x in range(columns)]
            theirs = [teacher[i, c, y, x].item() / temperature for y in range(rows) for x in range(columns)]
            sums = sum(map(math.exp, ours)), sum(map(math.exp, theirs))
            for s, t in zip(ours, theirs, strict=True):
                p = math.exp(t) / sums[1]
                total += p * (math.log(p) - math.log(math.exp(s) / sums[0]))
    return temperature**2 * total / channels / images


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_it_is_equation_5_summed_over_the_maps(temperature):
    shapes = (2, 3, 4, 6), (2, 3, 2, 3)
    ours = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    theirs = [normal(*shape, seed=7 + i) for i, shape in enumerate(shapes)]
    method = build_method("CWD", fpn_shapes(3, levels=2), TEMPERATURE=temperature)
    loss = method(fpn_knowledge(ours), fpn_knowledge(theirs), None)
    expected = sum(naive(s, t, temperature) for s, t in zip(ours, theirs, strict=True))
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_a_channel_may_differ_by_an_offset():
    ours = normal(1, 3, 4, 6, seed=0)
    method = build_method("CWD", fpn_shapes(3))
    shifted = ours + torch.tensor([1.0, -2.0, 3.0])[:, None, None]
    assert method(fpn_knowledge([ours]), fpn_knowledge([shifted]), None).item() == pytest.approx(0, abs=1e-12)
    assert method(fpn_knowledge([ours]), fpn_knowledge([2 * ours]), None) > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_finite(dtype):
    ours = (100 * normal(2, 3, 4, 6, seed=0)).to(dtype).requires_grad_()
    theirs = (100 * normal(2, 3, 4, 6, seed=1)).to(dtype)
    loss = build_method("CWD", fpn_shapes(3))(fpn_knowledge([ours]), fpn_knowledge([theirs]), None)
    assert loss.dtype == torch.float32 and gradient(loss, ours).any()


def test_bad_use_names_the_key():
    with pytest.raises(ValueError, match=r"DISTILL\.CWD\.TEMPERATURE: -1\.0"):
        build_method("CWD", fpn_shapes(3), TEMPERATURE=-1.0)
    with pytest.raises(ValueError, match=r"DISTILL\.CWD\.ADAPTER: none, but fpn\.0 has 3 channels"):
        build_method("CWD", fpn_shapes(3), fpn_shapes(4), ADAPTER="none")
