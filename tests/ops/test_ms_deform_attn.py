"""Deformable attention, drop-in form."""

import re
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from bevkd2.ops import ms_deform_attn
from bevkd2.ops.arguments import level_starts
from tests.ops.deform_attn_tester import Case, DeformAttnTester, Inputs, assert_close, run
from tests.ops.references import ms_deform_attn_reference


def make_inputs(case: Case, dtype: torch.dtype, seed: int = 0) -> Inputs:
    """Returns random inputs of the drop-in form; see ``DeformAttnForm.make``."""
    generator = torch.Generator().manual_seed(seed)
    pixels = sum(h * w for h, w in case.levels)
    shape = (case.batch, case.queries, case.heads, len(case.levels), case.points)
    sizes = torch.tensor([[w, h] for h, w in case.levels], dtype=dtype).view(-1, 1, 2)
    pixel = torch.rand(*shape, 2, generator=generator, dtype=dtype) * (sizes + 2) - 1.5
    near_grid_line = (pixel - pixel.round()).abs() < 1e-2
    pixel = pixel + near_grid_line * 0.05
    return {
        "value": torch.randn(case.batch, pixels, case.heads, case.width, generator=generator, dtype=dtype),
        "spatial_shapes": list(case.levels),
        "level_start_index": None,
        "sampling_locations": (pixel + 0.5) / sizes,
        "attention_weights": torch.rand(shape, generator=generator, dtype=dtype),
    }


class TestMSDeformAttn(DeformAttnTester):
    op = ms_deform_attn
    reference = ms_deform_attn_reference
    raw = "ms_deform_attn"
    locations = "sampling_locations"

    def make(self, case: Case, dtype: torch.dtype, seed: int = 0) -> Inputs:
        return make_inputs(case, dtype, seed)

    def place(self, case: Case, x: float, y: float) -> Inputs:
        inputs = self.make(case, torch.float64)
        sizes = torch.tensor([[w, h] for h, w in case.levels])[:, None]
        pixel = torch.tensor([x, y], dtype=torch.float64).expand_as(inputs["sampling_locations"])
        inputs["sampling_locations"] = (pixel + 0.5) / sizes
        return inputs

    def raw_arguments(self, inputs: Inputs) -> tuple:
        shapes = [n for shape in inputs["spatial_shapes"] for n in shape]
        tensors = inputs["sampling_locations"], inputs["attention_weights"]
        return inputs["value"], shapes, level_starts(shapes), *tensors

    def raw_backward_arguments(self, inputs: Inputs) -> tuple:
        out = ms_deform_attn(**inputs)
        return torch.ones_like(out), *self.raw_arguments(inputs), True, False, True, False


def test_reference_agrees_with_grid_sample() -> None:
    case = Case(levels=((5, 7),), points=3)
    inputs = make_inputs(case, torch.float64)
    maps = inputs["value"].permute(0, 2, 3, 1).reshape(case.batch * case.heads, case.width, 5, 7)
    grid = 2 * inputs["sampling_locations"][:, :, :, 0].transpose(1, 2).flatten(0, 1) - 1
    sampled = F.grid_sample(maps, grid, align_corners=False)  # (B * H, D, Q, P)
    weights = inputs["attention_weights"][:, :, :, 0].transpose(1, 2).flatten(0, 1)[:, None]
    out = (sampled * weights).sum(-1).unflatten(0, (case.batch, case.heads)).permute(0, 3, 1, 2).flatten(2)
    torch.testing.assert_close(ms_deform_attn_reference(**inputs), out)
    torch.testing.assert_close(ms_deform_attn(**inputs), out)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_shapes_may_be_tensors_and_im2col_step_is_ignored(dtype: torch.dtype) -> None:
    """Callers of the signature of 2020 pass both; im2col_step need not divide the batch."""
    inputs = make_inputs(Case(batch=3), torch.float32)
    shapes, starts = torch.tensor(inputs["spatial_shapes"], dtype=dtype), torch.tensor([0, 35], dtype=dtype)
    locations, weights = inputs["sampling_locations"], inputs["attention_weights"]
    out = ms_deform_attn(inputs["value"], shapes, starts, locations, weights, 2)
    assert torch.equal(out, ms_deform_attn(**inputs))


def test_level_starts_may_be_a_list() -> None:
    inputs = make_inputs(Case(), torch.float32)
    assert torch.equal(ms_deform_attn(**{**inputs, "level_start_index": [0, 35]}), ms_deform_attn(**inputs))


def test_levels_may_overlap() -> None:
    inputs = make_inputs(Case(levels=((5, 7), (3, 2))), torch.float64)
    inputs["level_start_index"] = [3, 0]
    assert_close(run(ms_deform_attn, inputs), run(ms_deform_attn_reference, inputs), 1e-11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"value": torch.zeros(2, 41, 16)},
            "value is (2, 41, 16); expected (batch, pixels, heads, head width)",
        ),
        ({"value": torch.zeros(2, 41, 2, 8, dtype=torch.int64)}, "value is torch.int64; expected float64"),
        ({"spatial_shapes": [(5, 7), (0, 2)]}, "spatial_shapes of level 1 is (0, 2)"),
        ({"spatial_shapes": torch.zeros(2, 3, dtype=torch.int64)}, "spatial_shapes is (2, 3) torch.int64"),
        ({"spatial_shapes": [(5, 7), (3, 3)]}, "level 1 takes pixels 35 to 44"),
        ({"level_start_index": [0]}, "level_start_index has 1 levels, spatial_shapes 2"),
        (
            {"level_start_index": torch.zeros(2)},
            "level_start_index is (2,) torch.float32 on cpu; expected an integer",
        ),
        (
            {"level_start_index": torch.zeros(2, 1).long()},
            "level_start_index is (2, 1) torch.int64 on cpu; expected",
        ),
        ({"attention_weights": torch.zeros(2, 6, 3, 2, 2)}, "with value's 2 heads"),
        (
            {"sampling_locations": torch.zeros(2, 6, 2, 2, 2)},
            "sampling_locations is (2, 6, 2, 2, 2); expected",
        ),
        (
            {"sampling_locations": torch.zeros(2, 6, 2, 2, 2, 2).double()},
            "torch.float64 beside torch.float32",
        ),
        ({"value": torch.zeros(1, 41, 2, 8)}, "value's batch of 1"),
        ({"value": torch.zeros(2, 41, 2, 8, device="meta")}, "sampling_locations is on cpu, value on meta"),
    ],
)
def test_errors_name_what_was_found(change: dict[str, Any], message: str) -> None:
    inputs = {**make_inputs(Case(), torch.float32), **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        ms_deform_attn(**inputs)
