"""TempDistiller against its formula in loops, its masks, and a teacher with a longer history."""

import pytest
import torch
import torch.nn.functional as F

from bevkd2.distill import DISTILL_REGISTRY
from bevkd2.modeling.detector import BEVShape, FeatureShapes
from bevkd2.modeling.knowledge import BEVKnowledge
from tests.distill.methods.harness import build_pair, distill_losses, make_batch, method_node

GRID = (3, 4)


def build(student: int = 4, teacher: int = 4, **settings):
    shapes = [
        FeatureShapes(backbone={}, fpn=[], bev=BEVShape(width, GRID, 1)) for width in (student, teacher)
    ]
    return DISTILL_REGISTRY.get("TempDistiller")(method_node("TempDistiller", **settings), *shapes)


def known(seed: int, channels: int = 4, dtype: torch.dtype = torch.float64) -> BEVKnowledge:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randn(2, 12, channels, generator=generator, dtype=torch.float64).to(dtype)
    return BEVKnowledge(bev_embed=cells, bev_shape=GRID, bev_range=(-2.0, -1.5, 2.0, 1.5))


def test_it_is_the_mean_square_of_what_the_generator_makes_of_the_cells_that_are_left():
    method = build(student=3).double()
    student, teacher = known(0, channels=3), known(1)
    torch.manual_seed(5)
    loss = method(student, teacher, None)
    torch.manual_seed(5)
    kept = torch.rand(2, 1, *GRID) >= 0.5
    first, _, last = method.generators[0]
    expected = 0.0
    for b in range(2):
        cells = torch.zeros(1, 4, *GRID, dtype=torch.float64)
        for y in range(3):
            for x in range(4):
                if kept[b, 0, y, x]:
                    weight = method.adapters[0].weight[:, :, 0, 0]
                    cells[0, :, y, x] = weight @ student.bev_embed[b, 4 * y + x] + method.adapters[0].bias
        hidden = F.conv2d(cells, first.weight, first.bias, padding=1).clamp(min=0)
        made = F.conv2d(hidden, last.weight, last.bias, padding=1)[0]
        for y in range(3):
            for x in range(4):
                difference = made[:, y, x] - teacher.bev_embed[b, 4 * y + x]
                expected += (difference**2).sum().item() / (2 * 12 * 4)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_hidden_cells_get_no_gradient_and_the_generator_does():
    method, student = build().double(), known(0)
    student.bev_embed.requires_grad_()
    torch.manual_seed(5)
    loss = method(student, known(1), None)
    torch.manual_seed(5)
    hidden = (torch.rand(2, 1, *GRID) < 0.5).flatten(2).transpose(1, 2).expand(-1, -1, 4)
    loss.backward()
    assert not student.bev_embed.grad[hidden].any() and student.bev_embed.grad[~hidden].all()
    assert all(parameter.grad.any() for parameter in method.parameters())


def test_bfloat16_is_finite():
    student = known(0, dtype=torch.bfloat16)
    student.bev_embed.requires_grad_()
    loss = build().bfloat16()(student, known(1, dtype=torch.bfloat16), None)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and student.bev_embed.grad.isfinite().all()


def test_a_teacher_that_sees_more_frames_gives_another_target():
    model = build_pair("BEVFormer", "TempDistiller")
    short = make_batch("BEVFormer", 1, 2)
    for sample in short:
        sample["history"] = []
    losses = []
    for samples in (
        short,
        [{**s, "teacher": t} for s, t in zip(short, make_batch("BEVFormer", 1, 2), strict=True)],
    ):
        torch.manual_seed(0)
        losses.append(distill_losses(model, samples)["loss_distill_temp_distiller"].item())
    assert losses[0] != losses[1]


def test_settings_that_cannot_be_name_the_key():
    with pytest.raises(ValueError, match=r"TEMP_DISTILLER\.MASK_RATIO: 1\.0; expected a share"):
        build(MASK_RATIO=1.0)
    pair = build_pair("BEVFormer", "TempDistiller")
    shapes = pair.student.feature_shapes(), pair.teacher.feature_shapes()
    with pytest.raises(ValueError, match=r"TEMP_DISTILLER\.SOURCES: fpn\.0; expected bev"):
        DISTILL_REGISTRY.get("TempDistiller")(method_node("TempDistiller", SOURCES=["fpn"]), *shapes)
