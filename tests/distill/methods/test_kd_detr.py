"""KD-DETR against its formula in loops, and its queries."""

import math

import pytest
import torch

from tests.distill.methods.decoders import attached, detectors, knowledge_of, total

CODE_WEIGHTS = [1.0] * 8 + [0.2] * 2


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def naive(ours, logits, codes) -> tuple[float, float]:
    """The class and box losses of one set of queries, from the formula."""
    layers, samples, queries, classes = ours.class_logits.shape
    weights = [[max(sigmoid(z) for z in row) for row in sample.tolist()] for sample in logits]
    count = max(sum(map(sum, weights)), 1.0)
    cls = box = 0.0
    for l in range(layers):
        for b in range(samples):
            for q in range(queries):
                kl = 0.0
                for k in range(classes):
                    p, r = sigmoid(logits[b, q, k].item()), sigmoid(ours.class_logits[l, b, q, k].item())
                    kl += p * math.log(p / r) + (1 - p) * math.log((1 - p) / (1 - r))
                cls += weights[b][q] * kl / count
                for i, weight in enumerate(CODE_WEIGHTS):
                    difference = abs(ours.box_codes[l, b, q, i].item() - codes[b, q, i].item())
                    box += weights[b][q] * weight * difference / count
    return cls, box


def test_specific_queries_are_the_teachers_through_the_students_decoder():
    student, teacher = detectors()
    ours, theirs = knowledge_of(student, 3), knowledge_of(teacher, 4)
    method = attached("KDDETR", student, teacher, GENERAL="none")
    points = theirs.decoder_reference_points[0]
    cls, box = naive(
        student.decode(ours, teacher.object_queries, points), theirs.class_logits[-1], theirs.box_codes[-1]
    )
    losses = method(ours, theirs, None)
    assert losses["kd_detr_cls"].item() == pytest.approx(cls, rel=1e-5)
    assert losses["kd_detr_box"].item() == pytest.approx(0.25 * box, rel=1e-5)


def test_random_queries_have_the_statistics_of_the_teachers_and_run_through_both_decoders():
    student, teacher = detectors()
    ours, theirs = knowledge_of(student, 3), knowledge_of(teacher, 4)
    method = attached("KDDETR", student, teacher, SPECIFIC=False, QUERIES=5)
    torch.manual_seed(0)
    losses = method(ours, theirs, None)
    torch.manual_seed(0)
    own = teacher.object_queries
    queries = own.mean(0) + own.std(0, correction=0) * torch.randn(5, 32)
    points = torch.randn(5, 3).sigmoid().expand(2, 5, 3)
    expert = teacher.decode(theirs, queries, points)
    cls, box = naive(student.decode(ours, queries, points), expert.class_logits[-1], expert.box_codes[-1])
    assert losses["kd_detr_cls"].item() == pytest.approx(cls, rel=1e-5)
    assert losses["kd_detr_box"].item() == pytest.approx(0.25 * box, rel=1e-5)
    assert not torch.equal(total(losses), total(method(ours, theirs, None)))  # drawn anew


def test_learned_queries_are_parameters_that_the_student_trains():
    student, teacher = detectors()
    method = attached("KDDETR", student, teacher, GENERAL="learned", SPECIFIC=False, QUERIES=5)
    assert {name for name, _ in method.named_parameters()} == {"queries", "points"}
    total(method(knowledge_of(student, 3), knowledge_of(teacher, 4), None)).backward()
    assert method.queries.grad.any() and method.points.grad.any()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_detectors_are_no_part_of_the_method():
    student, teacher = detectors()
    assert not list(attached("KDDETR", student, teacher).parameters())


def test_a_bfloat16_birds_eye_view_is_finite():
    student, teacher = detectors()
    ours, theirs = knowledge_of(student, 3), knowledge_of(teacher, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = total(attached("KDDETR", student, teacher, QUERIES=5)(ours, theirs, None))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and ours.bev_embed.grad.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"GENERAL": "none", "SPECIFIC": False}, r"KD_DETR\.GENERAL: none, and SPECIFIC is off"),
        ({"QUERIES": 0}, r"KD_DETR\.QUERIES: 0; expected 1 at least"),
        ({"TEMPERATURE": 0.0}, r"KD_DETR\.TEMPERATURE: 0\.0; expected a positive"),
        ({"CODE_WEIGHTS": [1.0]}, r"KD_DETR\.CODE_WEIGHTS: 1 numbers, expected 10"),
    ],
)
def test_settings_that_cannot_be_name_the_key(settings, match):
    with pytest.raises(ValueError, match=match):
        attached("KDDETR", *detectors(), **settings)


def test_queries_of_different_widths_name_both():
    with pytest.raises(
        ValueError, match=r"KD_DETR\.GENERAL: .* student's have 8 channels and the teacher's 16"
    ):
        attached("KDDETR", *detectors(8))
