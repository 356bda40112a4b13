"""DIST against its formula in loops, and what Pearson's correlation does not see."""

import math

import pytest
import torch

from tests.distill.methods.inputs import build_method, dense_knowledge, dense_targets, gradient, normal

B, Q, K = 2, 5, 3


def correlation(xs, ys):
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    dx, dy = [x - mx for x in xs], [y - my for y in ys]
    lengths = math.sqrt(sum(d * d for d in dx)) * math.sqrt(sum(d * d for d in dy))
    return sum(a * b for a, b in zip(dx, dy, strict=True)) / lengths


def naive(student, teacher, activation, temperature, inter_weight, intra_weight, cells):
    def probabilities(logits):
        scaled = logits / temperature
        return scaled.sigmoid() if activation == "sigmoid" else scaled.softmax(-1)

    ours, theirs = probabilities(student), probabilities(teacher)
    rows = [(ours[b, q].tolist(), theirs[b, q].tolist()) for b, q in cells]
    inter = sum(1 - correlation(s, t) for s, t in rows) / len(rows)
    intra = sum(1 - correlation([s[k] for s, _ in rows], [t[k] for _, t in rows]) for k in range(K)) / K
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_it_is_equations_8_to_10_without_the_padding(activation):
    student, teacher = normal(B, Q, K, seed=0), normal(B, Q, K, seed=1)
    method = build_method("DIST", ACTIVATION=activation, TEMPERATURE=2.0, INTER_WEIGHT=0.5, INTRA_WEIGHT=3.0)
    loss = method(dense_knowledge(student, width=32), dense_knowledge(teacher, width=32), None)
    cells = [(b, q) for b in range(B) for q in range(4)]
    expected = naive(student, teacher, activation, 2.0, 0.5, 3.0, cells)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_locations_of_objects():
    student, teacher = normal(B, Q, K, seed=0), normal(B, Q, K, seed=1)
    targets = dense_targets([[0, -1, 1, -1, -1], [-1, 1, -1, 0, -1]], [[2, 1], [0, 0]])
    loss = build_method("DIST", LOCATIONS="objects")(
        dense_knowledge(student), dense_knowledge(teacher), targets
    )
    cells = [(0, 0), (0, 2), (1, 1), (1, 3)]
    assert loss.item() == pytest.approx(naive(student, teacher, "sigmoid", 1.0, 1.0, 1.0, cells), rel=1e-6)


def test_neither_scale_nor_offset_of_the_students_probabilities_matters():
    theirs = normal(B, Q, K, seed=1).sigmoid()
    ours = 0.25 * theirs + 0.3
    known = dense_knowledge(ours.logit()), dense_knowledge(theirs.logit())
    assert build_method("DIST")(*known, None).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_constant_predictions_and_no_objects_are_finite(dtype):
    student = torch.full((B, Q, K), -4.6).to(dtype).requires_grad_()
    teacher = normal(B, Q, K, seed=1).to(dtype)
    known = dense_knowledge(student), dense_knowledge(teacher)
    loss = build_method("DIST")(*known, None)
    gradient(loss, student)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(2.0, rel=1e-4)
    targets = dense_targets([[-1] * Q] * B, [[], []])
    empty = build_method("DIST", LOCATIONS="objects")(*known, targets)
    assert empty.item() == 0 and not gradient(empty, student).any()
    flat = dense_knowledge(torch.full((B, Q, K), 0.5))
    assert build_method("DIST")(dense_knowledge(teacher), flat, None).item() == 0


def test_one_class_is_an_error_that_names_the_key():
    known = dense_knowledge(normal(1, Q, 1, seed=0)), dense_knowledge(normal(1, Q, 1, seed=1))
    with pytest.raises(ValueError, match=r"DISTILL\.DIST\.INTER_WEIGHT: 1\.0, but the heads have one class"):
        build_method("DIST")(*known, None)
    assert build_method("DIST", INTER_WEIGHT=0.0)(*known, None) > 0
