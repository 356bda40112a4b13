"""CUDA kernels of deformable attention, run by the CPU emulation, against the CPU ops."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.deform_attn_tester import SIZES, Case, DeformAttnTester, Inputs
from tests.ops.test_ms_deform_attn import TestMSDeformAttn as Plain
from tests.ops.test_ms_deform_attn_fused import TestMSDeformAttnFused as Fused
from tests.ops.test_ms_deform_attn_ragged import TestMSDeformAttnRagged as Ragged

FORMS = {"plain": Plain, "fused": Fused, "ragged": Ragged}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
EXTREMES = {
    "more packs than lanes": Case(width=264, heads=1, queries=2),
    "more channels than lanes": Case(width=35, heads=2, queries=3),
    "seventy levels": Case(levels=((2, 3),) * 70, points=1, queries=2),
    "many points": Case(levels=((4, 4), (3, 3)), points=41, queries=2),
    "more heads than groups": Case(heads=37, width=16, queries=2, points=1),
    "many queries": Case(queries=70, heads=3, width=4),
}


def call(op: Any, arguments: tuple) -> tuple[Tensor, ...]:
    """Returns the op's outputs; elements that it does not write are NaN."""
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        result = op(*arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    return result if isinstance(result, tuple) else (result,)


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    """Asserts that errors are small relative to the largest number of each tensor."""
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape, i
        assert a.dtype == e.dtype, i
        scale = max(1.0, e.abs().max().item()) if e.numel() else 1.0
        torch.testing.assert_close(a.double(), e.double(), rtol=0, atol=tolerance * scale)


def backward_arguments(
    tester: DeformAttnTester, inputs: Inputs, deterministic: bool = False, needs: tuple[bool, ...] = ()
) -> tuple:
    """Returns the raw backward op's arguments with random gradients; ``needs`` limits the outputs."""
    arguments = list(tester.raw_backward_arguments(inputs))
    flags = 3 if tester.raw == "ms_deform_attn" else 4
    arguments[-1 - flags :] = [*(needs or (True,) * flags), deterministic]
    generator = torch.Generator().manual_seed(3)
    for i in range(1 if tester.raw == "ms_deform_attn" else 2):
        if isinstance(arguments[i], Tensor):
            noise = torch.randn(arguments[i].shape, generator=generator, dtype=torch.float64)
            arguments[i] = noise.to(arguments[i])
    return tuple(arguments)


def check(emulated: Any, tester: DeformAttnTester, inputs: Inputs, dtype: torch.dtype) -> None:
    """Compares forward and backward of one call, the backward in both modes."""
    inputs = {**inputs, "value": inputs["value"].to(dtype)}
    backward = f"{tester.raw}_backward"
    for name, arguments in (
        (tester.raw, tester.raw_arguments(inputs)),
        (backward, backward_arguments(tester, inputs)),
        (backward, backward_arguments(tester, inputs, True)),
    ):
        expected = call(getattr(torch.ops.bevkd2, name), arguments)
        assert_same(call(getattr(emulated, name), arguments), expected, TOLERANCE[dtype])


def precise(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_matches_the_cpu(emulated: Any, form: str, size: str) -> None:
    tester = FORMS[form]()
    for variant, dtype in itertools.product(tester.variants, TOLERANCE):
        if dtype.itemsize == 2 and size not in ("wide", "odd"):
            continue
        case = dataclasses.replace(SIZES[size], variant=variant, queries=3)
        check(emulated, tester, tester.make(case, precise(dtype)), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", EXTREMES)
def test_extreme_sizes_match_the_cpu(emulated: Any, size: str, dtype: torch.dtype) -> None:
    for tester in (Fused(), Ragged()):
        case = dataclasses.replace(EXTREMES[size], variant="pillar" if isinstance(tester, Fused) else "")
        check(emulated, tester, tester.make(case, torch.float32), dtype)


@pytest.mark.parametrize("seed", range(8))
def test_random_sizes_match_the_cpu(emulated: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    levels = tuple((number(1, 6), number(1, 6)) for _ in range(number(1, 4)))
    sizes = {"batch": number(1, 3), "queries": number(1, 5), "heads": number(1, 5)}
    case = Case(levels, **sizes, width=number(1, 40), points=number(1, 9))
    for form in FORMS.values():
        tester = form()
        case = dataclasses.replace(case, variant=tester.variants[seed % len(tester.variants)])
        check(emulated, tester, tester.make(case, torch.float32, seed), torch.float32)


def test_up_to_six_rows_per_query_match_the_cpu(emulated: Any) -> None:
    counts = torch.tensor([0, 6, 1, 0, 0, 4, 2, 5, 1, 3])
    rows = int(counts.sum())
    inputs = Ragged().make(Case(batch=6, queries=len(counts), heads=4, width=16), torch.float32)
    inputs["row_splits"] = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    inputs["row_value"] = torch.arange(rows) * 5 % 6
    inputs["reference_points"] = torch.rand(rows, 2, 2, generator=torch.Generator().manual_seed(0))
    check(emulated, Ragged(), inputs, torch.float32)


def test_rows_without_a_query_get_no_gradient(emulated: Any) -> None:
    inputs = Ragged().make(Case(queries=2), torch.float32)
    inputs["row_splits"] = torch.tensor([0, 0, 1])
    inputs["row_value"] = torch.zeros(3, dtype=torch.int64)
    inputs["reference_points"] = torch.rand(3, 2, 2)
    raw = Ragged().raw_arguments(inputs)[:-1]
    arguments = (torch.ones(2, 16), None, *raw, True, True, True, True, False)
    references = call(emulated.ms_deform_attn_ragged_backward, arguments)[1]
    assert references[0].any()
    assert not references[1:].any()


@pytest.mark.parametrize("form", FORMS)
def test_every_subset_of_gradients_matches_the_cpu(emulated: Any, form: str) -> None:
    tester = FORMS[form]()
    inputs = tester.make(SIZES["small"], torch.float32)
    op = getattr(emulated, f"{tester.raw}_backward")
    everything = call(op, backward_arguments(tester, inputs))
    for needs in itertools.product((False, True), repeat=len(everything)):
        grads = call(op, backward_arguments(tester, inputs, needs=needs))
        for grad, whole, need in zip(grads, everything, needs, strict=True):
            assert_same((grad,), (whole if need else whole.new_empty(0),), 1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_points_at_borders_and_on_grid_lines_match_the_cpu(emulated: Any, form: str) -> None:
    tester = FORMS[form]()
    case = Case(levels=((5, 7),), queries=2, variant=tester.variants[0])
    for x, y in itertools.product(
        (-1.0, -0.75, -0.5, 0.0, 5.5, 6.0, 6.75, 7.0), (-1.0, -0.25, 4.0, 4.5, 5.0)
    ):
        check(emulated, tester, tester.place(case, x, y), torch.float64)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("form", FORMS)
def test_non_finite_points_match_the_cpu(emulated: Any, form: str, bad: float) -> None:
    tester = FORMS[form]()
    inputs = tester.make(SIZES["wide"], torch.float32)
    inputs[tester.locations][..., 1::2, 0] = bad
    check(emulated, tester, inputs, torch.float32)


@pytest.mark.parametrize("form", FORMS)
def test_points_outside_read_no_value(emulated: Any, form: str) -> None:
    tester = FORMS[form]()
    inputs = tester.make(SIZES["wide"], torch.float32)
    inputs[tester.locations] = inputs[tester.locations] + 1e4
    inputs["value"] = torch.full_like(inputs["value"], float("nan"))
    assert not call(getattr(emulated, tester.raw), tester.raw_arguments(inputs))[0].any()
    op = getattr(emulated, f"{tester.raw}_backward")
    assert not any(g.isnan().any() for g in call(op, backward_arguments(tester, inputs)))


@pytest.mark.parametrize("empty", ["batch", "queries", "heads", "width", "points"])
@pytest.mark.parametrize("form", FORMS)
def test_empty_inputs_match_the_cpu(emulated: Any, form: str, empty: str) -> None:
    tester = FORMS[form]()
    for variant in tester.variants:
        case = dataclasses.replace(SIZES["small"], variant=variant, **{empty: 0})
        check(emulated, tester, tester.make(case, torch.float32), torch.float32)


def test_unaligned_memory_matches_the_cpu(emulated: Any) -> None:
    inputs = Plain().make(SIZES["wide"], torch.float32)
    expected = call(emulated.ms_deform_attn, Plain().raw_arguments(inputs))
    storage = torch.zeros(inputs["value"].numel() + 1)
    storage[1:] = inputs["value"].flatten()
    inputs["value"] = storage[1:].view_as(inputs["value"])
    assert_same(call(emulated.ms_deform_attn, Plain().raw_arguments(inputs)), expected, 1e-6)
    check(emulated, Plain(), inputs, torch.float32)


def ordered(monkeypatch: pytest.MonkeyPatch, op: Any, arguments: tuple, seed: int) -> tuple[Tensor, ...]:
    """Runs an op with blocks and threads in a random order."""
    monkeypatch.setenv("BEVKD2_EMULATION_SEED", str(seed))
    return call(op, arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_only_the_gradient_of_value_depends_on_thread_order(
    emulated: Any, monkeypatch: pytest.MonkeyPatch, form: str, dtype: torch.dtype
) -> None:
    tester = FORMS[form]()
    inputs = tester.make(Case(levels=((3, 4),), queries=60, heads=4, width=16, points=4), torch.float32)
    inputs["value"] = inputs["value"].to(dtype)
    forward = [
        ordered(monkeypatch, getattr(emulated, tester.raw), tester.raw_arguments(inputs), s) for s in (1, 2)
    ]
    assert all(map(torch.equal, *forward))
    op = getattr(emulated, f"{tester.raw}_backward")
    fast = [ordered(monkeypatch, op, backward_arguments(tester, inputs), s) for s in (1, 2, 3)]
    for other in fast[1:]:
        assert all(map(torch.equal, other[1:], fast[0][1:]))
    if dtype == torch.float32:
        assert not torch.equal(fast[1][0], fast[0][0])  # or the orders would prove nothing
    fixed = [ordered(monkeypatch, op, backward_arguments(tester, inputs, True), s) for s in (1, 2, 3)]
    for other in fixed[1:]:
        assert all(map(torch.equal, other, fixed[0]))
    assert_same(fixed[0], fast[0], TOLERANCE[dtype])


@pytest.mark.parametrize("size", [1e-30, 1e-4, 1e4, 1e30])
@pytest.mark.parametrize("form", FORMS)
def test_fixed_point_holds_gradients_of_any_magnitude(emulated: Any, form: str, size: float) -> None:
    tester = FORMS[form]()
    inputs = tester.make(Case(levels=((3, 4),), queries=40, width=4), torch.float32)
    grad_out, *others = backward_arguments(tester, inputs, True)
    value = call(getattr(emulated, f"{tester.raw}_backward"), (grad_out * size, *others))[0]
    doubled = [t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for t in others]
    op = getattr(torch.ops.bevkd2, f"{tester.raw}_backward")
    expected = call(op, ((grad_out * size).double(), *doubled))[0]
    torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["gradient", "logits"])
def test_fixed_point_gives_nan_if_a_gradient_is_not_finite(emulated: Any, where: str, bad: float) -> None:
    inputs = Fused().make(dataclasses.replace(SIZES["small"], variant="levels"), torch.float32)
    if where == "logits":
        inputs["attention_logits"][0, 0, 0, 0, 0] = bad
        inputs["sampling_offsets"][0, 0, 0] = 0
    arguments = backward_arguments(Fused(), inputs, True)
    if where == "gradient":
        arguments[0][0, 0, 0] = bad
    value = call(emulated.ms_deform_attn_fused_backward, arguments)[0]
    assert value.isnan().all()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_splits": torch.tensor([0, 0, 3, 1, 6, 7, 7])}, "row_splits must ascend"),
        ({"row_splits": torch.tensor([-9, 0, 1, 3, 6, 7, 7])}, "row_splits must ascend"),
        ({"row_splits": torch.tensor([0, 0, 1, 3, 6, 7, 9])}, "row_splits must ascend"),
        ({"row_value": torch.full((7,), 2)}, "row_value out of range"),
        ({"row_value": torch.full((7,), -1)}, "row_value out of range"),
    ],
)
def test_bad_rows_stop_the_kernel(emulated: Any, change: Inputs, message: str, backward: bool) -> None:
    raw = Ragged().raw_arguments({**Ragged().make(Case(), torch.float32), **change})
    with pytest.raises(RuntimeError, match=message):
        if backward:
            emulated.ms_deform_attn_ragged_backward(torch.ones(6, 16), None, *raw[:-1], *[True] * 4, False)
        else:
            emulated.ms_deform_attn_ragged(*raw)


def test_too_many_levels_are_refused(emulated: Any) -> None:
    inputs = Plain().make(Case(levels=((1, 1),) * 257, points=1), torch.float32)
    with pytest.raises(RuntimeError, match="at most 256 levels"):
        emulated.ms_deform_attn(*Plain().raw_arguments(inputs))


def test_addresses_beyond_32_bits_match_the_cpu(emulated: Any) -> None:
    """Value has 4.8 GB, of which only four pixels are touched and so take memory."""
    height, width, channels = 4096, 8192, 72
    value = torch.empty(1, height * width, 1, channels, dtype=torch.bfloat16)
    last = height * width - 1
    assert (last - width - 1) * channels * value.itemsize > 2**32
    corners = {last - width - 1: 1.0, last - width: 2.0, last - 1: 3.0, last: 4.0}
    for pixel, number in corners.items():
        value[0, pixel] = number
    shapes, weights = ([height, width], [0]), torch.ones(1, 1, 1, 1, 1)
    pixel = torch.tensor([width - 1.25, height - 1.5])
    locations = ((pixel + 0.5) / torch.tensor([width, height])).view(1, 1, 1, 1, 1, 2)
    out = emulated.ms_deform_attn(value, *shapes, locations, weights)
    assert torch.equal(out, torch.full((1, 1, channels), 2.75).bfloat16())
    grads = (torch.ones_like(out), value, *shapes, locations, weights, False, True, True, False)
    _, by_location, by_weight = emulated.ms_deform_attn_backward(*grads)
    assert by_weight.item() == 2.75 * channels
    torch.testing.assert_close(
        by_location.flatten(), torch.tensor([1.0 * channels * width, 2.0 * channels * height])
    )
