"""Deformable attention over visible (camera, query) pairs."""

import re
from typing import Any

import pytest
import torch

from bevkd2.ops import ms_deform_attn_fused, ms_deform_attn_ragged
from tests.ops.deform_attn_tester import Case, DeformAttnTester, Inputs, run
from tests.ops.references import ms_deform_attn_ragged_reference
from tests.ops.test_ms_deform_attn import make_inputs

HEIGHTS = 2


class TestMSDeformAttnRagged(DeformAttnTester):
    op = ms_deform_attn_ragged
    reference = ms_deform_attn_ragged_reference
    raw = "ms_deform_attn_ragged"
    locations = "sampling_offsets"
    gradcheck_queries = 3  # with 0, 1 and 2 rows

    def make(self, case: Case, dtype: torch.dtype, seed: int = 0) -> Inputs:
        """Returns inputs whose queries have 0 to 3 rows each, of random entries of value."""
        plain = make_inputs(case, dtype, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        counts = torch.tensor([0, 1, 2, 3, 1, 0]).repeat(case.queries)[: case.queries]
        if case.batch == 0:
            counts = torch.zeros_like(counts)
        rows = int(counts.sum())
        shape = (case.queries, case.heads, len(case.levels), case.points)
        offsets = torch.randn(*shape, 2, generator=generator, dtype=dtype) * 2
        return {
            "value": plain["value"],
            "spatial_shapes": plain["spatial_shapes"],
            "reference_points": torch.rand(rows, HEIGHTS, 2, generator=generator, dtype=dtype),
            "sampling_offsets": offsets,
            "attention_logits": 2 * torch.randn(shape, generator=generator, dtype=dtype),
            "row_splits": torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
            "row_value": torch.randint(0, max(1, case.batch), (rows,), generator=generator),
            "return_weights": True,
        }

    def place(self, case: Case, x: float, y: float) -> Inputs:
        inputs = self.make(case, torch.float64)
        ((height, width),) = case.levels
        inputs["reference_points"] = torch.full_like(inputs["reference_points"], 0.5)
        offset = torch.tensor([x + 0.5 - 0.5 * width, y + 0.5 - 0.5 * height], dtype=torch.float64)
        inputs["sampling_offsets"] = offset.expand_as(inputs["sampling_offsets"])
        return inputs

    def raw_arguments(self, inputs: Inputs) -> tuple:
        shapes = [n for shape in inputs["spatial_shapes"] for n in shape]
        names = ("reference_points", "sampling_offsets", "attention_logits", "row_splits", "row_value")
        return inputs["value"], shapes, *(inputs[name] for name in names), inputs["return_weights"]

    def raw_backward_arguments(self, inputs: Inputs) -> tuple:
        out, weights = ms_deform_attn_ragged(**inputs)
        raw = self.raw_arguments(inputs)[:-1]
        return torch.ones_like(out), torch.ones_like(weights), *raw, True, True, False, True, False


def make(**change: Any) -> Inputs:
    return {**TestMSDeformAttnRagged().make(Case(), torch.float32), **change}


def test_queries_without_rows_give_zero_and_their_weights() -> None:
    inputs = make()
    logits = inputs["attention_logits"].requires_grad_()
    out, weights = ms_deform_attn_ragged(**inputs)
    assert not out[0].any()
    assert not out[5].any()
    assert out[1].any()
    torch.testing.assert_close(weights.sum((-2, -1)), torch.ones(6, 2))
    weights[0].square().sum().backward()
    assert logits.grad[0].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_points_of_non_finite_references_are_outside(bad: float) -> None:
    """A point behind a camera may project to NaN or infinity."""
    inputs = make()
    inputs["reference_points"][1::2, 0, 0] = bad
    far = {**inputs, "reference_points": inputs["reference_points"].nan_to_num(-1e4, -1e4, -1e4)}
    actual, expected = run(ms_deform_attn_ragged, inputs), run(ms_deform_attn_ragged, far)
    assert not actual["reference_points"][1::2, 0].any()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_one_row_per_query_equals_the_fused_op() -> None:
    batch, queries = 3, 4
    case = Case(batch=batch, queries=batch * queries)
    inputs = {**TestMSDeformAttnRagged().make(case, torch.float32), "return_weights": False}
    inputs["reference_points"] = torch.rand(batch * queries, HEIGHTS, 2)
    inputs["row_splits"] = torch.arange(batch * queries + 1)
    inputs["row_value"] = torch.arange(batch).repeat_interleave(queries)
    out, weights = ms_deform_attn_ragged(**inputs)
    fused, _ = ms_deform_attn_fused(
        inputs["value"],
        inputs["spatial_shapes"],
        *(
            inputs[name].unflatten(0, (batch, queries))
            for name in ("reference_points", "sampling_offsets", "attention_logits")
        ),
        reference_mode="pillar",
    )
    assert torch.equal(out, fused.flatten(0, 1))
    assert weights is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"row_splits": torch.tensor([0, 1, 2, 3, 4, 5, 6])},
            "row_splits must ascend from 0 to the number of rows",
        ),
        ({"row_splits": torch.tensor([0, 0, 3, 1, 6, 7, 7])}, "row_splits must ascend"),
        ({"row_splits": torch.tensor([-9, 0, 1, 3, 6, 7, 7])}, "row_splits must ascend"),
        ({"row_value": torch.full((7,), 2)}, "row_value must lie in [0, 2)"),
        ({"row_value": torch.full((7,), -1)}, "row_value must lie in [0, 2)"),
    ],
)
@pytest.mark.parametrize("backward", [False, True])
def test_bad_rows_are_refused(change: dict[str, Any], message: str, backward: bool) -> None:
    inputs = make(**change)
    with pytest.raises(RuntimeError, match=re.escape(message)):
        if backward:
            torch.ops.bevkd2.ms_deform_attn_ragged_backward(
                torch.zeros(6, 16),
                None,
                *TestMSDeformAttnRagged().raw_arguments(inputs)[:-1],
                True,
                True,
                True,
                True,
                False,
            )
        else:
            ms_deform_attn_ragged(**inputs)


def test_the_raw_op_does_not_read_beyond_its_references() -> None:
    arguments = list(TestMSDeformAttnRagged().raw_arguments(make()))
    arguments[2] = torch.zeros(6, HEIGHTS, 2)  # for 7 rows
    with pytest.raises(RuntimeError, match="reference_points do not fit"):
        torch.ops.bevkd2.ms_deform_attn_ragged(*arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_splits": torch.zeros(3, dtype=torch.int64)}, "row_splits is (3,); expected (M + 1,) = (7,)"),
        ({"row_value": torch.zeros(3, dtype=torch.int64)}, "row_value is (3,); expected (R,) = (7,)"),
        ({"row_value": torch.zeros(7, dtype=torch.int32)}, "row_value is torch.int32 on cpu; expected int64"),
        ({"reference_points": torch.zeros(7, 2, 4)}, "reference_points is (7, 2, 4); expected (R, Z, 2)"),
        ({"attention_logits": torch.zeros(6, 2, 3, 2)}, "sampling_offsets is (6, 2, 2, 2, 2); expected"),
    ],
)
def test_errors_name_what_was_found(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ms_deform_attn_ragged(**make(**change))
