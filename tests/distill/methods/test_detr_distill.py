"""DETRDistill against its formula in loops."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from tests.distill.methods.decoders import CELLS, attached, detectors, knowledge_of, targets_of, total

CODE_WEIGHTS = [1.0] * 8 + [0.2] * 2


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def assignment(logits, codes, labels, objects) -> list[tuple[int, int]]:
    """The cheapest pairs of queries and objects."""
    table = []
    for query in range(len(logits)):
        row = []
        for label, code in zip(labels, objects, strict=True):
            p = sigmoid(logits[query][label])
            focal = -math.log(p) * 0.25 * (1 - p) ** 2 + math.log(1 - p) * 0.75 * p**2
            row.append(2 * focal + 0.25 * sum(abs(codes[query][i] - code[i]) for i in range(8)))
        table.append(row)
    return list(zip(*linear_sum_assignment(table), strict=True)) if labels else []


def kl(student: list[float], teacher: list[float]) -> float:
    found = 0.0
    for z, t in zip(student, teacher, strict=True):
        p, r = sigmoid(t), sigmoid(z)
        found += p * math.log(p / r) + (1 - p) * math.log((1 - p) / (1 - r))
    return found


def l1(student: list[float], teacher: list[float]) -> float:
    return sum(w * abs(a - b) for w, a, b in zip(CODE_WEIGHTS, student, teacher, strict=True))


def iou(code: list[float], box: list[float]) -> float:
    """Of boxes without yaw on the ground; ``box`` is x, y, length, width."""
    sides = [(code[0], math.exp(code[3]), box[0], box[2]), (code[1], math.exp(code[2]), box[1], box[3])]
    common = 1.0
    for a, size, b, other in sides:
        common *= max(min(a + size / 2, b + other / 2) - max(a - size / 2, b - other / 2), 0.0)
    return common / (math.exp(code[2]) * math.exp(code[3]) + box[2] * box[3] - common)


@pytest.fixture
def known():
    """Student, teacher, their knowledge, and objects of which the teacher's boxes overlap some."""
    student, teacher = detectors()
    ours, theirs, targets = knowledge_of(student, 3), knowledge_of(teacher, 4), targets_of(3, 0)
    codes = theirs.box_codes.detach().clone()
    codes[..., 6], codes[..., 7] = -1, 0  # no yaw
    codes[..., 2:4] = 1.0
    for query, object_ in ((2, 0), (5, 1), (7, 2)):
        codes[:, 0, query, :2] = targets.codes[0][object_, :2] + 0.5
    theirs.box_codes = codes
    return student, teacher, ours, theirs, targets


def test_logits_are_learned_at_positives_and_the_most_confident_negatives(known):
    student, teacher, ours, theirs, targets = known
    losses = attached("DETRDistill", student, teacher, NEGATIVES=4, PRIOR=False)(ours, theirs, targets)
    expected = 0.0
    for l in range(2):
        sums, counts = [0.0, 0.0], [0, 0]
        for b in range(2):
            logits, codes = ours.class_logits[l, b].tolist(), ours.box_codes[l, b].tolist()
            logits_t, codes_t = theirs.class_logits[l, b].tolist(), theirs.box_codes[l, b].tolist()
            objects = targets.labels[b].tolist(), targets.codes[b].tolist()
            positive = {query for query, _ in assignment(logits_t, codes_t, *objects)}
            others = sorted(set(range(12)) - positive, key=lambda q, scores=logits_t: -max(scores[q]))[:4]
            labels = [row.index(max(row)) for row in logits_t]
            for i, j in assignment(logits, codes, labels, codes_t):
                if j in positive:
                    sums[0] += kl(logits[i], logits_t[j]) + 0.25 * l1(codes[i], codes_t[j])
                    counts[0] += 1
                elif j in others:
                    sums[1] += kl(logits[i], logits_t[j])
                    counts[1] += 1
        expected += sums[0] / counts[0] + sums[1] / counts[1]
    assert losses["detr_distill_logits"].item() == pytest.approx(expected, rel=1e-5)


def test_features_weigh_by_their_similarity_with_confident_queries_that_overlap_objects(known):
    student, teacher, ours, theirs, targets = known
    loss = attached("DETRDistill", student, teacher, TOP_QUERIES=20, PRIOR=False)(ours, theirs, targets)
    cells = CELLS[0] * CELLS[1]
    expected = 0.0
    for l in range(2):
        for b in range(2):
            boxes = targets.grid_boxes()[b].tolist()
            ranked = sorted(
                ((sigmoid(z), q) for q, row in enumerate(theirs.class_logits[l, b].tolist()) for z in row),
                reverse=True,
            )
            states = theirs.decoder_states[l][b].double()
            features = theirs.bev_embed[b].double()
            weights = []
            for cell in range(cells):
                weight = 0.0
                for score, q in ranked[:20]:
                    quality = score
                    if boxes:
                        quality *= max(iou(theirs.box_codes[l, b, q].tolist(), box) for box in boxes)
                    cosine = states[q] @ features[cell] / states[q].norm() / features[cell].norm()
                    weight += quality * cosine.item()
                weights.append(max(weight, 0.01))
            for cell in range(cells):
                square = ((ours.bev_embed[b, cell] - theirs.bev_embed[b, cell]) ** 2).sum().item()
                expected += (weights[cell] / max(weights)) ** 2 * square / (2 * cells * 16)
    assert loss["detr_distill_features"].item() == pytest.approx(expected, rel=1e-4)


def test_the_prior_is_the_detection_loss_of_the_teachers_queries_and_assignment(known):
    student, teacher, ours, theirs, targets = known
    loss = attached("DETRDistill", student, teacher)(ours, theirs, targets)
    group = student.decode(ours, teacher.object_queries, theirs.decoder_reference_points[0])
    expected, objects = 0.0, 3
    for l in range(2):
        for b in range(2):
            logits_t, codes_t = theirs.class_logits[l, b].tolist(), theirs.box_codes[l, b].tolist()
            labels, codes = targets.labels[b].tolist(), targets.codes[b].tolist()
            of_query = dict(assignment(logits_t, codes_t, labels, codes))
            for q in range(12):
                for k, z in enumerate(group.class_logits[l, b, q].tolist()):
                    p = sigmoid(z)
                    if q in of_query and labels[of_query[q]] == k:
                        expected += 2 * 0.25 * (1 - p) ** 2 * -math.log(p) / objects
                    else:
                        expected += 2 * 0.75 * p**2 * -math.log(1 - p) / objects
                if q in of_query:
                    code = group.box_codes[l, b, q].tolist()
                    expected += 0.25 * l1(code, codes[of_query[q]]) / objects
    assert loss["detr_distill_prior"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_objects_and_in_bfloat16_it_is_finite(dtype):
    student, teacher = detectors()
    ours, theirs = knowledge_of(student, 3), knowledge_of(teacher, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = total(attached("DETRDistill", student, teacher)(ours, theirs, targets_of(0, 0)))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and ours.bev_embed.grad.isfinite().all()


def test_settings_that_cannot_be_name_the_key():
    for settings, match in (
        ({"SOURCES": ["fpn"]}, r"DETR_DISTILL\.SOURCES: fpn\.0; expected bev"),
        ({"TOP_QUERIES": 0}, r"DETR_DISTILL\.TOP_QUERIES: 0; expected 1 at least"),
        ({"NEGATIVES": -1}, r"DETR_DISTILL\.NEGATIVES: -1; expected 0"),
        ({"DECODER_LAYER_MAP": [[0, 5]]}, r"DETR_DISTILL\.DECODER_LAYER_MAP: \[0, 5\] does not name"),
    ):
        with pytest.raises(ValueError, match=match):
            attached("DETRDistill", *detectors(), **settings)
    with pytest.raises(
        ValueError, match=r"DETR_DISTILL\.PRIOR: .* student's have 8 channels and the teacher's"
    ):
        attached("DETRDistill", *detectors(8))
