import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from shapely.affinity import rotate
from shapely.geometry import Polygon, box
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bevkd2.ops import batched_rotated_nms, box3d_iou, rotated_intersection, rotated_iou, rotated_nms
from tests.ops.box_inputs import random_boxes

PAIRWISE = [(rotated_intersection, 5), (rotated_iou, 5), (box3d_iou, 7)]
OPS = pytest.mark.parametrize(("op", "columns"), PAIRWISE)
Op = Callable[[Tensor, Tensor], Tensor]


# Whole numbers and quarter turns make edges and corners coincide; the other half of the boxes is anywhere.
whole = st.tuples(
    st.integers(-4, 4), st.integers(-4, 4), st.integers(0, 6), st.integers(0, 6), st.integers(-4, 4)
).map(lambda row: [*map(float, row[:4]), row[4] * math.pi / 2])
anywhere = st.tuples(
    st.floats(-4, 4), st.floats(-4, 4), st.floats(1e-3, 8), st.floats(1e-3, 8), st.floats(-7, 7)
).map(list)
planar_boxes = st.lists(whole | anywhere, min_size=1, max_size=6).map(
    lambda rows: torch.tensor(rows, dtype=torch.float64)
)


def polygon(row: Tensor) -> Polygon:
    x, y, length, width, angle = row.tolist()
    rectangle = box(x - length / 2, y - width / 2, x + length / 2, y + width / 2)
    return rotate(rectangle, angle, origin=(x, y), use_radians=True)


@given(a=planar_boxes, b=planar_boxes)
@settings(max_examples=80, deadline=None)
def test_intersection_and_iou_agree_with_shapely(a: Tensor, b: Tensor) -> None:
    shared, iou = rotated_intersection(a, b), rotated_iou(a, b)
    for i, first in enumerate(map(polygon, a)):
        for j, second in enumerate(map(polygon, b)):
            expected = first.intersection(second).area
            assert float(shared[i, j]) == pytest.approx(expected, rel=1e-9, abs=1e-9)
            united = first.area + second.area - expected
            if united > 1e-3:
                assert float(iou[i, j]) == pytest.approx(expected / united, rel=1e-8, abs=1e-8)


@given(a=planar_boxes, b=planar_boxes)
@settings(max_examples=60, deadline=None)
def test_overlap_is_symmetric_and_bounded(a: Tensor, b: Tensor) -> None:
    shared, iou = rotated_intersection(a, b), rotated_iou(a, b)
    torch.testing.assert_close(shared, rotated_intersection(b, a).T, rtol=1e-9, atol=1e-13)
    areas = torch.minimum(a[:, 2:4].prod(1)[:, None], b[:, 2:4].prod(1)[None])
    assert bool((shared >= 0).all()) and bool((shared <= areas).all())
    assert bool((iou >= 0).all()) and bool((iou <= 1).all())


@given(a=planar_boxes, b=planar_boxes, angle=st.floats(-7, 7), x=st.floats(-100, 100), y=st.floats(-100, 100))
@settings(max_examples=60, deadline=None)
def test_a_rigid_motion_changes_nothing(a: Tensor, b: Tensor, angle: float, x: float, y: float) -> None:
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)

    def move(rows: Tensor) -> Tensor:
        centers = rows[:, :2] @ rotation.T + torch.tensor([x, y], dtype=torch.float64)
        return torch.cat([centers, rows[:, 2:4], rows[:, 4:] + angle], dim=1)

    before, after = rotated_intersection(a, b), rotated_intersection(move(a), move(b))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-11)


@given(
    numbers=hnp.arrays(np.float64, (2, 3), elements=st.floats(-5, 5)),
    sizes=hnp.arrays(np.float64, (2, 3), elements=st.floats(0.1, 6)),
    turns=st.tuples(st.integers(-3, 3), st.integers(-3, 3)),
)
@settings(max_examples=60, deadline=None)
def test_3d_iou_of_axis_parallel_boxes(
    numbers: np.ndarray, sizes: np.ndarray, turns: tuple[int, int]
) -> None:
    yaws = np.array(turns)[:, None] * math.pi
    boxes = torch.from_numpy(np.concatenate([numbers, sizes, yaws], axis=1))
    low, high = numbers - sizes / 2, numbers + sizes / 2
    shared = np.clip(high.min(axis=0) - low.max(axis=0), 0, None).prod()
    expected = shared / (sizes.prod(axis=1).sum() - shared)
    assert float(box3d_iou(boxes[:1], boxes[1:])) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_3d_iou_is_the_planar_one_for_equal_heights() -> None:
    a, b = random_boxes(20, 0, 7), random_boxes(15, 1, 7)
    for boxes in (a, b):
        boxes[:, 2], boxes[:, 5] = 1.0, 2.0
    expected = rotated_iou(a[:, [0, 1, 3, 4, 6]], b[:, [0, 1, 3, 4, 6]])
    torch.testing.assert_close(box3d_iou(a, b), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("origin", [0.0, 1e3])
def test_precision_holds_for_tiny_boxes_and_far_origins(scale: float, origin: float) -> None:
    """A unit square, and one turned by 45 degrees whose centre is on its right edge."""
    a = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[0.5, 0.0, 1.0, 1.0, math.pi / 4]], dtype=torch.float64)
    for rows in (a, b):
        rows[:, :4] *= scale
        rows[:, :2] += origin
    got = float(rotated_intersection(a, b)) / scale**2
    # The left half of the second box without its part beyond |y| = 0.5: its corners are at sqrt(0.5).
    tip = math.sqrt(0.5) - 0.5
    assert got == pytest.approx(0.5 - tip**2, rel=1e-9 + 1e-15 * origin / scale)


@OPS
def test_overlap_with_itself_is_full_and_with_a_flat_box_zero(op: Op, columns: int) -> None:
    boxes = random_boxes(30, 2, columns, extent=1e3)
    sizes = slice(columns // 2, columns // 2 * 2)
    own = op(boxes, boxes).diagonal()
    expected = boxes[:, sizes].prod(1) if op is rotated_intersection else torch.ones(30, dtype=torch.float64)
    torch.testing.assert_close(own, expected, rtol=1e-15 * 4, atol=0)
    flat = boxes.clone()
    flat[:, columns // 2] = 0
    assert float(op(flat, boxes).max()) == 0
    assert float(op(flat, flat).max()) == 0


@OPS
@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_empty_inputs(op: Op, columns: int, n: int, m: int) -> None:
    assert op(torch.zeros(n, columns), torch.zeros(m, columns)).shape == (n, m)


@OPS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_types_are_computed_in_float64(op: Op, columns: int, dtype: torch.dtype) -> None:
    a, b = random_boxes(6, 3, columns).to(dtype), random_boxes(5, 4, columns).to(dtype)
    got = op(a, b)
    assert got.dtype is dtype
    torch.testing.assert_close(got, op(a.double(), b.double()).to(dtype), rtol=0, atol=0)
    assert op(a, b.double()).dtype is torch.float64


@OPS
def test_strided_inputs(op: Op, columns: int) -> None:
    a, b = random_boxes(7, 5, 2 * columns)[:, :columns].abs(), random_boxes(8, 6, columns)
    torch.testing.assert_close(op(a[::2], b), op(a[::2].contiguous(), b), rtol=0, atol=0)


@OPS
def test_overlaps_have_no_gradient(op: Op, columns: int) -> None:
    boxes = random_boxes(3, 0, columns).requires_grad_()
    assert not op(boxes, boxes).requires_grad


@OPS
def test_bad_boxes_are_named(op: Op, columns: int) -> None:
    good = random_boxes(3, 0, columns)
    with pytest.raises(
        ValueError, match=rf"{op.__name__}: a is \(3, {columns - 1}\); expected \(N, {columns}\)"
    ):
        op(good[:, 1:], good)
    with pytest.raises(ValueError, match=r"b is torch.int64; expected a floating point"):
        op(good, good.long())
    with pytest.raises(ValueError, match="b is on meta, a on cpu"):
        op(good, good.to("meta"))
    for column, number in ((0, math.nan), (columns - 1, math.inf), (columns // 2, -0.5)):
        bad = good.clone()
        bad[1, column] = number
        with pytest.raises(
            ValueError, match=r"box 1 of b is \[.*expected finite numbers and no negative size"
        ):
            op(good, bad)


def reference_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, inclusive: bool
) -> list[int]:
    iou = rotated_iou(boxes.double(), boxes.double())
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: (-float(scores[i]), i)):
        rivals = [iou[k, index] for k in kept if labels[k] == labels[index]]
        if not any((r >= threshold) if inclusive else (r > threshold) for r in rivals):
            kept.append(index)
    return kept


@given(
    boxes=st.lists(whole | anywhere, max_size=25),
    data=st.data(),
    threshold=st.sampled_from([0.0, 0.05, 0.25, 0.5, 0.8, 1.0]) | st.floats(0, 1),
    inclusive=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_nms_is_the_greedy_one(
    boxes: list[list[float]], data: st.DataObject, threshold: float, inclusive: bool
) -> None:
    n = len(boxes)
    rows = torch.tensor(boxes, dtype=torch.float64).reshape(n, 5)
    # Few values, so that scores tie.
    scores = torch.tensor(data.draw(st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=n, max_size=n)))
    labels = torch.tensor(data.draw(st.lists(st.integers(-1, 1), min_size=n, max_size=n)), dtype=torch.int64)
    kept = batched_rotated_nms(rows, scores.reshape(n), labels, threshold, inclusive)
    assert kept.tolist() == reference_nms(rows, scores, labels, threshold, inclusive)
    iou = rotated_iou(rows[kept], rows[kept]).fill_diagonal_(0)
    pairs = iou[labels[kept][:, None] == labels[kept][None]]
    assert not bool((pairs > threshold).any())


def test_nms_within_labels_is_nms_of_each_label() -> None:
    boxes, scores = (
        random_boxes(200, 7, extent=15),
        torch.rand(200, generator=torch.Generator().manual_seed(1)),
    )
    labels = torch.arange(200) % 3
    kept = batched_rotated_nms(boxes, scores, labels, 0.1)
    for label in range(3):
        own = (labels == label).nonzero().flatten()
        expected = own[rotated_nms(boxes[own], scores[own], 0.1)]
        assert kept[labels[kept] == label].tolist() == expected.tolist()
    assert bool((scores[kept].diff() <= 0).all())
    assert len(kept) > len(rotated_nms(boxes, scores, 0.1))


def test_nms_at_the_threshold() -> None:
    """Half of the larger box: IoU is exactly 0.5."""
    boxes = torch.tensor([[0.0, 0, 4, 2, 0], [1, 0, 2, 2, 0]])
    scores = torch.tensor([0.9, 0.8])
    assert rotated_nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert rotated_nms(boxes, scores, 0.5, inclusive=True).tolist() == [0]
    assert rotated_nms(boxes.flip(0), scores, 0.5, inclusive=True).tolist() == [0]


def test_nms_of_equal_boxes_keeps_the_first_of_the_best() -> None:
    boxes = torch.tensor([[3.0, 2, 4, 2, 0.3]]).repeat(4, 1)
    assert rotated_nms(boxes, torch.tensor([0.5, 0.7, 0.7, 0.1]), 0.5).tolist() == [1]
    assert rotated_nms(boxes, torch.tensor([0.5, math.inf, -math.inf, 0.1]), 1.0).tolist() == [1, 0, 3, 2]


def test_nms_of_no_boxes() -> None:
    kept = rotated_nms(torch.zeros(0, 5), torch.zeros(0), 0.5)
    assert kept.tolist() == [] and kept.dtype is torch.int64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": torch.rand(2)}, r"scores is \(2,\); expected one for each of the 3 boxes"),
        ({"scores": torch.rand(3, 1)}, r"scores is \(3, 1\)"),
        ({"scores": torch.tensor([0.1, math.nan, 0.2])}, "score 1 is NaN"),
        ({"scores": torch.tensor([1, 2, 3])}, "scores is torch.int64; expected a floating point"),
        ({"scores": torch.rand(3, device="meta")}, "scores is on meta, boxes on cpu"),
        ({"labels": torch.rand(3)}, "labels is torch.float32; expected integers"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, r"labels is \(4,\)"),
        ({"iou_threshold": 1.5}, r"iou_threshold is 1.5; expected a number in \[0, 1\]"),
        ({"iou_threshold": math.nan}, "iou_threshold is nan"),
        ({"boxes": torch.zeros(3, 7)}, r"boxes is \(3, 7\); expected \(N, 5\): x, y, length, width, angle"),
    ],
)
def test_nms_errors_name_the_mismatch(changes: dict, message: str) -> None:
    arguments = {
        "boxes": random_boxes(3, 0),
        "scores": torch.rand(3),
        "labels": torch.zeros(3, dtype=torch.int32),
        "iou_threshold": 0.5,
    }
    with pytest.raises(ValueError, match=message):
        batched_rotated_nms(**{**arguments, **changes})


@pytest.mark.parametrize("name", ["rotated_intersection", "rotated_iou", "box3d_iou"])
def test_pairwise_ops_pass_opcheck(name: str) -> None:
    columns = 7 if name == "box3d_iou" else 5
    raw = getattr(torch.ops.bevkd2, name)
    arguments = random_boxes(3, 0, columns), random_boxes(4, 1, columns)
    torch.library.opcheck(raw.default, arguments)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(rows) for rows in arguments]
        assert raw(*fakes).shape == (3, 4)


def test_nms_passes_opcheck() -> None:
    arguments = random_boxes(6, 0), torch.rand(6).double(), torch.zeros(6, dtype=torch.int64), 0.3, False
    torch.library.opcheck(torch.ops.bevkd2.rotated_nms.default, arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 5), torch.zeros(2, 5).double()), r"must be float64 \(N, 5\)"),
        ((torch.zeros(2, 4).double(), torch.zeros(2, 5).double()), r"must be float64 \(N, 5\)"),
    ],
)
def test_kernels_check_their_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bevkd2.rotated_iou(*arguments)


def test_nms_kernel_refuses_nan_scores() -> None:
    scores = torch.tensor([0.5, math.nan], dtype=torch.float64)
    with pytest.raises(RuntimeError, match="score 1 is NaN"):
        torch.ops.bevkd2.rotated_nms(
            random_boxes(2, 0), scores, torch.zeros(2, dtype=torch.int64), 0.5, False
        )


def test_kernel_survives_boxes_that_are_not_finite() -> None:
    rows = random_boxes(40, 0)
    rows.view(-1)[torch.arange(0, 200, 3)] = math.nan
    rows.view(-1)[torch.arange(1, 200, 7)] = math.inf
    assert torch.ops.bevkd2.rotated_iou(rows, rows).shape == (40, 40)
