import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bevkd2.modeling.mono.smoke.decode import SmokeCoder, detect
from bevkd2.modeling.mono.smoke.head import SmokeOutputs
from bevkd2.structures import CameraBoxes3D, project_points
from tests.modeling.mono.scenes import camera

PRIORS = ((0.9, 1.7, 0.7), (1.8, 1.7, 0.6), (3.9, 1.6, 1.5))
CODER = SmokeCoder(depth_prior=(28.0, 16.0), size_priors=PRIORS, stride=4)


def encode(boxes: CameraBoxes3D, labels: Tensor, cam2img: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and cells of boxes, from the definitions."""
    uv, depth = project_points(boxes.center, cam2img)
    cells = (uv / CODER.stride).floor()
    local = boxes.alpha() + math.pi / 2
    factors = (boxes.size[:, [0, 2, 1]] / torch.tensor(PRIORS)[labels]).log()
    codes = [
        (depth[:, None] - 28) / 16,
        uv / CODER.stride - cells,
        factors,
        local.sin()[:, None],
        local.cos()[:, None],
    ]
    return torch.cat(codes, dim=1), cells.long()


@settings(max_examples=50, deadline=None)
@given(
    x=st.floats(-8, 8),
    y=st.floats(-2, 2),
    z=st.floats(5, 60),
    heading=st.floats(-3.1, 3.1),
    label=st.integers(0, 2),
)
def test_decoding_undoes_encoding(x: float, y: float, z: float, heading: float, label: int):
    truth = CameraBoxes3D(torch.tensor([[x, y, z, *(s * 1.1 for s in PRIORS[label]), heading]]))
    truth.tensor[:, 4:6] = truth.tensor[:, [5, 4]]
    labels = torch.tensor([label])
    codes, cells = encode(truth, labels, camera())
    decoded = CODER.decode(codes, cells, labels, camera()[None])
    torch.testing.assert_close(decoded.tensor[:, :6], truth.tensor[:, :6], atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(decoded.corners(), truth.corners(), atol=5e-3, rtol=1e-3)


def test_a_shifted_and_scaled_image_gives_the_same_box():
    """The calibration carries the affine."""
    affine = torch.eye(4)
    affine[:2, :3] = torch.tensor([[1.3, 0.0, -20.0], [0.0, 1.3, 7.0]])
    truth = CameraBoxes3D(torch.tensor([[1.0, 0.5, 12.0, 4.0, 1.6, 1.5, 0.7]]))
    for cam2img in (camera(), affine @ camera()):
        codes, cells = encode(truth, torch.tensor([2]), cam2img)
        decoded = CODER.decode(codes, cells, torch.tensor([2]), cam2img[None])
        torch.testing.assert_close(decoded.tensor, truth.tensor, atol=1e-4, rtol=1e-4)


def test_heading_may_take_the_azimuth_of_another_centre():
    codes, cells = torch.tensor([[0.0, 0.5, 0.5, 0.0, 0.0, 0.0, 1.0, 0.0]]), torch.tensor([[3, 4]])
    center = torch.tensor([[10.0, 0.0, 10.0]])
    decoded = CODER.decode(codes, cells, torch.tensor([0]), camera()[None], heading_centers=center)
    torch.testing.assert_close(decoded.rotation_y, torch.tensor([math.pi / 4]))


def maps(batch: int = 2) -> SmokeOutputs:
    torch.manual_seed(0)
    codes = torch.rand(batch, 8, 16, 24) - 0.5
    return SmokeOutputs(torch.randn(batch, 3, 16, 24) - 4, codes)


def found(outputs: SmokeOutputs, sizes: list[list[float]], **settings: float) -> list[dict]:
    options = {"max_detections": 20, "score_threshold": 0.4} | settings
    cam2img = camera().expand(len(sizes), 4, 4)
    return detect(outputs, CODER, cam2img=cam2img, image_sizes=torch.tensor(sizes), **options)


def test_a_neighbour_of_a_peak_is_no_detection_and_each_class_has_its_own():
    outputs = maps(1)
    outputs.logits[0, 2, 5, 6], outputs.logits[0, 2, 5, 7], outputs.logits[0, 1, 5, 7] = 3.0, 2.0, 1.0
    (result,) = found(outputs, [[64.0, 96.0]])
    assert result["labels"].tolist() == [2, 1]
    torch.testing.assert_close(result["scores"], torch.tensor([3.0, 1.0]).sigmoid())
    uv, _ = project_points(result["boxes"].center, camera())
    assert (uv / 4 - outputs.codes[0, 1:3, 5, [6, 7]].T).round().tolist() == [[6, 5], [7, 5]]


def test_no_detection_in_the_padding():
    outputs = maps(1)
    outputs.logits[0, 0, 3, 20] = 5.0
    assert len(found(outputs, [[64.0, 96.0]])[0]["scores"]) == 1
    assert len(found(outputs, [[64.0, 80.0]])[0]["scores"]) == 0
    assert len(found(outputs, [[12.0, 96.0]])[0]["scores"]) == 0


def test_limits():
    few = found(maps(1), [[64.0, 96.0]], score_threshold=0.0, max_detections=7)[0]
    assert len(few["boxes"]) == 7
    assert few["scores"].diff().max() <= 0
    with_all = found(maps(1), [[64.0, 96.0]], score_threshold=0.0, max_detections=10**6)[0]
    assert with_all["scores"].min() > 0


@pytest.mark.parametrize("row", [0, 1])
def test_batch_of_two_equals_two_batches_of_one(row: int):
    outputs = maps(2)
    both = found(outputs, [[64.0, 96.0], [60.0, 80.0]], score_threshold=0.01)[row]
    size = [[[64.0, 96.0]], [[60.0, 80.0]]][row]
    one = SmokeOutputs(outputs.logits[row : row + 1], outputs.codes[row : row + 1])
    (alone,) = found(one, size, score_threshold=0.01)
    assert torch.equal(both["labels"], alone["labels"])
    torch.testing.assert_close(both["boxes"].tensor, alone["boxes"].tensor)


def test_scores_that_are_no_numbers_are_an_error_and_not_no_detection():
    outputs = maps(1)
    outputs.logits[0, 1, 5, 6] = float("nan")
    with pytest.raises(ValueError, match="scores contain NaN: its weights or its training have diverged"):
        found(outputs, [[64.0, 96.0]])
