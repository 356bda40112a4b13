"""D3ETR against its formula in loops."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from tests.distill.methods.decoders import attached, detectors, knowledge_of, total

CODE_WEIGHTS = [1.0] * 8 + [0.2] * 2


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cost(logits: list[float], codes: list[float], logits_t: list[float], codes_t: list[float]) -> float:
    """The focal cost of the teacher's most probable class, and the L1 of all codes but the velocity."""
    p = sigmoid(logits[logits_t.index(max(logits_t))])
    positive, negative = -math.log(p) * 0.25 * (1 - p) ** 2, -math.log(1 - p) * 0.75 * p**2
    return 2.0 * (positive - negative) + 0.25 * sum(abs(codes[i] - codes_t[i]) for i in range(8))


def distance(logits: list[float], codes: list[float], logits_t: list[float], codes_t: list[float]) -> float:
    """The loss of one pair before the division."""
    classes = 0.0
    for z, t in zip(logits, logits_t, strict=True):
        p, r = sigmoid(z), sigmoid(t)
        classes += abs(p - r) ** 2 * -(r * math.log(p) + (1 - r) * math.log(1 - p))
    boxes = sum(w * abs(a - b) for w, a, b in zip(CODE_WEIGHTS, codes, codes_t, strict=True))
    return 2.0 * classes + 0.25 * max(map(sigmoid, logits_t)) * boxes


def naive(ours, theirs, matched: bool) -> float:
    """The loss of all layers; ``ours`` and ``theirs`` are logits and codes (L, B, Q, ...)."""
    (logits, codes), (logits_t, codes_t) = ([x.tolist() for x in side] for side in (ours, theirs))
    loss = 0.0
    for l in range(len(logits)):
        layer, objects = 0.0, 0.0
        for b in range(len(logits[l])):
            rows = list(zip(logits[l][b], codes[l][b], strict=True))
            columns = list(zip(logits_t[l][b], codes_t[l][b], strict=True))
            pairs = [(q, q) for q in range(len(rows))]
            if matched:
                table = [[cost(*row, *column) for column in columns] for row in rows]
                pairs = list(zip(*linear_sum_assignment(table), strict=True))
            layer += sum(distance(*rows[i], *columns[j]) for i, j in pairs)
            objects += sum(max(map(sigmoid, columns[j][0])) for _, j in pairs)
        loss += layer / max(objects, 1.0)
    return loss


def test_both_matchings_are_the_formula():
    student, teacher = detectors()
    ours, theirs = knowledge_of(student, 3), knowledge_of(teacher, 4)
    losses = attached("D3ETR", student, teacher)(ours, theirs, None)
    known = theirs.class_logits, theirs.box_codes
    matched = naive((ours.class_logits, ours.box_codes), known, matched=True)
    assert losses["d3etr_matched"].item() == pytest.approx(matched, rel=1e-5)
    group = student.decode(ours, teacher.object_queries, theirs.decoder_reference_points[0])
    fixed = naive((group.class_logits, group.box_codes), known, matched=False)
    assert losses["d3etr_fixed"].item() == pytest.approx(fixed, rel=1e-5)


def test_only_the_most_confident_of_the_teachers_queries_are_matched():
    student, teacher = detectors()
    ours, theirs = knowledge_of(student, 3), knowledge_of(teacher, 4)
    best = theirs.class_logits.amax(-1).topk(4, dim=-1).indices
    chosen = tuple(
        torch.stack(
            [
                torch.stack([values[l, b, best[l, b]] for b in range(values.shape[1])])
                for l in range(values.shape[0])
            ]
        )
        for values in (theirs.class_logits, theirs.box_codes)
    )
    expected = naive((ours.class_logits, ours.box_codes), chosen, matched=True)
    losses = attached("D3ETR", student, teacher, FIXED=False, QUERIES=4)(ours, theirs, None)
    assert set(losses) == {"d3etr_matched"}
    assert losses["d3etr_matched"].item() == pytest.approx(expected, rel=1e-5)


def test_matching_alone_needs_no_equal_widths_and_fewer_layers_learn_from_the_last():
    student, teacher = detectors(8, "MODEL.BEVFORMER.DECODER_LAYERS", 1)
    ours, theirs = knowledge_of(student, 3), knowledge_of(teacher, 4)
    losses = attached("D3ETR", student, teacher, FIXED=False)(ours, theirs, None)
    last = theirs.class_logits[-1:], theirs.box_codes[-1:]
    expected = naive((ours.class_logits, ours.box_codes), last, matched=True)
    assert losses["d3etr_matched"].item() == pytest.approx(expected, rel=1e-5)


def test_a_bfloat16_birds_eye_view_is_finite():
    student, teacher = detectors()
    ours, theirs = knowledge_of(student, 3), knowledge_of(teacher, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = total(attached("D3ETR", student, teacher)(ours, theirs, None))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and ours.bev_embed.grad.isfinite().all()


def test_different_classes_or_widths_or_no_matching_are_errors():
    with pytest.raises(ValueError, match=r"D3ETR\.FIXED: .* student's have 8 channels and the teacher's 16"):
        attached("D3ETR", *detectors(8))
    with pytest.raises(ValueError, match=r"D3ETR\.MATCHED: off, and FIXED is off"):
        attached("D3ETR", *detectors(), MATCHED=False, FIXED=False)
    with pytest.raises(ValueError, match=r"D3ETR\.FOCAL_GAMMA: 0\.5; expected 1 at least"):
        attached("D3ETR", *detectors(), FOCAL_GAMMA=0.5)
    student, teacher = detectors()
    student.num_classes = 3
    with pytest.raises(ValueError, match=r"the student predicts 3 classes, the teacher 10"):
        attached("D3ETR", student, teacher)
