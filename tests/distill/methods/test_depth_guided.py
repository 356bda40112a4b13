"""Depth-guided prediction distillation as a method: Eq. 5-6, its options, its errors."""

import math

import pytest
import torch

from bevkd2.config import get_cfg
from bevkd2.distill.methods import DepthGuidedPrediction
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import MonoKnowledge
from bevkd2.modeling.mono.grid import DenseGrid
from bevkd2.modeling.mono.inputs import MonoTargets
from bevkd2.structures import CameraBoxes3D

B, Q, K = 2, 5, 3
SHAPES = FeatureShapes(backbone={}, fpn=[])
GRID = DenseGrid.of_levels([(1, Q)], [8], "cpu")
SIZES = torch.tensor([[8.0, 8.0 * Q]] * B)


def build(**options):
    node = get_cfg().DISTILL.DEPTH_GUIDED
    for key, value in options.items():
        assert key in node
        node[key] = value
    return DepthGuidedPrediction(node, SHAPES, SHAPES)


def knowledge(seed):
    generator = torch.Generator().manual_seed(seed)
    return MonoKnowledge(
        logits=torch.randn(B, Q, K, generator=generator),
        depth=torch.rand(B, Q, generator=generator) * 40,
        direct_depth=torch.rand(B, Q, generator=generator) * 40,
        grid=GRID,
        image_sizes=SIZES.clone(),
    )


def targets(assigned=((0, -1, -1, 1, -1), (-1, -1, 0, -1, -1))):
    return MonoTargets(
        boxes=[CameraBoxes3D.empty()] * B, labels=[], boxes2d=[], centers2d=[],
        depths=[torch.tensor([10.0, 40.0]), torch.tensor([20.0])], attributes=None,
        image_sizes=SIZES.clone(), cam2img=torch.eye(4), assigned=torch.tensor(assigned),
        affine_augmented=torch.zeros(B, dtype=torch.bool), grid=GRID,
    )  # fmt: skip


def test_loss_is_equation_6_with_the_weight_of_equation_5():
    student, teacher = knowledge(0), knowledge(1)
    loss = build(OBJECT_WEIGHT=2.0, BACKGROUND_WEIGHT=0.5)(student, teacher, targets())
    distance = (student.logits.sigmoid() - teacher.logits.sigmoid()).square().sum(-1)
    objects = {(0, 0): 10.0, (0, 3): 40.0, (1, 2): 20.0}
    on, off = 0.0, 0.0
    for b in range(B):
        for q in range(Q):
            if (b, q) in objects:
                gap = abs(student.depth[b, q] - teacher.depth[b, q]).item() / 40.0
                on += distance[b, q].item() * (10 * gap + 1) * math.exp(objects[b, q] / 40.0)
            else:
                off += distance[b, q].item()
    assert loss.item() == pytest.approx(2.0 * on / 3 + 0.5 * off / 7, rel=1e-5)


def test_rows_of_the_paper_s_table_1_are_settings():
    student, teacher = knowledge(0), knowledge(1)
    values = {
        name: build(**options)(student, teacher, targets()).item()
        for name, options in {
            "kl": {"DISTANCE": "kl", "DEPTH_ATTENTION": False, "RHO": "off"},
            "l2": {"DEPTH_ATTENTION": False, "RHO": "off"},
            "l2+depth": {"RHO": "off"},
            "l2+linear": {"DEPTH_ATTENTION": False, "RHO": "linear"},
            "l2+exp": {"DEPTH_ATTENTION": False},
            "l2+both": {},
            "direct": {"DEPTH": "direct"},
        }.items()
    }
    assert len(set(values.values())) == 7
    assert values["l2"] < values["l2+linear"] < values["l2+exp"] < values["l2+both"]
    assert values["l2"] < values["l2+depth"] < values["l2+both"]


def test_identical_predictions_have_zero_loss():
    assert build()(knowledge(0), knowledge(0), targets()).item() == 0.0


@pytest.mark.parametrize("detach", [True, False])
def test_the_student_s_depth_gets_a_gradient_only_where_asked(detach):
    student = knowledge(0)
    student.depth.requires_grad_(True)
    student.logits.requires_grad_(True)
    build(DETACH_DEPTH=detach)(student, knowledge(1), targets()).backward()
    assert student.logits.grad.abs().sum() > 0
    assert (student.depth.grad is None) == detach


def test_a_batch_without_objects_distils_the_background():
    student, teacher = knowledge(0), knowledge(1)
    nothing = targets(((-1,) * Q, (-1,) * Q))
    nothing.depths = [torch.zeros(0), torch.zeros(0)]
    loss = build()(student, teacher, nothing)
    distance = (student.logits.sigmoid() - teacher.logits.sigmoid()).square().sum(-1)
    torch.testing.assert_close(loss, distance.mean())


def test_padding_counts_neither_as_object_nor_as_background():
    """The second image has three columns of content and two of padding: eight cells count in all."""
    student, teacher = knowledge(0), knowledge(1)
    padded = targets(((0, -1, -1, 1, -1), (-1, -1, -1, 0, -1)))
    student.image_sizes[1, 1] = 17.0
    loss = build(DEPTH_ATTENTION=False, RHO="off")(student, teacher, padded)
    distance = (student.logits.sigmoid() - teacher.logits.sigmoid()).square().sum(-1)
    on = (distance[0, 0] + distance[0, 3]) / 2
    off = (distance[0, [1, 2, 4]].sum() + distance[1, :3].sum()) / 6
    torch.testing.assert_close(loss, on + off)


def test_depths_of_shifted_and_scaled_images_are_not_compared():
    """Nobody has learnt them; how far the object is still does."""
    student, teacher, augmented = knowledge(0), knowledge(1), targets()
    augmented.affine_augmented[0] = True
    loss = build()(student, teacher, augmented)
    agreeing = knowledge(0)
    agreeing.depth[0] = teacher.depth[0]
    torch.testing.assert_close(loss, build()(agreeing, teacher, targets()))
    assert not torch.isclose(loss, build()(student, teacher, targets()))


def test_mismatches_of_teacher_and_student_are_named():
    with pytest.raises(ValueError, match=r"RHO: 'cube'; expected one of exp, linear, off"):
        build(RHO="cube")
    with pytest.raises(ValueError, match="student's head has no probabilistic_depth; use decoded or direct"):
        build(DEPTH="probabilistic")(knowledge(0), knowledge(1), targets())
    other = knowledge(1)
    other.grid = DenseGrid.of_levels([(Q, 1)], [8], "cpu")
    with pytest.raises(ValueError, match="the same levels and classes"):
        build()(knowledge(0), other, targets())
