"""The CUDA kernels of the weighted L2 and of the pixel weights, run by the emulation, against the CPU ops."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bevkd2.ops import BoxMask, Occlusion, Perspective
from bevkd2.ops import pixel_weights as pixel_weights_module
from bevkd2.ops.weighted_l2 import _channel_weights, _dense, _laid_out_like, _pixel_weights
from tests.ops.test_pixel_weights import GRID, KINDS, bev_boxes, image, pixel_boxes
from tests.ops.test_weighted_l2 import DTYPES, TOLERANCE, assert_close, make

SHAPES = {
    "pyramid": [(2, 5, 6, 9), (2, 7, 3, 5), (2, 4, 1, 1)],
    "long rows": [(2, 3, 93, 97)],  # longer than a chunk
    "many rows": [(1, 40, 23, 31)],  # several chunks of whole rows
    "aligned": [(1, 16, 8, 16)],
    "flat": [(3, 11), (3, 40)],
    "levels of two launches": [(1, 2, 1, 3)] * 40,
    "empty": [(2, 0, 3, 3), (2, 3, 2, 2)],
}


@pytest.fixture(autouse=True)
def unwritten_is_nan():
    """What a kernel leaves out shows: new memory is filled with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def raw(arguments: dict[str, Any], norm: bool) -> tuple:
    """Arguments of the raw op."""
    student, wide = (
        arguments["student"],
        torch.float64
        in (
            arguments["student"][0].dtype,
            arguments["teacher"][0].dtype,
        ),
    )
    scale = arguments["scale"].to(torch.float64 if wide else torch.float32)
    ours = [_dense(s.unsqueeze(2) if s.dim() == 2 else s.flatten(2)) for s in student]
    theirs = [_laid_out_like(o, t.reshape(o.shape)) for o, t in zip(ours, arguments["teacher"], strict=True)]
    pixels = _pixel_weights(student, arguments["weights"], scale)
    channels = _channel_weights(student, arguments["channel_weights"], scale)
    return ours, theirs, pixels, channels, scale, norm


def assert_all_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype and a.stride() == e.stride()
        if e.numel():
            assert_close(a, e, tolerance)


@pytest.mark.parametrize("kind", ["none", "pixels", "channels", "both"])
@pytest.mark.parametrize("size", SHAPES)
def test_weighted_l2_matches_the_cpu(emulated: Any, size: str, kind: str) -> None:
    for norm, need_grad in ((False, True), (True, False)):
        arguments = raw(make(SHAPES[size], kind=kind), norm)
        loss, sums, grads = emulated.weighted_l2(*arguments, need_grad)
        expected, expected_sums, expected_grads = torch.ops.bevkd2.weighted_l2(*arguments, need_grad)
        assert_close(loss, expected, 3e-6)
        assert_close(sums, expected_sums, 3e-6)
        assert_all_close(grads, expected_grads, 1e-6)
        assert len(grads) == (len(SHAPES[size]) if need_grad else 0)


@pytest.mark.parametrize("student", DTYPES, ids=str)
@pytest.mark.parametrize("teacher", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_dtypes_and_layouts(emulated: Any, student: torch.dtype, teacher: torch.dtype) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        arguments = make([(2, 11, 9, 13), (2, 8, 4, 4)], student, teacher)
        for name in ("student", "teacher"):
            arguments[name] = [level.to(memory_format=layout) for level in arguments[name]]
        *tensors, _ = raw(arguments, False)
        loss, _, grads = emulated.weighted_l2(*tensors, False, True)
        expected, _, expected_grads = torch.ops.bevkd2.weighted_l2(*tensors, False, True)
        assert_close(loss, expected, 3e-6)
        tolerance = max(TOLERANCE[student], 1e-6)
        assert_all_close(grads, expected_grads, tolerance)
        assert_all_close(emulated.weighted_l2_backward(*tensors), expected_grads, tolerance)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_entries_of_weight_zero_may_be_nan(emulated: Any, layout: torch.memory_format) -> None:
    arguments = make([(2, 13, 7, 11)], kind="pixels")
    expected, _, expected_grads = torch.ops.bevkd2.weighted_l2(*raw(arguments, False), True)
    student = arguments["student"][0].to(memory_format=layout, copy=True)
    student.permute(0, 2, 3, 1)[arguments["weights"][0] == 0] = float("nan")
    arguments["student"] = [student]
    loss, _, grads = emulated.weighted_l2(*raw(arguments, False), True)
    assert_close(loss, expected, 1e-6)
    assert_close(grads[0].contiguous(), expected_grads[0], 1e-6)


def test_memory_that_is_not_aligned(emulated: Any) -> None:
    arguments = make([(1, 9, 5, 7)])
    for name in ("student", "teacher"):
        level = arguments[name][0]
        arguments[name] = [torch.cat([torch.zeros(1), level.flatten()])[1:].view(level.shape)]
    loss, _, grads = emulated.weighted_l2(*raw(arguments, False), True)
    expected, _, expected_grads = torch.ops.bevkd2.weighted_l2(*raw(arguments, False), True)
    assert_close(loss, expected, 1e-6)
    assert_all_close(grads, expected_grads, 1e-6)


def drawn(monkeypatch: pytest.MonkeyPatch, op: Any, arguments: dict[str, Any]) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.bevkd2, "draw_weights", op)
        return pixel_weights_module.draw_weights(**arguments)


@pytest.mark.parametrize(("kind", "normalize"), KINDS)
def test_draw_weights_matches_the_cpu(
    emulated: Any, monkeypatch: pytest.MonkeyPatch, kind: Any, normalize: bool
) -> None:
    boxes, splits = pixel_boxes()
    many = bev_boxes(batch=(130, 0, 3))
    cases = [
        {**GRID, "boxes": [BoxMask(*many, kind=kind, normalize=normalize)]},
        image(
            perspective=Perspective(),
            occlusion=Occlusion(boxes, splits, torch.linspace(1, 30, len(boxes)), 20.0),
            boxes=[BoxMask(boxes, splits, kind, normalize), BoxMask(*pixel_boxes(1), "background", True)],
        ),
    ]
    for case in cases:
        expected = pixel_weights_module.draw_weights(**case)
        actual = drawn(monkeypatch, emulated.draw_weights, case)
        torch.testing.assert_close(actual.maps, expected.maps, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(actual.sums, expected.sums, rtol=1e-5, atol=1e-6)
        assert torch.equal(actual.cells, expected.cells)


@pytest.mark.parametrize("splits", [[0, 1, 3], [0, 3, 2], [-1, 1, 2]])
def test_splits_that_do_not_fit_are_an_error(
    emulated: Any, monkeypatch: pytest.MonkeyPatch, splits: list[int]
) -> None:
    mask = BoxMask(torch.zeros(2, 4), torch.tensor(splits))
    arguments = {"level_shapes": [(4, 4)], "strides": [8], "boxes": [mask]}
    with pytest.raises(RuntimeError, match="splits must ascend"):
        drawn(monkeypatch, emulated.draw_weights, arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_saved_gradients_are_scaled_in_place(emulated: Any, dtype: torch.dtype) -> None:
    shapes = [(2, 3, 4000), (1, 1, 5), (0, 3, 3), (2, 8, 16)]
    factors = torch.tensor([0.25, 1.0, 2.0, -3.0], dtype=torch.float64)
    for repeat in (1, 20):  # 80 levels are two launches
        saved = [torch.randn(shape).to(dtype) for shape in shapes * repeat]
        all_factors = factors.repeat(repeat)
        expected = [s * f for s, f in zip(saved, all_factors, strict=True)]
        emulated.scale_gradients_(saved, all_factors)
        assert all(torch.equal(s, e) for s, e in zip(saved, expected, strict=True))
