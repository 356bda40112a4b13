"""Deformable attention from reference points, offsets and logits."""

import re
from typing import Any

import pytest
import torch

from bevkd2.ops import ms_deform_attn_fused
from tests.ops.deform_attn_tester import Case, DeformAttnTester, Inputs, run
from tests.ops.references import ms_deform_attn_fused_reference
from tests.ops.test_ms_deform_attn import make_inputs


class TestMSDeformAttnFused(DeformAttnTester):
    op = ms_deform_attn_fused
    reference = ms_deform_attn_fused_reference
    raw = "ms_deform_attn_fused"
    locations = "sampling_offsets"
    variants = ("levels", "shared", "boxes", "pillar", "queues")
    variants_without_levels = ("shared", "pillar")

    def make(self, case: Case, dtype: torch.dtype, seed: int = 0) -> Inputs:
        """Returns inputs whose points lie where those of the drop-in form do."""
        plain = make_inputs(case, dtype, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        levels, points = len(case.levels), case.points
        count, dims = {"shared": (1, 2), "boxes": (levels, 4), "pillar": (4, 2)}.get(
            case.variant, (levels, 2)
        )
        references = torch.rand(case.batch, case.queries, count, dims, generator=generator, dtype=dtype) + 0.1
        sizes = torch.tensor([[w, h] for h, w in case.levels], dtype=dtype).view(-1, 1, 2)
        if case.variant == "pillar":
            used = references[:, :, None, None, torch.arange(points) % count]
        else:
            used = references[:, :, None, :, None]
        scale = used[..., 2:] * 0.5 / max(1, points) if dims == 4 else 1 / sizes
        return {
            "value": plain["value"],
            "spatial_shapes": plain["spatial_shapes"],
            "reference_points": references,
            "sampling_offsets": (plain["sampling_locations"] - used[..., :2]) / scale,
            "attention_logits": 2
            * torch.randn(plain["attention_weights"].shape, generator=generator, dtype=dtype),
            "reference_mode": "pillar" if case.variant == "pillar" else "level",
            "num_queues": max(1, case.batch) if case.variant == "queues" else 1,
            "return_weights": True,
        }

    def place(self, case: Case, x: float, y: float) -> Inputs:
        inputs = self.make(case, torch.float64)
        ((height, width),) = case.levels
        inputs["reference_points"] = torch.full_like(inputs["reference_points"], 0.5)
        centre = torch.tensor([0.5 * width - 0.5, 0.5 * height - 0.5], dtype=torch.float64)
        scale = 1.0
        if case.variant == "boxes":  # a box as large as half the map: offset / P * 0.5 * 0.5 * size
            scale = 4 * case.points / torch.tensor([width, height], dtype=torch.float64)
        offset = (torch.tensor([x, y], dtype=torch.float64) - centre) * scale
        inputs["sampling_offsets"] = offset.expand_as(inputs["sampling_offsets"])
        return inputs

    def raw_arguments(self, inputs: Inputs) -> tuple:
        shapes = [n for shape in inputs["spatial_shapes"] for n in shape]
        tensors = inputs["reference_points"], inputs["sampling_offsets"], inputs["attention_logits"]
        return (
            inputs["value"],
            shapes,
            *tensors,
            inputs["reference_mode"] == "pillar",
            inputs["num_queues"],
            inputs["return_weights"],
        )

    def raw_backward_arguments(self, inputs: Inputs) -> tuple:
        out, weights = ms_deform_attn_fused(**inputs)
        raw = self.raw_arguments(inputs)[:-1]
        return torch.ones_like(out), torch.ones_like(weights), *raw, True, True, False, True, False


def make(**change: Any) -> Inputs:
    return {**TestMSDeformAttnFused().make(Case(), torch.float32), **change}


def test_returned_weights_are_the_softmax_over_levels_and_points() -> None:
    inputs = make()
    out, weights = ms_deform_attn_fused(**inputs)
    expected = inputs["attention_logits"].flatten(-2).softmax(-1).view_as(weights)
    torch.testing.assert_close(weights, expected)
    out_alone, no_weights = ms_deform_attn_fused(**{**inputs, "return_weights": False})
    assert torch.equal(out_alone, out)
    assert no_weights is None


def test_the_output_is_the_mean_over_the_queues_of_a_sample() -> None:
    inputs = TestMSDeformAttnFused().make(Case(batch=6), torch.float32)
    apart, weights_apart = ms_deform_attn_fused(**inputs)
    out, weights = ms_deform_attn_fused(**{**inputs, "num_queues": 3})
    torch.testing.assert_close(out, apart.unflatten(0, (2, 3)).mean(1))
    assert torch.equal(weights, weights_apart)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("variant", TestMSDeformAttnFused.variants)
def test_points_of_non_finite_references_are_outside(variant: str, bad: float) -> None:
    """A point behind a camera may project to NaN or infinity."""
    inputs = TestMSDeformAttnFused().make(Case(variant=variant, points=4), torch.float32)
    inputs["reference_points"][:, 1::2, 0, 0] = bad
    far = {**inputs, "reference_points": inputs["reference_points"].nan_to_num(-1e4, -1e4, -1e4)}
    actual, expected = run(ms_deform_attn_fused, inputs), run(ms_deform_attn_fused, far)
    assert not actual["reference_points"][:, 1::2, 0].any()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.filterwarnings("ignore:.*normalised coordinate")
def test_weights_are_float32_if_all_inputs_have_16_bits() -> None:
    inputs = {k: v.bfloat16() if isinstance(v, torch.Tensor) else v for k, v in make().items()}
    out, weights = ms_deform_attn_fused(**inputs)
    assert (out.dtype, weights.dtype) == (torch.bfloat16, torch.float32)


def test_a_loss_on_the_weights_alone_reaches_the_logits() -> None:
    inputs = make()
    logits = inputs["attention_logits"].requires_grad_()
    value = inputs["value"].requires_grad_()
    _, weights = ms_deform_attn_fused(**inputs)
    weights.square().sum().backward()
    leaf = logits.detach().clone().requires_grad_()
    leaf.flatten(-2).softmax(-1).square().sum().backward()
    torch.testing.assert_close(logits.grad, leaf.grad)
    assert value.grad is None or not value.grad.any()


def test_extreme_logits_give_a_finite_softmax() -> None:
    inputs = make()
    inputs["attention_logits"][..., 0, 0] = 200.0
    inputs["attention_logits"][..., 1, 1] = -float("inf")
    _, weights = ms_deform_attn_fused(**inputs)
    assert torch.equal(weights[..., 0, 0], torch.ones_like(weights[..., 0, 0]))
    assert not weights[..., 1, 1].any()


def test_nan_logits_give_nan_in_their_own_output_only() -> None:
    inputs = make()
    inputs["attention_logits"][0, 0, 0, 0, 0] = float("nan")
    out, weights = ms_deform_attn_fused(**inputs)
    assert weights[0, 0, 0].isnan().all()
    assert out[0, 0, :8].isnan().any()
    assert not out[0, 1:].isnan().any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference_points": torch.zeros(2, 6, 3, 2)}, "expected 1 or 2 references, one per level"),
        ({"reference_points": torch.zeros(2, 6, 2, 3)}, "reference_points is (2, 6, 2, 3)"),
        ({"reference_points": torch.zeros(2, 5, 2, 2)}, "expected (2, 6) + (R, 2 or 4)"),
        ({"reference_mode": "pillar", "reference_points": torch.zeros(2, 6, 2, 4)}, "not boxes"),
        ({"reference_mode": "corner"}, "reference_mode is 'corner'; expected 'level' or 'pillar'"),
        ({"spatial_shapes": [(5, 7), (3, 3)]}, "value has 41 pixels"),
        ({"num_queues": 4}, "num_queues is 4; expected a divisor of value's batch of 2"),
        ({"num_queues": 0}, "num_queues is 0"),
        ({"sampling_offsets": torch.zeros(2, 6, 2, 2, 3, 2)}, "sampling_offsets is (2, 6, 2, 2, 3, 2)"),
        ({"attention_logits": torch.zeros(2, 6, 2, 2, 2).long()}, "attention_logits is torch.int64"),
    ],
)
def test_errors_name_what_was_found(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ms_deform_attn_fused(**make(**change))


@pytest.mark.parametrize(
    ("position", "wrong", "message"),
    [
        (2, torch.zeros(2, 5, 2, 2), "reference_points do not fit"),  # one query too few
        (2, torch.zeros(2, 6, 3, 2), "reference_points do not fit"),  # neither one nor one per level
        (2, torch.zeros(2, 6, 2, 3), "reference_points do not fit"),
        (2, torch.zeros(12, 2, 2), "reference_points do not fit"),
        (0, torch.zeros(1, 41, 2, 8), "different batch sizes"),
        (6, 3, "the batch must be a multiple of the queues, 3"),
        (6, 0, "the batch must be a multiple of the queues, 0"),
        (3, torch.zeros(2, 6, 2, 2, 1, 2), "do not fit"),
    ],
)
def test_the_raw_op_does_not_read_beyond_its_tensors(
    position: int, wrong: torch.Tensor, message: str
) -> None:
    arguments = list(TestMSDeformAttnFused().raw_arguments(make()))
    arguments[position] = wrong
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bevkd2.ms_deform_attn_fused(*arguments)


@pytest.mark.parametrize(
    ("grad_weights", "message"),
    [
        (torch.zeros(2, 6, 2, 2, 1), "does not have the weights' size"),
        (torch.zeros(2, 6, 2, 2, 2).double(), "must be float64 where value is"),
    ],
)
def test_the_raw_backward_op_checks_the_gradients(grad_weights: torch.Tensor, message: str) -> None:
    arguments = TestMSDeformAttnFused().raw_arguments(make())[:-1]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bevkd2.ms_deform_attn_fused_backward(
            torch.zeros(2, 6, 16), grad_weights, *arguments, True, True, True, True, False
        )
