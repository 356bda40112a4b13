import pytest
import torch

from bevkd2.modeling.mono.smoke.head import SmokeOutputs
from bevkd2.modeling.mono.smoke.losses import SmokeLossWeights, disentangled_boxes, smoke_losses
from bevkd2.modeling.mono.smoke.targets import heatmap_targets, objects_of
from bevkd2.structures import CameraBoxes3D
from tests.modeling.mono.scenes import FAR, LARGE, NEAR, annotations
from tests.modeling.mono.smoke.test_decode import CODER, encode
from tests.modeling.mono.smoke.test_targets import SHAPE

BOXES = ("loss_orientation", "loss_size", "loss_location")


def outputs_of(batch: int) -> SmokeOutputs:
    torch.manual_seed(0)
    logits = torch.randn(batch, 3, *SHAPE).requires_grad_()
    return SmokeOutputs(logits, (torch.rand(batch, 8, *SHAPE) - 0.4).requires_grad_())


def losses_of(outputs: SmokeOutputs, targets: object, **weights: float) -> dict[str, torch.Tensor]:
    objects = objects_of(targets, CODER.stride)
    heatmap = heatmap_targets(objects, len(targets.boxes), 3, SHAPE, CODER.stride, 0.7)
    return smoke_losses(outputs, objects, heatmap, targets.cam2img, CODER, SmokeLossWeights(**weights))


def test_perfect_boxes_have_zero_loss():
    targets = annotations([[NEAR, FAR]], columns=7)
    for boxes, labels in zip(targets.boxes, targets.labels, strict=True):
        factors = torch.tensor([[1.1, 1.1, 0.9]])  # sizes that a code can say
        boxes.tensor[:, 3:6] = torch.tensor(CODER.size_priors)[labels][:, [0, 2, 1]] * factors
    outputs = outputs_of(1)
    codes, cells = encode(targets.boxes[0], targets.labels[0], targets.cam2img[0])
    with torch.no_grad():
        outputs.codes[0][:, cells[:, 1], cells[:, 0]] = codes.T
    losses = losses_of(outputs, targets, box=1.0)
    for name in BOXES:
        assert losses[name] < 1e-2, name


def test_every_part_of_a_box_code_gets_a_gradient():
    outputs = outputs_of(1)
    losses = losses_of(outputs, annotations([[NEAR, FAR]], columns=7))
    sum(losses.values()).backward()
    taught = outputs.codes.grad[0].abs().amax(dim=(1, 2))
    assert (taught > 0).all()
    assert (outputs.codes.grad[0].abs().amax(dim=0) > 0).sum() == 2
    assert outputs.logits.grad.abs().min() > 0


def test_affine_augmented_images_train_the_heat_map_only():
    targets = annotations([[NEAR], [LARGE, FAR]], columns=7)
    targets.affine_augmented[1] = True
    outputs = outputs_of(2)
    sum(losses_of(outputs, targets).values()).backward()
    assert outputs.codes.grad[0].abs().sum() > 0
    assert not outputs.codes.grad[1].any()
    assert outputs.logits.grad[1].abs().sum() > 0


@pytest.mark.parametrize("images", [[[], []], [[NEAR], []]])
def test_images_without_objects(images: list):
    outputs = outputs_of(2)
    losses = losses_of(outputs, annotations(images, columns=7))
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert outputs.codes.grad is not None
    assert not outputs.codes.grad[1].any()
    assert losses["loss_heatmap"] > 0


def test_box_losses_are_sums_and_follow_their_weight():
    outputs = outputs_of(2)
    images = [[NEAR, FAR], [LARGE]]
    both = losses_of(outputs, annotations(images, columns=7))
    for name in BOXES:
        parts = [
            losses_of(
                SmokeOutputs(outputs.logits[i : i + 1], outputs.codes[i : i + 1]),
                annotations([images[i]], columns=7),
                box=1.0,
            )[name]
            for i in range(2)
        ]
        torch.testing.assert_close(both[name], sum(parts) / 300)


def test_disentangled_boxes_differ_from_the_truth_in_one_part():
    truth = CameraBoxes3D(torch.tensor([NEAR[:7]]))
    predicted = CameraBoxes3D(torch.tensor([LARGE[:7]]))
    mixed = disentangled_boxes(predicted, truth)
    columns = {"orientation": [6], "size": [3, 4, 5], "location": [0, 1, 2]}
    for name, own in columns.items():
        ours = mixed[name].to_bottom()
        expected = truth.to_bottom().clone()
        expected[:, own] = predicted.to_bottom()[:, own]
        torch.testing.assert_close(ours, expected)
