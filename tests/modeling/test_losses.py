import pytest
import torch

from bevkd2.modeling import losses as losses_module
from bevkd2.modeling.bev.criterion import SetCriterion, SetWeights
from bevkd2.modeling.losses import average_over_ranks


def make_criterion(**options) -> SetCriterion:
    weights = {"classes": 2.0, "boxes": 0.25, "focal_alpha": 0.25, "focal_gamma": 2.0}
    return SetCriterion(SetWeights(**weights | options), code_weights=[1.0] * 8 + [0.2] * 2)


def test_losses_by_hand():
    logits, boxes = torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 2, 10)
    boxes[0, 0, 1] = 50.0
    code = torch.full((1, 10), 0.5)
    losses = make_criterion()(logits, boxes, [torch.tensor([0])], [code])
    # p = 1/2 twice, one of them positive: ln 2 / 4 * (.25 + .75)
    assert float(losses["loss_cls"]) == pytest.approx(2 * 0.693147 / 4, abs=1e-6)
    assert float(losses["loss_box"]) == pytest.approx(0.25 * 0.5 * (8 + 2 * 0.2), abs=1e-6)


def velocity_loss(predicted: float, true: float, **options) -> torch.Tensor:
    """The box loss of one query whose code is right but for vx; weights 1, one object."""
    criterion = SetCriterion(SetWeights(2.0, 1.0, 0.25, 2.0), [1.0] * 10, **options)
    boxes = torch.zeros(1, 1, 1, 10)
    boxes[..., 8] = predicted
    boxes.requires_grad_()
    code = torch.zeros(1, 10)
    code[0, 8] = true
    loss = criterion(torch.zeros(1, 1, 1, 1), boxes, [torch.tensor([0])], [code])["loss_box"]
    (gradient,) = torch.autograd.grad(loss, boxes)
    return torch.stack([loss.detach(), gradient[0, 0, 0, 8]])


def test_velocity_loss_is_quadratic_below_beta():
    assert velocity_loss(0.1, 0.0).tolist() == pytest.approx([0.1, 1.0])
    assert velocity_loss(0.1, 0.0, velocity_beta=0.5).tolist() == pytest.approx([0.01, 0.2])
    assert velocity_loss(3.0, 0.0, velocity_beta=0.5).tolist() == pytest.approx([2.75, 1.0])


def test_where_a_third_moves_a_beta_draws_the_prediction_off_zero():
    """Of three objects one moves: L1's best guess for all is 0, that of smooth L1 is not."""

    def slope(**options) -> float:
        return float(sum(velocity_loss(0.05, true, **options)[1] for true in (0.0, 0.0, 4.0)))

    assert slope() == pytest.approx(1.0)
    assert slope(velocity_beta=0.5) == pytest.approx(-0.8)


def test_moving_objects_weigh_more():
    assert velocity_loss(0.0, 3.0, moving_weight=2.0).tolist() == pytest.approx([6.0, -2.0])
    assert velocity_loss(1.0, 0.0, moving_weight=2.0).tolist() == pytest.approx([1.0, 1.0])
    both = velocity_loss(0.0, 3.0, moving_weight=2.0, velocity_beta=1.0)
    assert both.tolist() == pytest.approx([5.0, -2.0])


def test_losses_are_divided_by_the_number_of_objects():
    logits, boxes = torch.zeros(1, 2, 4, 3), torch.zeros(1, 2, 4, 10)
    labels = [torch.tensor([2, 0, 1]), torch.tensor([1])]
    codes = [torch.full((3, 10), 0.5), torch.full((1, 10), 0.5)]
    losses = make_criterion()(logits, boxes, labels, codes)
    assert float(losses["loss_box"]) == pytest.approx(0.25 * 0.5 * (8 + 2 * 0.2), abs=1e-6)  # 4 equal of 4
    focal = 0.693147 / 4 * (4 * 0.25 + 20 * 0.75)  # 4 of 24 numbers are positive
    assert float(losses["loss_cls"]) == pytest.approx(2 * focal / 4, abs=1e-5)


def test_an_object_raises_the_logit_of_its_own_class_and_query():
    logits = torch.zeros(1, 1, 3, 4, requires_grad=True)
    boxes = torch.zeros(1, 1, 3, 10)
    codes = torch.tensor([5.0, 9.0])[:, None].expand(2, 10)
    boxes[0, 0, 2], boxes[0, 0, 0] = 5.0, 9.0  # query 2 is the first object, query 0 the second
    make_criterion()(logits, boxes, [torch.tensor([3, 1])], [codes])["loss_cls"].backward()
    assert (logits.grad[0, 0] < 0).nonzero().tolist() == [[0, 1], [2, 3]]


def test_names_and_layers():
    torch.manual_seed(0)
    logits, boxes = torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4, 10)
    labels, codes = [torch.tensor([1]), torch.tensor([2, 3])], [torch.randn(1, 10), torch.randn(2, 10)]
    losses = make_criterion()(logits, boxes, labels, codes)
    assert list(losses) == [
        "loss_cls_0",
        "loss_box_0",
        "loss_cls_1",
        "loss_box_1",
        "loss_cls",
        "loss_box",
    ]
    last = make_criterion()(logits[2:], boxes[2:], labels, codes)
    torch.testing.assert_close(losses["loss_cls"], last["loss_cls"])
    torch.testing.assert_close(losses["loss_box"], last["loss_box"])


def test_normaliser_is_the_mean_over_ranks_and_at_least_one(monkeypatch: pytest.MonkeyPatch):
    cpu = torch.device("cpu")
    assert float(average_over_ranks(0, cpu)) == 1
    monkeypatch.setattr(losses_module.comm, "get_world_size", lambda: 4)
    monkeypatch.setattr(losses_module.dist, "all_reduce", lambda total: total.add_(7))
    assert float(average_over_ranks(5, cpu)) == 3


def test_nan_predictions_give_nan_losses():
    logits = torch.full((1, 1, 3, 4), float("nan"))
    losses = make_criterion()(logits, torch.zeros(1, 1, 3, 10), [torch.tensor([0])], [torch.zeros(1, 10)])
    assert torch.isnan(losses["loss_cls"])


def test_half_precision_predictions_give_float32_losses():
    logits, boxes = torch.randn(1, 1, 3, 4).bfloat16(), torch.randn(1, 1, 3, 10).bfloat16()
    losses = make_criterion()(logits, boxes, [torch.tensor([0])], [torch.zeros(1, 10)])
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
