import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bevkd2.modeling.bev.box_coder import (
    DecodeOptions,
    decode_codes,
    decode_detections,
    encode_boxes,
    from_mmdet3d,
    to_mmdet3d,
)
from bevkd2.structures import Boxes3D, wrap_angle

RANGE = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]


def random_boxes(seed: int, count: int = 20) -> Boxes3D:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(count, 9, generator=generator, dtype=torch.float64) * 10
    tensor[:, 3:6] = tensor[:, 3:6].abs() + 0.1
    return Boxes3D(tensor)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_codes_and_published_layout_round_trip(seed: int):
    boxes = random_boxes(seed)
    for back in (
        decode_codes(encode_boxes(boxes)),
        from_mmdet3d(to_mmdet3d(boxes, bottom=True), bottom=True),
        from_mmdet3d(to_mmdet3d(boxes, bottom=False), bottom=False),
    ):
        difference = back.tensor - boxes.tensor
        difference[:, 6] = wrap_angle(difference[:, 6])
        assert difference.abs().max() < 1e-9


def test_published_convention():
    # A car 4 m long, 2 m wide that heads forward (+y): yaw pi/2 here, -pi in the published layout.
    box = Boxes3D(torch.tensor([[1.0, 2.0, 3.0, 4.0, 2.0, 1.5, math.pi / 2, 0.0, 5.0]]))
    published = to_mmdet3d(box, bottom=True)[0]
    expected = torch.tensor([1.0, 2.0, 2.25, 2.0, 4.0, 1.5, -math.pi, 0.0, 5.0])
    torch.testing.assert_close(published, expected)
    code = encode_boxes(box)[0]
    expected = [1.0, 2.0, math.log(2), math.log(4), 3.0, math.log(1.5), 0.0, -1.0, 0.0, 5.0]
    torch.testing.assert_close(code, torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("column", "value"), [(7, float("nan")), (3, 0.0), (0, float("inf"))])
def test_impossible_boxes_are_named(column: int, value: float):
    boxes = random_boxes(0, 3)
    boxes.tensor[1, column] = value
    with pytest.raises(ValueError, match="box 1 is"):
        encode_boxes(boxes)


def test_no_boxes():
    assert encode_boxes(Boxes3D.empty()).shape == (0, 10)


def logits_and_codes() -> tuple[torch.Tensor, torch.Tensor]:
    """Three queries of two classes with scores .9 .1 / .2 .6 / .3 .05, 0, 10 and 70 m to the right."""
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.6], [0.3, 0.05]])
    codes = torch.zeros(3, 10)
    codes[:, 0] = torch.tensor([0.0, 10.0, 70.0])
    return scores.logit(), codes


def decode(**options: float) -> tuple[list[float], list[int], list[float]]:
    settings = {"max_detections": 4, "score_threshold": 0.0, **options}
    found = decode_detections(*logits_and_codes(), DecodeOptions(**settings, post_center_range=RANGE))
    boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
    return [round(float(s), 4) for s in scores], labels.tolist(), boxes.tensor[:, 0].tolist()


def test_best_query_class_pairs_within_the_range():
    assert decode() == ([0.9, 0.6, 0.2], [0, 1, 0], [0.0, 10.0, 10.0])  # .3 is too far to the right
    assert decode(max_detections=1) == ([0.9], [0], [0.0])
    assert len(decode(max_detections=100)[0]) == 4


def test_threshold_relaxes_until_something_passes():
    assert decode(score_threshold=0.5)[0] == [0.9, 0.6]
    # .95 -> .855: the best score passes
    assert decode(score_threshold=0.95)[0] == [0.9]


def test_all_boxes_pass_if_all_scores_are_tiny():
    logits, codes = torch.full((3, 2), -8.0), torch.zeros(3, 10)
    options = DecodeOptions(max_detections=5, score_threshold=0.3, post_center_range=RANGE)
    assert len(decode_detections(logits, codes, options)["scores"]) == 5


def test_scores_that_are_no_numbers_are_an_error_and_not_no_detection():
    logits, codes = logits_and_codes()
    logits[1, 0] = codes[1, 0] = float("nan")
    with pytest.raises(ValueError, match="scores contain NaN: its weights or its training have diverged"):
        decode_detections(logits, codes, DecodeOptions(max_detections=4, post_center_range=RANGE))
