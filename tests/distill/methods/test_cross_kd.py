"""CrossKD against its formula, level by level and location by location."""

import math

import pytest
import torch

from bevkd2.distill import DISTILL_REGISTRY
from tests.distill.methods.harness import build_detector, make_batch, method_node

DETECTORS = ("PGD", "SMOKE")


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def case(detector: str, student_width: int = 16, **settings):
    """A method on two detectors, what the two know of two images, and the targets."""
    student, teacher = build_detector(detector, student_width, 1), build_detector(detector, 16, 2)
    for model in (student, teacher):
        for branch in (model.head.class_branch,):
            torch.nn.init.normal_(branch.out.weight)
            torch.nn.init.zeros_(branch.out.bias)
    teacher.requires_grad_(False).eval()
    torch.manual_seed(3)
    method = DISTILL_REGISTRY.get("CrossKD")(
        method_node("CrossKD", **settings), student.feature_shapes(), teacher.feature_shapes()
    )
    method.attach(student, teacher)
    batch = make_batch(detector, 1, 2)
    inputs = student.preprocess(batch)
    ours = student.extract(inputs, method.requires)
    with torch.no_grad():
        theirs = teacher.extract_only(teacher.preprocess(batch), method.requires)
    return method, student, teacher, ours, theirs, student.targets(batch, inputs)


def aligned(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Channel after channel with the teacher's mean and deviation."""
    channels = []
    for channel in range(theirs.shape[1]):
        a, b = ours[:, channel], theirs[:, channel]
        channels.append((a - a.mean()) / (a.std() + 1e-6) * b.std() + b.mean())
    return torch.stack(channels, dim=1)


@pytest.mark.parametrize("detector", DETECTORS)
def test_it_is_the_formula_on_the_teachers_head(detector):
    method, _, teacher, ours, theirs, targets = case(detector)
    losses = method(ours, theirs, targets)
    crossed = [
        [aligned(level[0], level_t[0]) for level, level_t in zip(tower, tower_t, strict=True)]
        for tower, tower_t in (
            (ours.towers.classes, theirs.towers.classes),
            (ours.towers.boxes, theirs.towers.boxes),
        )
    ]
    # By hand: the ReLU, the towers' other convolutions, the branches.
    head, logits = teacher.head, []
    for level in crossed[0]:
        features = level.relu()
        if detector == "PGD":
            features = head.class_branch.convs(head.class_tower[1](features))
        logits.append(head.class_branch.out(features).flatten(2).transpose(1, 2))
    cross = torch.cat(logits, dim=1)
    known = teacher.extract(teacher.preprocess(make_batch(detector, 1, 2)))
    count = max((targets.assignment() >= 0).sum().item(), 1)
    cls = box = 0.0
    codes = [teacher.continue_head(*features, 1).boxes for features in (crossed, theirs.towers.after(1))]
    for b in range(2):
        for q in range(cross.shape[1]):
            best = 0.0
            for z, t in zip(cross[b, q].tolist(), known.logits[b, q].tolist(), strict=True):
                p, r = sigmoid(z), sigmoid(t)
                cls += abs(p - r) * -(r * math.log(p) + (1 - r) * math.log(1 - p)) / count
                best = max(best, r)
            pairs = list(zip(codes[0][b, q].tolist(), codes[1][b, q].tolist(), strict=True))
            for x, y in pairs:
                d = abs(x - y)
                box += best * (d - 0.5 if d >= 1 else d * d / 2) / len(pairs) / count
    assert losses["cross_kd_cls"].item() == pytest.approx(0.4 * cls, rel=1e-4)
    assert losses["cross_kd_box"].item() == pytest.approx(0.75 * box, rel=1e-4)


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_head_continued_on_its_own_features_predicts_what_it_predicted(detector):
    _, student, _, ours, _, _ = case(detector)
    continued = student.continue_head(*ours.towers.after(1), 1)
    assert torch.equal(continued.logits, ours.logits)
    plain = student.extract(student.preprocess(make_batch(detector, 1, 2)))
    assert plain.towers is None and torch.equal(plain.logits, ours.logits)


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_teacher_runs_its_towers_and_no_branches(detector):
    _, _, _, _, theirs, _ = case(detector)
    assert theirs.towers is not None and theirs.logits is None and theirs.outputs is None


@pytest.mark.parametrize("detector", DETECTORS)
def test_the_gradient_flows_through_the_teachers_head_to_the_students_towers_and_the_adapter(detector):
    method, student, teacher, ours, theirs, targets = case(detector, student_width=8)
    torch.stack(list(method(ours, theirs, targets).values())).sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(adapter.weight.grad.any() for adapter in method.adapters)
    first = student.head.class_tower if detector == "PGD" else student.head.class_branch.convs
    assert first[0].conv.weight.grad.any()
    # Its later layers are not asked.
    assert student.head.class_branch.out.weight.grad is None


def test_without_objects_and_in_bfloat16_it_is_finite():
    method, _, _, ours, theirs, targets = case("PGD", student_width=8)
    targets.assigned = torch.full_like(targets.assigned, -1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = torch.stack(list(method(ours, theirs, targets).values())).sum()
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(adapter.weight.grad.isfinite().all() for adapter in method.adapters)


def test_what_does_not_fit_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"CROSS_KD\.LAYER: 3; .* expected 1 to 2"):
        case("PGD", LAYER=3)
    with pytest.raises(ValueError, match=r"CROSS_KD\.BETA: 0\.5; expected 1 at least"):
        case("PGD", BETA=0.5)
    with pytest.raises(ValueError, match=r"CROSS_KD\.ADAPTER: none, but .* 8 channels .* 16 in the teacher"):
        case("PGD", student_width=8, ADAPTER="none")
    student, teacher = build_detector("SMOKE", 16, 1), build_detector("PGD", 16, 2)
    method = DISTILL_REGISTRY.get("CrossKD")(
        method_node("CrossKD"), student.feature_shapes(), teacher.feature_shapes()
    )
    with pytest.raises(ValueError, match=r"student is a SMOKE and the teacher a PGD, whose heads differ"):
        method.attach(student, teacher)
