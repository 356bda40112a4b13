#!/usr/bin/env python3
"""Compares distillation losses, forward and backward together, with eager torch.

    python -m benchmarks.bench_distill_loss [--quick] [--threads N] [--cases "FPN, L2"] [--device cuda]

The eager forms multiply weights and normaliser into the mask, process one level after the other, and draw the
weights of boxes box by box, as published code does. In 16-bit rows they run under autocast, as in a training
step; in float16 the upstream gradient is a loss scale of 2^16. FPN is that of BEVFormer-base: six cameras,
256 channels, four levels for images of 928 x 1600; BEV is (1, 256, 200, 200). Masks cover half of the pixels.

Bytes are one read of student and teacher and one write of the student's gradient; an element costs 6
operations in an L2 loss.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.bench import main
from benchmarks.bench_ms_deform_attn import BASE_LEVELS
from benchmarks.harness import Contest, Contestant, Options, Watch, Work
from benchmarks.references import draw_weights_reference
from bevkd2.distill.methods.feature import attention_of, summed_distance
from bevkd2.ops import (
    absolute_means,
    attention_l2,
    bev_response_l2,
    channel_wise_kl,
    feature_l2,
    logit_distance,
    normalized_l2,
    pixel_wise_kl,
    weighted_l2,
    weighted_l2_with_means,
)
from bevkd2.ops.pixel_weights import BoxMask, Perspective, draw_weights, pack_boxes

EAGER, PART = "eager torch", "forward + backward"
REQUIRED = {"cpu": 3.0, "cuda": 5.0}
REQUIRED_OF_METHODS = {"cpu": 2.0}
SLACK_MIB = 1.0  # added to the memory limit: normalisers and weights, and rounding of the allocator
Tensors = list[Tensor]
Loss = Callable[[Tensors, Tensors, Tensors], Tensor]


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss of levels: maps (B, C, h, w) with masks (B, h, w), or rows (B, N, ...) with masks (B, N)."""

    shapes: tuple[tuple[int, ...], ...]
    fused: Loss
    eager: Loss
    required: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Ratios required by device: in float32 on the CPU, under autocast on a GPU. Any limits the memory."""
    operations: float = 6.0
    """Operations per element, forward and backward."""
    maps: int = 0
    """Float32 maps of one number per cell that the memory limit allows beside the gradient."""

    def sizes(self, quick: bool) -> list[tuple[int, ...]]:
        """Returns the shapes, or small ones."""
        limits = {4: (1, 8, 10, 10), 3: (1, 50, 256), 5: (1, 50, 8, 4, 8)}
        cut = [tuple(map(min, shape, limits[len(shape)])) for shape in self.shapes]
        return cut if quick else list(self.shapes)

    def make(self, quick: bool) -> tuple[Tensors, Tensors, Tensors]:
        """Returns student, teacher and masks of each level; rows have numbers between 0 and 1."""
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
    """Computes the batch mean of the masked squared distance / (C * h * w), summed over the levels."""
    return feature_l2(student, teacher, masks).sum()


def l2_eager(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
    """Computes the same by mse_loss(none) * mask, with the factor on the mask."""
    levels = zip(student, teacher, masks, strict=True)
    return torch.stack(
        [(F.mse_loss(s, t, reduction="none") * (m / s.numel())[:, None]).sum() for s, t, m in levels]
    ).sum()


@functools.cache
def _drawing(shapes: tuple[torch.Size, ...], device: str, boxes: int) -> dict[str, Any]:
    """Returns arguments of draw_weights for strides 8, 16, ..: boxes of an image, or the perspective."""
    batch, _, rows, columns = shapes[0]
    drawing: dict[str, Any] = {
        "level_shapes": [tuple(shape[2:]) for shape in shapes],
        "strides": [8 * 2**level for level in range(len(shapes))],
        "image_sizes": torch.tensor([[8 * rows, 8 * columns]], device=device).repeat(batch, 1),
    }
    if not boxes:
        return drawing | {"perspective": Perspective()}
    generator = torch.Generator().manual_seed(1)
    limits = 8 * torch.tensor([columns, rows])
    centers = torch.rand(batch, boxes, 2, generator=generator) * limits
    halves = torch.rand(batch, boxes, 2, generator=generator) * limits / 10 + 1
    rows_of_boxes = torch.cat([centers - halves, centers + halves], dim=2).to(device)
    return drawing | {"boxes": [BoxMask(*pack_boxes(list(rows_of_boxes)), kind="gaussian")]}


def l2_drawn(student: Tensors, teacher: Tensors, _: Tensors, boxes: int = 0) -> Tensor:
    """Computes the L2 loss, including the drawing of its weights."""
    drawing = _drawing(tuple(s.shape for s in student), str(student[0].device), boxes)
    return feature_l2(student, teacher, draw_weights(**drawing).maps).sum()


def l2_drawn_eager(student: Tensors, teacher: Tensors, _: Tensors, boxes: int = 0) -> Tensor:
    """Computes the same in plain torch."""
    drawing = _drawing(tuple(s.shape for s in student), str(student[0].device), boxes)
    return l2_eager(student, teacher, draw_weights_reference(**drawing).levels())


def response_fused(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
    """Computes Eq. 7-8 of structured distillation."""
    return bev_response_l2(student[0], teacher[0], masks[0], reduction="norm")


def response_eager(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
    """Computes mean absolute values over the channels, and the mean over the batch of their L2 norm."""
    difference = student[0].abs().mean(-1) - teacher[0].abs().mean(-1)
    return (difference.square() * masks[0]).sum(1).sqrt().mean()


def attention_fused(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
    """Computes Eq. 4-6 of structured distillation."""
    return attention_l2(student[0], teacher[0], masks[0], reduction="norm")


def attention_eager(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
    """Computes the L2 norm over the cells in the mask, mean over the batch."""
    squares = F.mse_loss(student[0], teacher[0], reduction="none") * masks[0][:, :, None, None, None]
    return squares.flatten(1).sum(1).sqrt().mean()


def class_kl_fused(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
    """Computes the Bernoulli KL at a temperature of 2, mean over the locations in the mask."""
    return logit_distance(student[0], teacher[0], masks[0], distance="kl", temperature=2.0)


def class_kl_eager(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
    """Computes the same by torch's binary cross-entropy minus the entropy of the teacher."""
    probability = (teacher[0] / 2).sigmoid()
    cross = F.binary_cross_entropy_with_logits(student[0] / 2, probability, reduction="none")
    own = F.binary_cross_entropy_with_logits(teacher[0] / 2, probability, reduction="none")
    return (4 * (cross - own).sum(-1) * masks[0]).sum() / masks[0].sum()


def channel_kl_fused(student: Tensors, teacher: Tensors, _: Tensors) -> Tensor:
    """Computes the KL of softmaxes over the pixels of a channel, temperature 2, summed over the levels."""
    return channel_wise_kl(student, teacher, temperature=2.0).sum()


def channel_kl_eager(student: Tensors, teacher: Tensors, _: Tensors) -> Tensor:
    """Computes the same by torch's kl_div of log_softmax."""
    return _softmax_kl(
        [s.flatten(0, 1).flatten(1) for s in student], [t.flatten(0, 1).flatten(1) for t in teacher]
    )


def pixel_kl_fused(student: Tensors, teacher: Tensors, _: Tensors) -> Tensor:
    """Computes the KL of softmaxes over the channels of a pixel, temperature 2, summed over the levels."""
    return pixel_wise_kl(student, teacher, temperature=2.0).sum()


def pixel_kl_eager(student: Tensors, teacher: Tensors, _: Tensors) -> Tensor:
    """Computes the same by torch's kl_div of log_softmax."""
    return _softmax_kl(
        [s.flatten(2).transpose(1, 2).flatten(0, 1) for s in student],
        [t.flatten(2).transpose(1, 2).flatten(0, 1) for t in teacher],
    )


def normalized_fused(student: Tensors, teacher: Tensors, _: Tensors) -> Tensor:
    """Computes PKD: half the mean squared distance of channels normalised over batch and pixels."""
    return normalized_l2(student, teacher).sum()


def normalized_eager(student: Tensors, teacher: Tensors, _: Tensors) -> Tensor:
    """Computes the same as published code does."""

    def normalize(features: Tensor) -> Tensor:
        rows = features.transpose(0, 1).flatten(1)
        return (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + 1e-6)

    pairs = zip(student, teacher, strict=True)
    return torch.stack([F.mse_loss(normalize(s), normalize(t)) / 2 for s, t in pairs]).sum()


def split_fused(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
    """Computes DeFeat: masked squared distances of objects and of the background, each over its cells."""
    weights = []
    for features, mask in zip(student, masks, strict=True):
        share = 1 / (2 * features.shape[1] * len(student))
        inside = mask * (3.0 * share / mask.sum())
        weights.append(inside + (1 - mask) * (12.0 * share / (1 - mask).sum()))
    return summed_distance(student, teacher, [1.0] * len(student), weights)


def split_eager(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
    """Computes the same as published code does, but for the square, which is computed once for both masks."""
    losses = []
    for s, t, mask in zip(student, teacher, masks, strict=True):
        squares = (s - t).pow(2)
        for factor, cells in ((3.0, mask[:, None]), (12.0, 1 - mask[:, None])):
            losses.append(factor * (squares * cells).sum() / (2 * s.shape[1] * cells.sum()))
    return torch.stack(losses).sum() / len(student)


def sum_fused(student: Tensors, teacher: Tensors, _: Tensors) -> Tensor:
    """Computes MGD after its generator: the summed squared distance, divided by the images."""
    images = len(student[0])
    scale = torch.full((len(student), images), 1 / images, device=student[0].device)
    return weighted_l2(student, teacher, scale).sum()


def sum_eager(student: Tensors, teacher: Tensors, _: Tensors) -> Tensor:
    """Computes the same by mse_loss(sum)."""
    pairs = zip(student, teacher, strict=True)
    return torch.stack([F.mse_loss(s, t, reduction="sum") / len(s) for s, t in pairs]).sum()


def transfer_fused(student: Tensors, teacher: Tensors, _: Tensors) -> Tensor:
    """Computes AT: the mean squared distance of normalised attention maps."""

    def attention(features: Tensor) -> Tensor:
        return F.normalize(absolute_means(features, power=2).pixels.flatten(1), dim=1)

    pairs = zip(student, teacher, strict=True)
    return torch.stack([(attention(s) - attention(t)).square().mean() for s, t in pairs]).sum()


def transfer_eager(student: Tensors, teacher: Tensors, _: Tensors) -> Tensor:
    """Computes the same as published code does."""

    def attention(features: Tensor) -> Tensor:
        return F.normalize(features.pow(2).mean(1).flatten(1))

    pairs = zip(student, teacher, strict=True)
    return torch.stack([(attention(s) - attention(t)).pow(2).mean() for s, t in pairs]).sum()


def focal_fused(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
    """Computes FGD without its global loss: focal and attention loss."""
    losses = []
    for s, t, mask in zip(student, teacher, masks, strict=True):
        pixels, channels = (attention_of(means, 0.8) for means in absolute_means(t))
        inside, outside = _focal_masks(mask)
        found = weighted_l2_with_means(
            s,
            t,
            pixels.new_full((len(s),), 1 / len(s)),
            weights=(1.6e-3 * inside + 8e-4 * outside) * pixels,
            channel_weights=channels,
        )
        pixels_s, channels_s = attention_of(found.pixels, 0.8), attention_of(found.channels, 0.8)
        attention = (pixels_s - pixels).abs().sum() + (channels_s - channels).abs().sum()
        losses.append(found.distance + 8e-4 * attention / len(s))
    return torch.stack(losses).sum()


def focal_eager(student: Tensors, teacher: Tensors, masks: Tensors) -> Tensor:
    """Computes the same as published code does: features times the roots of all weights."""

    def attention(features: Tensor) -> Tensors:
        values = features.abs()
        pixels, channels = values.mean(1).flatten(1), values.mean(2).mean(2)
        pixels = pixels.shape[1] * (pixels / 0.8).softmax(1)
        channels = channels.shape[1] * (channels / 0.8).softmax(1)
        return [pixels.view_as(features[:, 0]), channels]

    losses = []
    for s, t, mask in zip(student, teacher, masks, strict=True):
        (pixels_s, channels_s), (pixels, channels) = attention(s), attention(t)
        weighted = [x * pixels.sqrt()[:, None] * channels.sqrt()[:, :, None, None] for x in (s, t)]
        for factor, cells in zip((1.6e-3, 8e-4), _focal_masks(mask), strict=True):
            ours, theirs = (x * cells.sqrt()[:, None] for x in weighted)
            losses.append(factor * F.mse_loss(ours, theirs, reduction="sum") / len(s))
        distances = (channels_s - channels).abs().sum(), (pixels_s - pixels).abs().sum()
        losses.extend(8e-4 * distance / len(s) for distance in distances)
    return torch.stack(losses).sum()


def _focal_masks(mask: Tensor) -> Tensors:
    """Returns weights of cells in boxes, here of 100 cells each, and of those outside, which sum to 1."""
    outside = 1 - mask
    return [mask / 100, outside / outside.sum((1, 2), keepdim=True)]


def _softmax_kl(student: Tensors, teacher: Tensors) -> Tensor:
    pairs = zip(student, teacher, strict=True)
    rows = [((s / 2).log_softmax(1), (t / 2).log_softmax(1)) for s, t in pairs]
    return 4 * torch.stack([F.kl_div(s, t, reduction="batchmean", log_target=True) for s, t in rows]).sum()


FPN = tuple((6, 256, *level) for level in BASE_LEVELS)
BEV = ((1, 256, 200, 200),)
LOCATIONS = sum(height * width for height, width in BASE_LEVELS)
CASES = {
    "FPN, L2, pixel mask": Case(FPN, l2_fused, l2_eager, required=REQUIRED),
    "BEV, L2, pixel mask": Case(BEV, l2_fused, l2_eager, required=REQUIRED),
    "FPN, L2, perspective Gaussian": Case(FPN, l2_drawn, l2_drawn_eager),
    "FPN, L2, Gaussians of 20 boxes": Case(
        FPN, functools.partial(l2_drawn, boxes=20), functools.partial(l2_drawn_eager, boxes=20)
    ),
    "BEV response": Case(((1, 40000, 256),), response_fused, response_eager),
    "attention weights": Case(((1, 40000, 8, 4, 8),), attention_fused, attention_eager),
    "class logits, Bernoulli KL": Case(((6, LOCATIONS, 10),), class_kl_fused, class_kl_eager, operations=60),
    "BEV, channel-wise softmax KL": Case(BEV, channel_kl_fused, channel_kl_eager, operations=40),
    "BEV, pixel-wise softmax KL": Case(BEV, pixel_kl_fused, pixel_kl_eager, operations=40),
    **{
        f"FPN, {name}": Case(FPN, *forms, required=REQUIRED_OF_METHODS, operations=operations, maps=maps)
        for name, forms, operations, maps in (
            ("normalised L2 (PKD)", (normalized_fused, normalized_eager), 20, 0),
            ("channel-wise softmax KL (CWD)", (channel_kl_fused, channel_kl_eager), 40, 0),
            ("L2, objects and background (DeFeat)", (split_fused, split_eager), 6, 0),
            ("L2 and attention (FGD)", (focal_fused, focal_eager), 12, 4),
            ("attention maps (AT)", (transfer_fused, transfer_eager), 6, 2),
            ("summed L2 (MGD)", (sum_fused, sum_eager), 6, 0),
        )
    },
}


def contests(options: Options) -> list[Contest]:
    """Returns the contests of all losses and dtypes for a device."""
    cuda = options.device.startswith("cuda")
    dtypes = (torch.float32, torch.bfloat16, *((torch.float16,) if cuda else ()))
    return [_contest(name, dtype, options) for name in CASES for dtype in dtypes]


def _contest(name: str, dtype: torch.dtype, options: Options) -> Contest:
    case, device = CASES[name], "cuda" if options.device.startswith("cuda") else "cpu"

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
    cells = sum(shape[0] * math.prod(shape[2:]) for shape in case.sizes(options.quick))
    required = {} if options.quick else case.required
    allowed_mib = (elements * dtype.itemsize + case.maps * cells * 4) / 2**20 + SLACK_MIB
    compared = (dtype == torch.float32) == (device == "cpu")  # on a GPU, autocast is
    return Contest(
        family="Distillation losses",
        case=name,
        dtype=str(dtype).removeprefix("torch."),
        make=make,
        required={(EAGER, PART): required[device]} if device in required and compared else {},
        tolerance=1e-3 if dtype == torch.float32 else 2e-2,
        work={PART: Work(3 * elements * dtype.itemsize, case.operations * elements)},
        memory_limit_mib=allowed_mib if required else None,
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
