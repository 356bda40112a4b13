"""Every op under odd use: right, or an error that names what is wrong."""

from __future__ import annotations

import copy
import inspect
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bevkd2 import ops
from tests.ops.odd_cases import CASES, NOT_CASES, SHAPES, rand

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
each = pytest.mark.parametrize("name", CASES)
pytestmark = pytest.mark.filterwarnings("ignore:.*normalised coordinate")


def same(actual: list[Tensor], expected: list[Tensor]) -> bool:
    return len(actual) == len(expected) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(actual, expected, strict=True)
    )


def test_the_table_has_every_op() -> None:
    functions = {name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))}
    assert functions == {*CASES, *NOT_CASES}


def expanded(tensor: Tensor) -> Tensor:
    return tensor[:1].expand_as(tensor)


def every_second(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor], -1).flatten(-2)[..., ::2]


def transposed(tensor: Tensor) -> Tensor:
    return tensor.movedim(0, -1).contiguous().movedim(-1, 0)


def shifted(tensor: Tensor) -> Tensor:
    """Begins one element after the start of an allocation."""
    storage = torch.cat([tensor.new_ones(1), tensor.flatten()])
    return storage[1:].view(tensor.shape)


def misaligned(tensor: Tensor) -> Tensor:
    """Begins at an odd address, as a buffer of a file may."""
    data = bytearray(b"?" + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(data, dtype=tensor.dtype, offset=1).view(tensor.shape)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("place", [expanded, every_second, transposed, shifted, misaligned])
def test_any_place_in_memory_gives_the_same_numbers(
    name: str, dtype: torch.dtype, place: Callable[[Tensor], Tensor]
) -> None:
    case = CASES[name]
    placed = {k: place(v) for k, v in case.inputs(dtype).items()}
    dense = {k: v.clone(memory_format=torch.contiguous_format) for k, v in placed.items()}
    for actual, expected in zip(case.run_with_gradients(placed), case.run_with_gradients(dense), strict=True):
        torch.testing.assert_close(actual, expected)  # sums of another layout may have another order


def test_arrays_that_run_backwards_are_refused_by_torch_and_read_by_kittis_score() -> None:
    with pytest.raises(ValueError, match="negative"):
        torch.from_numpy(np.ones(3)[::-1])
    from bevkd2._kitti_eval import Objects, curves

    columns = np.arange(3 * 14, dtype=np.float64).reshape(3, 14)
    splits, ignored = np.array([0, 3]), np.zeros(3, bool)
    forth = Objects(np.zeros(3, int), columns[::-1].copy(), ignored, splits, False)
    back = Objects(np.zeros(6, int)[::-2], columns[::-1], ignored[::-1], splits[::-1][::-1], False)
    scored = Objects(np.zeros(3, int), np.ones((3, 15)), ignored, splits, True)
    arguments = {"type": 0, "neighbour": -1, "dont_care": -2, "metric": 0, "min_overlap": 0.5}
    assert curves(forth, scored, **arguments) == curves(back, scored, **arguments)


EMPTY = [(name, size) for name, case in CASES.items() for size in case.empty]


@pytest.mark.parametrize(("name", "size"), EMPTY)
def test_a_size_of_zero_gives_finite_numbers(name: str, size: str) -> None:
    case = CASES[name]
    inputs = case.inputs(torch.float32)
    for tensor, dim in case.empty[size].items():
        inputs[tensor] = inputs[tensor].narrow(dim, 0, 0)
    results = case.run_with_gradients(inputs)
    assert all(bool(result.isfinite().all()) for result in results if result.is_floating_point())
    grads = results[len(results) - len(case.student) :]
    assert [g.shape for g in grads] == [inputs[k].shape for k in case.student]


@each
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_every_dtype_agrees_with_float64(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    inputs = case.inputs(dtype)
    expected = case.run_with_gradients(
        {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    )
    for actual, oracle in zip(case.run_with_gradients(inputs), expected, strict=True):
        error = (actual.double() - oracle.double()).abs().max().item()
        assert error <= TOLERANCE[dtype] * max(1.0, oracle.double().abs().max().item())


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.student])
def test_gradcheck(name: str) -> None:
    case = CASES[name]
    inputs = case.inputs(torch.float64)

    def call(*students: Tensor) -> tuple[Tensor, ...]:
        results = case.run({**inputs, **dict(zip(case.student, students, strict=True))})
        return tuple(result for result in results if result.requires_grad)

    leaves = tuple(inputs[k].requires_grad_() for k in case.student)
    assert torch.autograd.gradcheck(call, leaves, atol=1e-6, fast_mode=True)


class Recorder(TorchDispatchMode):
    """Records the calls of this package's ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func.namespace == "bevkd2":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@each
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ops_forward_and_backward_pass_opcheck(name: str, dtype: torch.dtype) -> None:
    """The slow parts of opcheck (autograd through AOT) are in the tests of each op."""
    case = CASES[name]
    with Recorder() as recorder:
        case.run_with_gradients(case.inputs(dtype))
    for op, args in recorder.calls:
        torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))


@each
def test_the_meta_device_gives_the_shapes_or_an_error(name: str) -> None:
    case = CASES[name]
    inputs = case.inputs(torch.float32)
    expected = case.run(inputs)
    try:
        actual = case.run({k: v.to("meta") for k, v in inputs.items()})
    except ValueError as error:
        assert name in str(error) and "meta" in str(error)
        return
    assert [(a.shape, a.dtype) for a in actual] == [(e.shape, e.dtype) for e in expected]


@each
def test_autocast_changes_nothing(name: str) -> None:
    case = CASES[name]
    inputs = case.inputs(torch.float32)
    expected = case.run_with_gradients(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(case.run_with_gradients(inputs), expected)


@pytest.mark.parametrize("transform", ["grad", "vmap"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.student])
def test_transforms_of_torch_func_are_right_or_refused(name: str, transform: str) -> None:
    case = CASES[name]
    inputs, student = case.inputs(torch.float64), case.student[0]

    def total(tensor: Tensor) -> Tensor:
        return torch.stack([r.sum() for r in case.run({**inputs, student: tensor})]).sum()

    leaf, batch = inputs[student].clone().requires_grad_(), torch.stack([inputs[student]] * 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that a loop is slow
            if transform == "grad":
                actual, expected = (
                    torch.func.grad(total)(inputs[student]),
                    torch.autograd.grad(total(leaf), leaf)[0],
                )
            else:
                actual, expected = torch.func.vmap(total)(batch), torch.stack([total(t) for t in batch])
    except RuntimeError as error:
        assert re.search(r"autograd\.Function|bevkd2::", str(error))  # torch's words, or the op's name
    else:
        torch.testing.assert_close(actual, expected)


class Layer(nn.Module):
    """An op in a module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.names = name, list(CASES[name].tensors)
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        scaled = [t * self.factor if t.is_floating_point() else t for t in tensors]
        return CASES[self.name].run(dict(zip(self.names, scaled, strict=True)))


@each
def test_in_a_copied_module_on_the_devices_of_data_parallel(name: str) -> None:
    """Without a GPU, DataParallel calls its module."""
    inputs = list(CASES[name].inputs(torch.float32).values())
    layer = Layer(name)
    assert same(nn.DataParallel(copy.deepcopy(layer))(*inputs), layer(*inputs))


UNEXPORTABLE = {  # they read numbers: of boxes to check them, or how many are kept
    "rotated_intersection", "rotated_iou", "box3d_iou", "rotated_nms", "batched_rotated_nms",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(CASES) - UNEXPORTABLE))
def test_exported_programs_compute_the_same(name: str) -> None:
    inputs = tuple(CASES[name].inputs(torch.float32).values())
    program = torch.export.export(Layer(name), inputs)
    assert same(list(program.module()(*inputs)), Layer(name)(*inputs))


def all_results() -> list[list[Tensor]]:
    return [case.run_with_gradients(case.inputs(torch.float32)) for case in CASES.values()]


def test_threads_may_call_at_once() -> None:
    expected = all_results()
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(all_results) for _ in range(4)]
        found = [future.result() for future in futures]
    for results in found:
        assert all(same(a, b) for a, b in zip(results, expected, strict=True))


def test_a_forked_process_computes_the_same() -> None:
    """As the workers of a DataLoader, which compute in one thread after the parent used several."""
    expected = all_results()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a hang ends by SIGALRM
        torch.set_num_threads(1)
        right = all(same(a, b) for a, b in zip(all_results(), expected, strict=True))
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0


# More than 2^31 elements


@pytest.fixture
def sparse(tmp_path: Path) -> Iterator[Callable[..., Tensor]]:
    """A function that returns float16 zeros in a sparse file: addresses without memory behind them."""
    made = []

    def make(*shape: int) -> Tensor:
        made.append(tmp_path / f"{len(made)}.bin")
        size = int(np.prod(shape))
        return torch.from_file(str(made[-1]), shared=True, size=size, dtype=torch.float16).view(shape)

    yield make
    for path in made:
        path.unlink()


def test_attention_reads_beyond_2_to_the_31_elements(sparse: Callable[..., Tensor]) -> None:
    side, heads, width = 4096, 4, 40
    value = sparse(1, side * side, heads, width)  # 2.7e9 elements
    assert value.numel() > 2**31
    value[0, -1] = torch.arange(heads * width).view(heads, width).half()
    last = torch.full((1, 2, heads, 1, 1, 2), 1 - 0.5 / side)  # the centre of the last pixel
    weights = torch.ones(1, 2, heads, 1, 1)
    expected = value[0, -1].flatten().expand(1, 2, -1)
    assert torch.equal(ops.ms_deform_attn(value, [(side, side)], None, last, weights), expected)
    offsets = torch.zeros(1, 2, heads, 1, 1, 2, requires_grad=True)
    out, _ = ops.ms_deform_attn_fused(value, [(side, side)], last[:, :, 0, 0], offsets, weights)
    assert torch.equal(out, expected)
    out.sum().backward()  # of the offsets alone: value's gradient would need memory
    assert offsets.grad.isfinite().all() and offsets.grad.any()
    rows = torch.tensor([0, 1, 2]), torch.tensor([0, 0])
    out, _ = ops.ms_deform_attn_ragged(
        value, [(side, side)], last[0, :, 0, 0], offsets[0].detach(), weights[0], *rows
    )
    assert torch.equal(out, expected[0])


def test_losses_read_beyond_2_to_the_31_elements(sparse: Callable[..., Tensor]) -> None:
    """Channels of weight zero are not read, so that only the last of them is mapped."""
    channels, side = 2048, 1100
    student, zeros = sparse(1, channels, side, side), sparse(1, channels, side, side)
    assert student.numel() > 2**31
    student[0, -1, -1, -1] = 3
    weights = torch.zeros(channels)
    weights[-1] = 1
    loss = ops.weighted_l2([student], [zeros], torch.ones(1, 1), channel_weights=[weights])
    assert loss.item() == 9
    loss = ops.channel_wise_kl(student, zeros, weights)
    logits = student[:, -1:].float()
    torch.testing.assert_close(loss, ops.channel_wise_kl(logits, torch.zeros_like(logits)))


# Integers


def calls_with_an_integer() -> dict[str, Callable[[Any], Any]]:
    """Returns, by the argument's name in errors, calls that pass an integer argument on."""
    attention = CASES["ms_deform_attn"].tensors
    fused = CASES["ms_deform_attn_fused"].tensors
    ragged = CASES["ms_deform_attn_ragged"].tensors
    features, sizes = rand(1, 2, 3, 4), torch.tensor([[8.0, 8.0]])
    perspective = {"amplitude": 0.3, "sigma": (0.7, 0.7), "center": (0.5, 0.5)}
    boxes, depths = [rand(1, 4)], [rand(1)]
    rows = {"row_splits": torch.tensor([0, 1, 1, 3, 4]), "row_value": torch.tensor([0, 1, 0, 1])}

    def shapes(n: Any) -> list:
        return [(3, n), (2, 2)]

    def less(n: Any) -> Any:
        return n if isinstance(n, bool) or getattr(n, "dtype", None) == torch.bool else n - 2

    return {
        "ms_deform_attn: spatial_shapes": lambda n: ops.ms_deform_attn(
            spatial_shapes=shapes(n), level_start_index=None, **attention
        ),
        "ms_deform_attn: level_start_index": lambda n: ops.ms_deform_attn(
            spatial_shapes=[(2, 2), (2, 2)], level_start_index=[0, n], **attention
        ),
        "ms_deform_attn_fused: spatial_shapes": lambda n: ops.ms_deform_attn_fused(
            spatial_shapes=shapes(n), **fused
        ),
        "ms_deform_attn_fused: num_queues": lambda n: ops.ms_deform_attn_fused(
            spatial_shapes=SHAPES, num_queues=less(n), **fused
        ),
        "ms_deform_attn_ragged: spatial_shapes": lambda n: ops.ms_deform_attn_ragged(
            spatial_shapes=shapes(n), **ragged, **rows
        ),
        "absolute_means: power": lambda n: ops.absolute_means(features, power=less(n)),
        "weighted_l2_with_means: power": lambda n: ops.weighted_l2_with_means(
            features, features, torch.ones(1), power=less(n)
        ),
        "draw_weights: level_shapes": lambda n: ops.draw_weights([(2, n)], strides=[8], image_sizes=sizes),
        "draw_weights: strides": lambda n: ops.draw_weights([(2, 2)], strides=[n], image_sizes=sizes),
        "content_mask: level_shape": lambda n: ops.content_mask(sizes, (2, n), 8),
        "content_mask: stride": lambda n: ops.content_mask(sizes, (2, 2), n),
        "perspective_matrix: level_shape": lambda n: ops.perspective_matrix(sizes, (n, 2), 8, **perspective),
        "perspective_matrix: stride": lambda n: ops.perspective_matrix(sizes, (2, 2), n, **perspective),
        "occlusion_factor: level_shape": lambda n: ops.occlusion_factor(boxes, depths, (n, 2), 8, 30.0),
        "occlusion_factor: stride": lambda n: ops.occlusion_factor(boxes, depths, (2, 2), n, 30.0),
    }


@pytest.mark.parametrize("name", calls_with_an_integer())
def test_floats_and_bools_are_refused_where_an_integer_is_expected(name: str) -> None:
    call = calls_with_an_integer()[name]
    for good in (4, np.int32(4), torch.tensor(4)):
        call(good)
    for bad in (4.0, 3.7, np.float32(4), torch.tensor(4.0), np.array(4.5), True, torch.tensor(True)):
        with pytest.raises(ValueError, match=name):
            call(bad)


@pytest.mark.parametrize(
    "bad", [True, np.bool_(True), torch.tensor(True), None, "4", torch.tensor(4, device="meta")]
)
def test_other_things_than_integers_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"spatial_shapes of level 0 is .*; expected an integer"):
        ops.ms_deform_attn(
            torch.zeros(1, 4, 1, 1), [(bad, 4)], None, rand(1, 1, 1, 1, 1, 2), rand(1, 1, 1, 1, 1)
        )
    with pytest.raises(ValueError, match="absolute_means: power is"):
        ops.absolute_means(rand(1, 2, 3), power=bad)


def test_grids_that_kernels_cannot_number_are_refused() -> None:
    sizes = torch.ones(1, 2)
    for shape in ((2**32, 2**32), (2**16, 2**16), (-1, 4), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"level_shapes of level 1 is .*; expected \(rows, columns\)"):
            ops.draw_weights([(1, 1), shape], strides=[8, 16], image_sizes=sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_tensors_of_sizes_must_hold_integers(dtype: torch.dtype) -> None:
    value, where, weight = rand(1, 1, 1, 1), rand(1, 1, 1, 1, 1, 2), rand(1, 1, 1, 1, 1)
    one = torch.ones(1, 2, dtype=dtype)
    with pytest.raises(ValueError, match=rf"spatial_shapes is \(1, 2\) {dtype} on cpu"):
        ops.ms_deform_attn(value, one, None, where, weight)
    with pytest.raises(ValueError, match=rf"level_start_index is \(1,\) {dtype} on cpu"):
        ops.ms_deform_attn(value, [(1, 1)], one[0, :1], where, weight)
    if dtype != torch.float32:
        labels = torch.zeros(1, dtype=dtype)
        with pytest.raises(ValueError, match=f"labels is {dtype}; expected integers"):
            ops.batched_rotated_nms(rand(1, 5), rand(1), labels, 0.5)
