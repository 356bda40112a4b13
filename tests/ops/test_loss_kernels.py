"""Kernels of the losses (weighted L2 apart) against those that this machine would choose.

The CUDA ones run by the emulation; the plain C++ ones in another process; the CUDA ones on a GPU, if any.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bevkd2.ops import (
    absolute_means,
    bev_response_l2,
    channel_wise_kl,
    normalized_l2,
    pixel_wise_kl,
    prediction_loss,
    weighted_l2_with_means,
)

DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float16),
    (torch.float16, torch.float32),
    (torch.float64, torch.float32),
]
dtypes = pytest.mark.parametrize("dtypes", DTYPES, ids=str)


def assert_same(actual: Any, expected: Any, exact: bool) -> None:
    """Tensors and lists of them, relative to the largest number of each."""
    if isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_same(a, e, exact)
        return
    assert actual.dtype == expected.dtype
    assert actual.stride() == expected.stride()
    scale = expected.abs().nan_to_num().max().item() if expected.numel() else 1.0
    relative = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(expected.dtype, 1e-12 if exact else 5e-6)
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=0, atol=relative * scale, equal_nan=True
    )


def both(emulated: Any, name: str, arguments: tuple) -> Any:
    """Runs one op on the emulated device and on the CPU; uninitialised outputs are NaN."""
    expected = getattr(torch.ops.bevkd2, name)(*arguments)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty gives with NaN
    try:
        actual = getattr(emulated, name)(*arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    wide = torch.float64 in {a.dtype for a in _tensors(arguments)}
    assert_same(actual, expected, wide)
    return expected


def _tensors(arguments: Any) -> list[Tensor]:
    if isinstance(arguments, (list, tuple)):
        return [tensor for argument in arguments for tensor in _tensors(argument)]
    return [arguments] if isinstance(arguments, Tensor) else []


def wide(dtypes: tuple[torch.dtype, torch.dtype]) -> torch.dtype:
    return torch.float64 if torch.float64 in dtypes else torch.float32


def maps(shape: tuple[int, ...], dtypes: tuple[torch.dtype, torch.dtype], turned: bool) -> list[Tensor]:
    """Two (B, R, K), whose last or, turned, middle dimension is adjacent."""
    generator = torch.Generator().manual_seed(0)
    batch, rows, entries = shape
    stored = (batch, entries, rows) if turned else shape
    pair = [(3 * torch.randn(stored, generator=generator)).to(dtype) for dtype in dtypes]
    return [t.transpose(1, 2) for t in pair] if turned else pair


@dtypes
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
# in eights and not; warps and blocks a row, several blocks and tiles; one entry; nothing
@pytest.mark.parametrize(
    "shape", [(2, 24, 40), (1, 9, 21), (2, 130, 33), (1, 3, 1104), (1, 7, 1), (2, 0, 4), (2, 3, 0)]
)
def test_softmax_kl(
    emulated: Any,
    dtypes: tuple[torch.dtype, torch.dtype],
    turned: bool,
    weighted: bool,
    shape: tuple[int, int, int],
) -> None:
    student, teacher = maps(shape, dtypes, turned)
    weights = torch.zeros(0, dtype=wide(dtypes))
    totals = None
    if weighted:
        weights = torch.rand(shape[:2], dtype=wide(dtypes))
        weights[:, 1::3] = 0
        student[:, 1::3] = float("nan")
        totals = weights.sum().view(1)
    call = ([student], [teacher], [weights], totals, 0.7, 2.0)
    both(emulated, "softmax_kl", (*call, True))
    both(emulated, "softmax_kl", (*call, False))
    both(emulated, "softmax_kl_backward", (torch.full((1,), -3.0, dtype=wide(dtypes)), *call))


def test_softmax_kl_of_more_levels_than_a_launch_takes(emulated: Any) -> None:
    levels = [maps((1, 3 + i, 16 - i), DTYPES[0], i % 2 == 0) for i in range(10)]
    student, teacher = [level[0] for level in levels], [level[1] for level in levels]
    call = (student, teacher, [torch.zeros(0)] * 10, torch.arange(10.0), 1.0, 1.0)
    both(emulated, "softmax_kl", (*call, True))
    both(emulated, "softmax_kl_backward", (torch.randn(10), *call))


def test_softmax_kl_of_far_features(emulated: Any) -> None:
    for turned in (False, True):
        student, teacher = maps((1, 16, 40), DTYPES[0], turned)
        both(
            emulated, "softmax_kl",
            ([1e4 * student.sign()], [-1e4 * teacher.sign()], [torch.zeros(0)], None, 1.0, 0.5, True),
        )  # fmt: skip


@dtypes
@pytest.mark.parametrize("turned", [False, True])
# in eights and not; more pixels than a block of threads takes; one pixel (of three samples, since the
# gradient of two entries cancels but for epsilon); no channel
@pytest.mark.parametrize("shape", [(2, 5, 40), (3, 4, 21), (1, 2, 4200), (3, 1, 1), (2, 0, 4)])
def test_normalized_l2(
    emulated: Any, dtypes: tuple[torch.dtype, torch.dtype], turned: bool, shape: tuple[int, int, int]
) -> None:
    student, teacher = maps(shape, dtypes, turned)
    call = ([student], [teacher], 0.7, 1e-3)
    both(emulated, "normalized_l2", (*call, True))
    both(emulated, "normalized_l2", (*call, False))
    both(emulated, "normalized_l2_backward", (torch.full((1,), -3.0, dtype=wide(dtypes)), *call))


@pytest.mark.parametrize("pixels", [4096, 4097])  # in eights and not
def test_normalized_l2_of_constant_channels(emulated: Any, pixels: int) -> None:
    student, teacher = maps((2, 3, pixels), DTYPES[0], False)
    student[:, 0], teacher[:, 1] = 100.1, -0.3
    both(emulated, "normalized_l2", ([student], [teacher], 1.0, 1e-6, True))


def test_normalized_l2_of_more_levels_than_a_launch_takes(emulated: Any) -> None:
    levels = [maps((2, 3 + i, 17 - i), DTYPES[0], False) for i in range(10)]
    call = ([level[0] for level in levels], [level[1] for level in levels], 1.0, 1e-6)
    both(emulated, "normalized_l2", (*call, True))
    both(emulated, "normalized_l2_backward", (torch.randn(10), *call))


@dtypes
@pytest.mark.parametrize("turned", [(False, False), (True, True), (False, True)])
@pytest.mark.parametrize(
    ("shape", "reduction"),
    [((2, 72, 40), 2), ((2, 133, 19), 1), ((1, 65, 8), 0), ((1, 1, 1), 2), ((0, 5, 8), 1), ((2, 0, 8), 2)],
)
def test_bev_response(
    emulated: Any,
    dtypes: tuple[torch.dtype, torch.dtype],
    turned: tuple[bool, bool],
    shape: tuple[int, int, int],
    reduction: int,
) -> None:
    student = maps(shape, dtypes, turned[0])[0]
    teacher = maps((*shape[:2], 56), dtypes, turned[1])[1]
    weights = torch.rand(shape[:2], dtype=wide(dtypes))
    weights[:, 1::3] = 0
    student[:, 1::3] = float("nan")
    for mask in (weights, None):
        ours = student.nan_to_num() if mask is None else student
        both(emulated, "bev_response_l2", (ours, teacher, mask, reduction, 0.3, False))
        _, differences, scales = both(
            emulated, "bev_response_l2", (ours, teacher, mask, reduction, 0.3, True)
        )
        upstream = torch.tensor(1.7, dtype=wide(dtypes))
        both(emulated, "bev_response_l2_backward", (upstream, ours, differences, scales))


# In eights and not, several tiles of rows and of columns; one pixel; no sample, no channel, no pixel.
MEANS = [((2, 72, 264), dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)]
MEANS += [(shape, torch.float32) for shape in [(1, 130, 277), (2, 3, 1), (0, 3, 4), (2, 0, 4), (2, 3, 0)]]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("shape", "dtype"), MEANS, ids=str)
def test_absolute_means(emulated: Any, shape: tuple[int, int, int], dtype: torch.dtype, turned: bool) -> None:
    features, gradient = maps(shape, (dtype, dtype), turned)
    features[:, 1::2, ::3] = 0  # where the gradient of the absolute value is 0
    for power in (1, 2):
        pixels, channels = both(emulated, "absolute_means", (features, power))
        for grads in ((pixels, channels), (pixels, None), (None, channels)):
            both(emulated, "absolute_means_backward", (*grads, features, power))
            added = [gradient.clone() for _ in range(2)]
            for ops, target in zip((emulated, torch.ops.bevkd2), added, strict=True):
                ops.add_absolute_means_gradient_(target, *grads, features, power)
            assert_same(*added, dtype == torch.float64)


def test_absolute_means_of_memory_that_is_not_aligned(emulated: Any) -> None:
    features = torch.randn(1 + 2 * 5 * 16)[1:].view(2, 5, 16)
    pixels, channels = both(emulated, "absolute_means", (features, 1))
    both(emulated, "absolute_means_backward", (pixels, channels, features, 1))


# Fewer classes than lanes, as many, more; several blocks; no location, no class. Dtypes change how a number
# is loaded, whatever the shape: all of them at the first shape.
PREDICTIONS = [((2, 37, 10), dtypes) for dtypes in DTYPES]
PREDICTIONS += [(shape, DTYPES[0]) for shape in [(1, 300, 1), (2, 9, 32), (1, 6, 45), (2, 0, 3), (1, 4, 0)]]


@pytest.mark.parametrize("distance", [0, 1, 2, 3])
@pytest.mark.parametrize(("shape", "dtypes"), PREDICTIONS, ids=str)
def test_prediction_loss(
    emulated: Any, distance: int, shape: tuple[int, int, int], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    student, teacher = maps(shape, dtypes, False)
    generator = torch.Generator().manual_seed(1)
    dtype, locations = wide(dtypes), shape[:2]
    objects = torch.rand(locations, generator=generator) < 0.4
    weights, guidance = torch.rand((2, *locations), generator=generator, dtype=dtype)
    weights[:, 2::3] = 0
    guidance[~objects] = float("nan")  # not read
    student[:, 2::3] = float("nan")
    for optional in ((weights, objects, guidance), (None, None, None), (None, objects, None)):
        ours = student if optional[0] is not None else student.nan_to_num()
        call = (ours, teacher, *optional, distance, 1.5, 2.0, 0.7)
        both(emulated, "prediction_loss", (*call, True, True))
        both(emulated, "prediction_loss", (*call, False, False))
        upstream = torch.tensor([0.5, -2.0], dtype=dtype)
        both(emulated, "prediction_loss_backward", (upstream, *call, True, True))


def attended(student: Tensor, teacher: Tensor) -> Tensor:
    """A distance and the squares of both means."""
    found = weighted_l2_with_means(student, teacher, teacher.new_full((len(teacher),), 0.01))
    return found.distance + found.pixels.square().sum() + found.channels.square().sum()


def losses_and_gradients(device: str, dtype: torch.dtype) -> list[Tensor]:
    """Every loss here of the same numbers, with its gradients."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    results: list[Tensor] = []

    def add(loss: Callable[[Tensor], Tensor], student: Tensor) -> None:
        student = student.to(dtype).requires_grad_()
        value = loss(student)
        results.extend((value.detach(), *torch.autograd.grad(3 * value, student)))

    student, teacher = normal(2, 24, 12, 20), normal(2, 24, 12, 20)
    for layout in (torch.contiguous_format, torch.channels_last):
        ours, theirs = student.to(memory_format=layout), teacher.to(memory_format=layout)
        add(lambda s, theirs=theirs: channel_wise_kl(s, theirs, temperature=2.0), ours)
        add(lambda s, theirs=theirs: pixel_wise_kl(s, theirs, (theirs[:, 0] > 0)), ours)
        add(lambda s, theirs=theirs: normalized_l2(s, theirs), ours)
        add(lambda s, theirs=theirs: bev_response_l2(s, theirs, (theirs[:, 0] > 0), reduction="norm"), ours)
        add(lambda s: sum(means.square().sum() for means in absolute_means(s, power=2)), ours)
        add(lambda s, theirs=theirs: attended(s, theirs), ours)
    logits, others, numbers = normal(2, 50, 10), normal(2, 50, 10), normal(3, 2, 50)
    guidance = numbers[0].exp()
    for distance in ("l2", "l2_logits", "kl", "softmax_kl"):
        add(
            lambda s, distance=distance: sum(
                prediction_loss(s, others, numbers[1] > 0.5, guidance, numbers[2] > -1, distance=distance)
            ),
            logits,
        )
    return results


def test_plain_and_vector_kernels_agree(tmp_path: Path) -> None:
    """The plain ones in another process, this machine's in this."""
    root, saved = str(Path(__file__).parents[2]), tmp_path / "plain.pt"
    script = (
        "import sys, torch\n"
        "from tests.ops.test_loss_kernels import losses_on_the_cpu\n"
        "torch.save(losses_on_the_cpu(), sys.argv[1])\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(saved)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": root, "BEVKD2_CPU_CAPABILITY": "default"},
        check=True,
    )
    assert_same(torch.load(saved, weights_only=True), losses_on_the_cpu(), False)


def losses_on_the_cpu() -> list[Tensor]:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    return [tensor for dtype in dtypes for tensor in losses_and_gradients("cpu", dtype)]


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_cuda_matches_the_cpu_and_itself(dtype: torch.dtype) -> None:
    ours = losses_and_gradients("cuda", dtype)
    assert all(torch.equal(a, b) for a, b in zip(ours, losses_and_gradients("cuda", dtype), strict=True))
    assert_same([t.cpu() for t in ours], losses_and_gradients("cpu", dtype), False)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_cuda_never_waits_for_the_device(dtype: torch.dtype) -> None:
    """A graph is captured of forward and backward, and replayed on other numbers."""
    student = torch.randn(2, 16, 8, 24, device="cuda").to(dtype).requires_grad_()
    teacher, logits = torch.randn_like(student), torch.randn(2, 9, 5, device="cuda").to(dtype)
    logits.requires_grad_()
    objects = torch.rand(2, 9, device="cuda") < 0.5
    guidance = torch.rand(2, 9, device="cuda")

    def step() -> list[Tensor]:
        loss = channel_wise_kl([student, student], [teacher, teacher], temperature=2.0).sum()
        loss = loss + pixel_wise_kl(student, teacher, objects.new_ones(2, 8, 24))
        loss = loss + bev_response_l2(student, teacher, reduction="norm")
        loss = loss + normalized_l2([student, student], [teacher, teacher]).sum()
        loss = loss + attended(student, teacher)
        loss = loss + sum(prediction_loss(logits, logits.detach() + 1, objects, guidance, distance="kl"))
        return [loss.detach(), *torch.autograd.grad(loss, [student, logits])]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()  # the first step allocates more
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        student.copy_(torch.randn_like(student))
    graph.replay()
    for actual, expected in zip(captured, step(), strict=True):
        assert torch.equal(actual, expected)
