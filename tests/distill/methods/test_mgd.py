"""MGD against its formula in loops, and its masks."""

import pytest
import torch
import torch.nn.functional as F

from tests.distill.methods.inputs import build_method, fpn_knowledge, fpn_shapes, gradient, normal


def test_it_is_the_squared_distance_summed_over_everything_but_the_images():
    shapes = (2, 3, 4, 6), (2, 3, 2, 3)
    ours = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    theirs = [normal(*shape, seed=7 + i) for i, shape in enumerate(shapes)]
    method = build_method("MGD", fpn_shapes(3, levels=2), MASK_RATIO=0.5)
    torch.manual_seed(5)
    loss = method(fpn_knowledge(ours), fpn_knowledge(theirs), None)
    torch.manual_seed(5)
    expected = 0.0
    for level, (student, teacher) in enumerate(zip(ours, theirs, strict=True)):
        first, _, last = method.generators[level]
        kept = torch.rand(2, 1, *student.shape[-2:])
        for image in range(2):
            masked = student[image].clone()
            for y in range(student.shape[2]):
                for x in range(student.shape[3]):
                    if kept[image, 0, y, x] < 0.5:
                        masked[:, y, x] = 0
            hidden = F.conv2d(masked[None], first.weight, first.bias, padding=1).clamp(min=0)
            made = F.conv2d(hidden, last.weight, last.bias, padding=1)[0]
            expected += ((made - teacher[image]) ** 2).sum().item() / 2
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_masks_hide_the_published_share_of_the_cells_in_all_channels():
    method = build_method("MGD", fpn_shapes(3))
    torch.manual_seed(0)
    masked = method._masked(torch.ones(4, 3, 50, 50))
    assert torch.equal(masked, masked[:, :1].expand_as(masked))
    assert masked.mean().item() == pytest.approx(0.35, abs=0.02)
    assert not torch.equal(masked[0], masked[1])


def test_cells_that_are_hidden_get_no_gradient_and_the_generator_does():
    ours = normal(2, 3, 4, 6, seed=0).requires_grad_()
    method = build_method("MGD", fpn_shapes(3))
    torch.manual_seed(5)
    loss = method(fpn_knowledge([ours]), fpn_knowledge([normal(2, 3, 4, 6, seed=1)]), None)
    torch.manual_seed(5)
    hidden = (torch.rand(2, 1, 4, 6) < 0.65).expand_as(ours)
    loss.backward()
    assert not ours.grad[hidden].any() and ours.grad[~hidden].all()
    assert all(parameter.grad.abs().max() > 0 for parameter in method.parameters())


def test_bfloat16_features_are_finite():
    ours = normal(2, 3, 4, 6, seed=0, dtype=torch.bfloat16).requires_grad_()
    method = build_method("MGD", fpn_shapes(3)).bfloat16()
    loss = method(fpn_knowledge([ours]), fpn_knowledge([normal(2, 3, 4, 6, seed=1).bfloat16()]), None)
    assert loss.dtype == torch.float32 and gradient(loss, ours).any()


def test_a_share_that_cannot_be_names_the_key():
    with pytest.raises(ValueError, match=r"DISTILL\.MGD\.MASK_RATIO: 1\.0; expected a share"):
        build_method("MGD", fpn_shapes(3), MASK_RATIO=1.0)
