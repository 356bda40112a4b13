#!/usr/bin/env python3
"""Distillation losses, forward and backward together, against eager torch.

    python benchmarks/bench_distill_loss.py [--quick] [--threads N] [--cases "FPN, L2"] [--device cuda]

Eager forms fold the weights into the mask and the normaliser into one factor, and take one level after the
other. In 16-bit rows they run under autocast, as a training step's losses do; in float16 the upstream
gradient is a loss scale of 2^16. FPN is BEVFormer-base's: six cameras, 256 channels, four levels for images
of 928 x 1600; BEV is (1, 256, 200, 200). Masks cover half of the pixels.

Bytes are one read of student and teacher and one write of the student's gradient; an element costs 6
operations in an L2 loss.
"""

import dataclasses
import math
import sys
from collections.abc import Callable

import torch
from bench import main
from bench_ms_deform_attn import BASE_LEVELS
from harness import Contest, Contestant, Options, Watch, Work
from torch import Tensor
from torch.nn import functional as F

from bevkd2.ops import attention_l2, bev_response_l2, class_distance, feature_l2, perspective_matrix

EAGER, PART = "eager torch", "forward + backward"
REQUIRED, REQUIRED_CUDA = 3.0, 5.0
SLACK_MIB = 1.0  # of the memory limit: normalisers, and what the allocator rounds up
Tensors = list[Tensor]
Loss = Callable[[Tensors, Tensors, Tensors], Tensor]


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss of levels: maps (B, C, h, w) with masks (B, h, w), or rows (B, N, ...) with masks (B, N)."""

    shapes: tuple[tuple[int, ...], ...]
    fused: Loss
    eager: Loss
    required: bool = False
    """Whether a ratio is required."""
    operations: float = 6.0
    """Of an element, forward and backward."""

    def sizes(self, quick: bool) -> list[tuple[int, ...]]:
        """The shapes, or small ones."""
        limits = {4: (1, 8, 10, 10), 3: (1, 50, 256), 5: (1, 50, 8, 4, 8)}
        cut = [tuple(map(min, shape, limits[len(shape)])) for shape in self.shapes]
        return cut if quick else list(self.shapes)

    def make(self, quick: bool) -> tuple[Tensors, Tensors, Tensors]:
        """Student, teacher and masks, level by level; rows hold numbers between 0 and 1."""
        generator = torch.Generator().manual_seed(0)
        groups: tuple[Tensors, Tensors, Tensors] = ([], [], [])
        for shape in self.sizes(quick):
            is_map = len(shape) == 4
            for group in groups[:2]:
                random = torch.randn if is_map else torch.rand
                group.append(random(shape, generator=generator))
            cells = (shape[0], *shape[2:]) if is_map else shape[:2]
            groups[2].append(torch.rand(cells, generator=generator).gt(0.5).float())
        return groups


def l2_fused(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
    """Mean over the batch of the masked squared distance over C * h * w, summed over the levels."""
    return torch.stack([feature_l2(s, t, m) for s, t, m in zip(student, teacher, masks, strict=True)]).sum()


def l2_eager(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
    """The same as mse_loss(none) * mask, with the factor on the mask."""
    levels = zip(student, teacher, masks, strict=True)
    return torch.stack(
        [(F.mse_loss(s, t, reduction="none") * (m / s.numel())[:, None]).sum() for s, t, m in levels]
    ).sum()


def _perspective(shape: torch.Size, device: torch.device, stride: int) -> Tensor:
    sizes = torch.tensor([[shape[2] * stride, shape[3] * stride]], device=device).expand(shape[0], 2)
    options = {"amplitude": 0.3, "sigma": (0.7, 0.7), "center": (0.5, 0.5)}
    return perspective_matrix(sizes, (shape[2], shape[3]), stride, **options)


def with_perspective(loss: Loss) -> Loss:
    """A loss whose masks are multiplied by the perspective matrix of strides 8, 16, 32 and 64."""

    def guided(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
        weights = [
            _perspective(s.shape, s.device, 8 * 2**level) * m
            for level, (s, m) in enumerate(zip(student, masks, strict=True))
        ]
        return loss(student, teacher, weights)

    return guided


def response_fused(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
    """Eq. 7-8 of structured distillation."""
    return bev_response_l2(student[0], teacher[0], masks[0], reduction="norm")


def response_eager(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
    """Mean absolute value over the channels, then the L2 norm over the cells, mean over the batch."""
    difference = student[0].abs().mean(-1) - teacher[0].abs().mean(-1)
    return (difference.square() * masks[0]).sum(1).sqrt().mean()


def attention_fused(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
    """Eq. 4-6 of structured distillation."""
    return attention_l2(student[0], teacher[0], masks[0], reduction="norm")


def attention_eager(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
    """The L2 norm over the cells that count, mean over the batch."""
    squares = F.mse_loss(student[0], teacher[0], reduction="none") * masks[0][:, :, None, None, None]
    return squares.flatten(1).sum(1).sqrt().mean()


def class_kl_fused(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
    """Bernoulli KL at a temperature of 2, mean over the locations that count."""
    return (class_distance(student[0], teacher[0], "kl", 2.0) * masks[0]).sum() / masks[0].sum()


def class_kl_eager(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
    """The same with torch's binary cross-entropy, less the teacher's entropy."""
    probability = (teacher[0] / 2).sigmoid()
    cross = F.binary_cross_entropy_with_logits(student[0] / 2, probability, reduction="none")
    own = F.binary_cross_entropy_with_logits(teacher[0] / 2, probability, reduction="none")
    return (4 * (cross - own).sum(-1) * masks[0]).sum() / masks[0].sum()


FPN = tuple((6, 256, *level) for level in BASE_LEVELS)
BEV = ((1, 256, 200, 200),)
LOCATIONS = sum(height * width for height, width in BASE_LEVELS)
CASES = {
    "FPN, L2, pixel mask": Case(FPN, l2_fused, l2_eager, required=True),
    "BEV, L2, pixel mask": Case(BEV, l2_fused, l2_eager, required=True),
    "FPN, L2, perspective Gaussian": Case(FPN, with_perspective(l2_fused), with_perspective(l2_eager)),
    "BEV response": Case(((1, 40000, 256),), response_fused, response_eager),
    "attention weights": Case(((1, 40000, 8, 4, 8),), attention_fused, attention_eager),
    "class logits, Bernoulli KL": Case(((6, LOCATIONS, 10),), class_kl_fused, class_kl_eager, operations=60),
}


def contests(options: Options) -> list[Contest]:
    """All losses and types for a device."""
    cuda = options.device.startswith("cuda")
    dtypes = (torch.float32, torch.bfloat16, *((torch.float16,) if cuda else ()))
    return [_contest(name, dtype, options) for name in CASES for dtype in dtypes]


def _contest(name: str, dtype: torch.dtype, options: Options) -> Contest:
    case = CASES[name]

    def make() -> list[Contestant]:
        *features, masks = case.make(options.quick)
        student, teacher = ([t.to(options.device, dtype) for t in group] for group in features)
        student = [tensor.requires_grad_() for tensor in student]
        masks = [mask.to(options.device) for mask in masks]
        eager = case.eager if dtype == torch.float32 else _autocast(case.eager, options.device, dtype)
        return [
            Contestant("bevkd2", _step(case.fused, student, teacher, masks)),
            Contestant(EAGER, _step(eager, student, teacher, masks)),
        ]

    elements = sum(math.prod(shape) for shape in case.sizes(options.quick))
    required = case.required and not options.quick
    student_mib = elements * dtype.itemsize / 2**20
    least = REQUIRED_CUDA if options.device.startswith("cuda") else REQUIRED
    narrow_on_cpu = options.device == "cpu" and dtype != torch.float32
    return Contest(
        family="Distillation losses",
        case=name,
        dtype=str(dtype).removeprefix("torch."),
        make=make,
        required={(EAGER, PART): least} if required and not narrow_on_cpu else {},
        tolerance=1e-3 if dtype == torch.float32 else 2e-2,
        work={PART: Work(3 * elements * dtype.itemsize, case.operations * elements)},
        memory_limit_mib=student_mib + SLACK_MIB if required else None,
    )


def _autocast(loss: Loss, device: str, dtype: torch.dtype) -> Loss:
    def cast(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
        with torch.autocast(device, dtype):
            return loss(student, teacher, masks)

    return cast


def _step(loss: Loss, student: Tensors, teacher: Tensors, masks: Tensors) -> Callable[[Watch], Tensor]:
    def run(watch: Watch) -> Tensor:
        found = []

        def step() -> tuple[Tensor, ...]:
            value = loss(student, teacher, masks)
            found[:] = [value.detach()]
            scale = 2.0**16 if student[0].dtype == torch.float16 else 1.0
            return torch.autograd.grad(value, student, torch.full_like(value, scale))

        watch(PART, step)
        return found[0]

    return run


if __name__ == "__main__":
    sys.exit(main(("bench_distill_loss",)))
