"""DKD against its formula in loops: both readings of the true class's probability."""

import math

import pytest
import torch

from tests.distill.methods.inputs import build_method, dense_knowledge, dense_targets, gradient, normal

Q, K = 5, 4
ASSIGNED = [[0, -1, 1, -1, -1], [-1, -1, -1, 0, -1]]
LABELS = [[2, 1], [3]]
AT = {(0, 0): 2, (0, 2): 1, (1, 3): 3}


def naive(student, teacher, activation, alpha, beta, temperature):
    total = 0.0
    for (b, q), true in AT.items():
        ours = [x / temperature for x in student[b, q].tolist()]
        theirs = [x / temperature for x in teacher[b, q].tolist()]

        def two_way(z, true=true):
            if activation == "sigmoid":
                p = 1 / (1 + math.exp(-z[true]))
            else:
                p = math.exp(z[true]) / sum(map(math.exp, z))
            return p, 1 - p

        def others(z, true=true):
            rest = [math.exp(x) for c, x in enumerate(z) if c != true]
            return [x / sum(rest) for x in rest]

        tckd = sum(t * math.log(t / s) for s, t in zip(two_way(ours), two_way(theirs), strict=True))
        nckd = sum(t * math.log(t / s) for s, t in zip(others(ours), others(theirs), strict=True))
        total += temperature**2 * (alpha * tckd + beta * nckd)
    return total / len(AT)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_it_is_equation_7_at_the_objects_locations(activation):
    student, teacher = normal(2, Q, K, seed=0), normal(2, Q, K, seed=1)
    method = build_method("DKD", ACTIVATION=activation, ALPHA=1.5, BETA=0.5, TEMPERATURE=2.0)
    targets = dense_targets(ASSIGNED, LABELS)
    loss = method(dense_knowledge(student), dense_knowledge(teacher), targets)
    assert loss.item() == pytest.approx(naive(student, teacher, activation, 1.5, 0.5, 2.0), rel=1e-6)


def test_defaults_are_those_of_the_published_detection_code():
    student, teacher = normal(2, Q, K, seed=0), normal(2, Q, K, seed=1)
    loss = build_method("DKD")(
        dense_knowledge(student), dense_knowledge(teacher), dense_targets(ASSIGNED, LABELS)
    )
    assert loss.item() == pytest.approx(naive(student, teacher, "sigmoid", 1.0, 0.25, 1.0), rel=1e-6)


def test_softmax_reading_splits_hintons_loss():
    # Eq. 5: KL = TCKD + (1 - p_t) NCKD, so at one location BETA = 1 - p_t gives Hinton's loss.
    student, teacher = normal(1, 1, K, seed=0), normal(1, 1, K, seed=1)
    rest = 1 - teacher[0, 0].softmax(-1)[2].item()
    known = dense_knowledge(student), dense_knowledge(teacher)
    targets = dense_targets([[0]], [[2]])
    decoupled = build_method("DKD", ACTIVATION="softmax", BETA=rest)(*known, targets)
    whole = build_method("HintonKD", DISTANCE="softmax_kl")(*known, targets)
    assert decoupled.item() == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_extreme_logits_and_images_without_objects_are_finite(activation, dtype):
    student = (60 * normal(2, Q, K, seed=0)).to(dtype).requires_grad_()
    known = dense_knowledge(student), dense_knowledge((60 * normal(2, Q, K, seed=1)).to(dtype))
    method = build_method("DKD", ACTIVATION=activation)
    loss = method(*known, dense_targets(ASSIGNED, LABELS))
    found = gradient(loss, student)
    assert loss.dtype == torch.float32 and found.any()
    counted = torch.zeros(2, Q, dtype=torch.bool)
    for at in AT:
        counted[at] = True
    assert not found[~counted].any()
    empty = method(*known, dense_targets([[-1] * Q] * 2, [[], []]))
    assert empty.item() == 0 and not gradient(empty, student).any()


def test_one_class_has_no_others():
    student, teacher = normal(1, Q, 1, seed=0), normal(1, Q, 1, seed=1)
    targets = dense_targets([[0, -1, -1, -1, -1]], [[0]])
    known = dense_knowledge(student), dense_knowledge(teacher)
    loss = build_method("DKD")(*known, targets)
    p, q = (z[0, 0].sigmoid().item() for z in (teacher, student))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match=r"DISTILL\.DKD\.ACTIVATION: softmax, but the heads have one class"):
        build_method("DKD", ACTIVATION="softmax")(*known, targets)
