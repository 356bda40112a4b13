"""The same numbers from every thread count, instruction set and device."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bevkd2.ops import batched_rotated_nms, box3d_iou, rotated_intersection, rotated_iou
from tests.ops.box_inputs import random_boxes

PAIRWISE = [("rotated_intersection", 5), ("rotated_iou", 5), ("box3d_iou", 7)]
NAMES = pytest.mark.parametrize(("name", "columns"), PAIRWISE)


def nms_arguments(n: int, seed: int, extent: float, labels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores that tie, labels."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 20, (n,), generator=generator).double()
    return random_boxes(n, seed, extent=extent), scores, torch.randint(0, labels, (n,), generator=generator)


def all_results() -> list[Tensor]:
    """Of all ops, at sizes that threads share and vectors do not divide."""
    results = []
    for name, columns in PAIRWISE:
        for n, m in ((70, 1030), (1, 3)):
            a, b = random_boxes(n, 0, columns), random_boxes(m, 1, columns)
            results.append(getattr(torch.ops.bevkd2, name)(a, b))
    for labels in (1, 4):
        results.append(torch.ops.bevkd2.rotated_nms(*nms_arguments(3001, 0, 100, labels), 0.2, False))
    return results


def fingerprint() -> str:
    return hashlib.sha256(b"".join(result.numpy().tobytes() for result in all_results())).hexdigest()


def test_results_are_bitwise_equal_for_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(fingerprint())
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1


def test_results_are_the_same_bits_for_every_instruction_set() -> None:
    code = "from tests.ops.test_box3d_kernels import fingerprint; print(fingerprint())"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "BEVKD2_CPU_CAPABILITY": "default", "PYTHONPATH": str(root)}
    plain = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=True
    )
    assert plain.stdout.strip() == fingerprint()


@NAMES
def test_pairwise_ops_compile_with_dynamic_sizes(name: str, columns: int) -> None:
    op = getattr(torch.ops.bevkd2, name)
    compiled = torch.compile(lambda a, b: op(a, b) * 2, backend="aot_eager", fullgraph=True, dynamic=True)
    for n, m in ((3, 4), (5, 2)):
        a, b = random_boxes(n, 0, columns), random_boxes(m, 1, columns)
        torch.testing.assert_close(compiled(a, b), op(a, b) * 2, rtol=0, atol=0)


@NAMES
@pytest.mark.parametrize(("n", "m"), [(40, 33), (1, 300), (0, 3), (3, 0)])
def test_emulated_overlaps_are_the_cpus(emulated: Any, name: str, columns: int, n: int, m: int) -> None:
    a, b = random_boxes(n, 0, columns), random_boxes(m, 1, columns)
    b[:1] = a[:1] if n and m else b[:1]  # identical boxes
    torch.use_deterministic_algorithms(True)  # fills what torch.empty gives with NaN
    try:
        got = getattr(emulated, name)(a, b)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(got, getattr(torch.ops.bevkd2, name)(a, b), rtol=1e-12, atol=1e-14)


@given(
    n=st.sampled_from([0, 1, 63, 64, 65, 130]),
    seed=st.integers(0, 99),
    extent=st.sampled_from([2.0, 20.0, 60.0]),
    labels=st.integers(1, 3),
    threshold=st.sampled_from([0.0, 0.1, 0.5]),
    inclusive=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_emulated_suppression_is_the_cpus(
    emulated: Any, n: int, seed: int, extent: float, labels: int, threshold: float, inclusive: bool
) -> None:
    arguments = (*nms_arguments(n, seed, extent, labels), threshold, inclusive)
    assert emulated.rotated_nms(*arguments).tolist() == torch.ops.bevkd2.rotated_nms(*arguments).tolist()


@pytest.mark.parametrize("extent", [8.0, 80.0])
def test_emulated_suppression_over_more_than_one_slice(emulated: Any, extent: float) -> None:
    arguments = (*nms_arguments(1100, 3, extent, 2), 0.2, False)
    assert emulated.rotated_nms(*arguments).tolist() == torch.ops.bevkd2.rotated_nms(*arguments).tolist()


@pytest.mark.parametrize(("box", "score"), [(torch.nan, 0.5), (-1.0, 0.5), (1.0, torch.nan)])
def test_emulated_suppression_refuses_bad_numbers(emulated: Any, box: float, score: float) -> None:
    boxes, scores, labels = nms_arguments(70, 0, 10, 1)
    boxes[66, 2], scores[66] = box, score
    with pytest.raises(RuntimeError, match="a score is NaN, or a box not finite or of negative size"):
        emulated.rotated_nms(boxes, scores, labels, 0.5, False)
    with pytest.raises(RuntimeError, match=r"(score|box) 66 is"):
        torch.ops.bevkd2.rotated_nms(boxes, scores, labels, 0.5, False)


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("op", "columns"), [(rotated_intersection, 5), (rotated_iou, 5), (box3d_iou, 7)])
def test_overlaps_on_cuda_are_the_cpus(cuda: torch.device, op: Any, columns: int, dtype: torch.dtype) -> None:
    a, b = random_boxes(301, 0, columns).to(dtype), random_boxes(257, 1, columns).to(dtype)
    got = op(a.to(cuda), b.to(cuda))
    assert got.is_cuda
    assert got.dtype is dtype
    # Sine and cosine may differ in their last bit, and with them an area by that share of its sides.
    tolerance = 1e-9 if dtype == torch.float64 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.cpu(), op(a, b), rtol=tolerance, atol=1e-13)
    torch.testing.assert_close(op(a.to(cuda), b.to(cuda)), got, rtol=0, atol=0)


@pytest.mark.gpu
@NAMES
def test_overlaps_on_cuda_do_not_wait(cuda: torch.device, name: str, columns: int) -> None:
    """A graph cannot be captured where something waits for the device."""
    a, b = random_boxes(40, 0, columns).to(cuda), random_boxes(30, 1, columns).to(cuda)
    op = getattr(torch.ops.bevkd2, name)
    expected = op(a, b)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = op(a, b)
    graph.replay()
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("n", [0, 1, 64, 1000, 5000])
@pytest.mark.parametrize(("threshold", "inclusive"), [(0.1, False), (0.0, True)])
def test_suppression_on_cuda_is_the_cpus(
    cuda: torch.device, n: int, threshold: float, inclusive: bool
) -> None:
    arguments = nms_arguments(n, 0, 100, 3)
    kept = batched_rotated_nms(*(tensor.to(cuda) for tensor in arguments), threshold, inclusive)
    assert kept.is_cuda
    assert kept.tolist() == batched_rotated_nms(*arguments, threshold, inclusive).tolist()


@pytest.mark.gpu
def test_bad_boxes_on_cuda_are_named(cuda: torch.device) -> None:
    boxes, scores, labels = (tensor.to(cuda) for tensor in nms_arguments(10, 0, 10, 1))
    with pytest.raises(ValueError, match="b is on cpu, a on cuda"):
        rotated_iou(boxes, boxes.cpu())
    bad = boxes.clone()
    bad[7, 3] = -1
    with pytest.raises(ValueError, match="box 7 of b is"):
        rotated_iou(boxes, bad)
    with pytest.raises(ValueError, match="box 7 of boxes is"):
        batched_rotated_nms(bad, scores, labels, 0.5)
    scores[3] = torch.nan
    with pytest.raises(ValueError, match="score 3 is NaN"):
        batched_rotated_nms(boxes, scores, labels, 0.5)
