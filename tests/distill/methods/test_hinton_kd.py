"""Hinton's distillation: the recorded losses of RepDistiller, both readings by hand, locations, errors."""

import logging
import math

import numpy as np
import pytest
import torch

from bevkd2.modeling.knowledge import Knowledge
from tests.distill.methods.harness import build_detector, build_pair
from tests.distill.methods.inputs import build_method, dense_knowledge, dense_targets, gradient, normal

Q, K = 5, 3


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def bernoulli_kl(student, teacher, temperature):
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = sigmoid(t / temperature), sigmoid(s / temperature)
        total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    return total * temperature**2


@pytest.mark.parametrize("temperature", [1, 2, 4])
def test_softmax_kl_equals_the_recorded_losses_and_gradients(shared_dir, temperature):
    recorded = np.load(shared_dir / "golden" / "mono" / "kd" / "repdistiller_losses.npz")
    ours, theirs = (torch.from_numpy(recorded[f"kd/logits_{who}"]).double()[:, None] for who in "st")
    ours.requires_grad_()
    method = build_method("HintonKD", DISTANCE="softmax_kl", TEMPERATURE=float(temperature))
    loss = method(Knowledge(logits=ours), Knowledge(logits=theirs), None)
    assert loss.item() == pytest.approx(float(recorded[f"kd/T{temperature}/loss_f64"]), rel=1e-9)
    found = gradient(loss, ours)[:, 0]
    torch.testing.assert_close(found, torch.from_numpy(recorded[f"kd/T{temperature}/grad_s"]))


def test_kl_is_the_divergence_of_every_class_of_its_own():
    student, teacher = normal(2, Q, K, seed=0), normal(2, Q, K, seed=1)
    method = build_method("HintonKD", TEMPERATURE=2.0)
    loss = method(dense_knowledge(student, width=8 * 3), dense_knowledge(teacher, width=8 * 3), None)
    inside = [bernoulli_kl(student[b, q], teacher[b, q], 2.0) for b in range(2) for q in range(3)]
    assert loss.item() == pytest.approx(sum(inside) / len(inside), rel=1e-6)


def test_locations_of_objects_and_the_teachers_confidence():
    student, teacher = normal(2, Q, K, seed=0), normal(2, Q, K, seed=1)
    known = dense_knowledge(student), dense_knowledge(teacher)
    targets = dense_targets([[0, -1, 1, -1, -1], [-1, -1, -1, 0, -1]], [[2, 1], [0]])
    loss = build_method("HintonKD", LOCATIONS="objects")(*known, targets)
    at = [(0, 0), (0, 2), (1, 3)]
    expected = sum(bernoulli_kl(student[b, q], teacher[b, q], 1.0) for b, q in at) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss = build_method("HintonKD", LOCATIONS="confident")(*known, targets)
    weights = {(b, q): max(map(sigmoid, teacher[b, q].tolist())) for b in range(2) for q in range(Q)}
    above = sum(w * bernoulli_kl(student[at], teacher[at], 1.0) for at, w in weights.items())
    assert loss.item() == pytest.approx(above / sum(weights.values()), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_without_objects_and_in_sixteen_bits_it_is_finite(dtype):
    student = (30 * normal(2, Q, K, seed=0)).to(dtype).requires_grad_()
    teacher = (30 * normal(2, Q, K, seed=1)).to(dtype)
    targets = dense_targets([[-1] * Q] * 2, [[], []])
    loss = build_method("HintonKD", LOCATIONS="objects")(
        dense_knowledge(student), dense_knowledge(teacher), targets
    )
    assert loss.item() == 0 and not gradient(loss, student).any()
    loss = build_method("HintonKD")(dense_knowledge(student), dense_knowledge(teacher), targets)
    assert loss.dtype == torch.float32 and gradient(loss, student).any()


def test_bad_use_names_the_key():
    with pytest.raises(ValueError, match=r"DISTILL\.HINTON_KD\.TEMPERATURE: 0\.0"):
        build_method("HintonKD", TEMPERATURE=0.0)
    with pytest.raises(ValueError, match=r"DISTILL\.HINTON_KD\.LOCATIONS: objects, but a BEVFormer"):
        build_pair("BEVFormer", "HintonKD", LOCATIONS="objects")
    logits = normal(1, Q, K, seed=0)
    with pytest.raises(ValueError, match=r"\(1, 5, 3\)[\s\S]*\(1, 4, 3\)"):
        build_method("HintonKD")(dense_knowledge(logits), dense_knowledge(logits[:, :4]), None)


def test_other_queries_or_levels_of_the_teacher_are_an_error():
    model = build_detector("BEVFormer", 8, 0)
    more = build_detector("BEVFormer", 8, 0, "MODEL.BEVFORMER.NUM_QUERIES", 14)
    with pytest.raises(ValueError, match=r"\[12, 14\] object queries"):
        build_method("HintonKD").attach(model, more)
    mono = build_detector("PGD", 8, 0)
    with pytest.raises(ValueError, match="predicts at all locations and the other does not"):
        build_method("HintonKD").attach(mono, model)
    with pytest.raises(ValueError, match=r"strides \[8, 16\], the teacher of \[4\]"):
        build_method("HintonKD").attach(mono, build_detector("SMOKE", 8, 0))


def test_queries_that_do_not_correspond_are_said_in_the_log(caplog):
    with caplog.at_level(logging.WARNING):
        build_pair("BEVFormer", "HintonKD", student_width=16)
        assert "object_queries" in caplog.text and "DISTILL.INHERIT.PARAMS" in caplog.text
        caplog.clear()
        build_pair("BEVFormer", "HintonKD", same=True)
        assert not caplog.text
