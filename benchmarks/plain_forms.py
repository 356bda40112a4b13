"""A model's ops in plain torch, as published code computes them where it has no kernels."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.bench_ms_deform_attn import grid_sample_form
from benchmarks.references import (
    bev_response_l2_reference,
    masked_l2_reference,
    sampling_locations_reference,
)
from bevkd2.distill.methods import attention, bev_response
from bevkd2.modeling.bev import attention as bev_attention
from bevkd2.modeling.bev import decoder
from bevkd2.ops import ReferenceMode

Levels = list[tuple[int, int]]
Maps = Tensor | list[Tensor]
Sample = Callable[[Tensor, tuple[tuple[int, int], ...], Tensor, Tensor], Tensor]
"""Computes deformable attention from value, levels, locations and weights."""


@dataclasses.dataclass(frozen=True)
class CameraLists:
    """What every camera sees."""

    rows: list[Tensor]
    """Per camera, the indices of its (camera, cell) pairs."""
    queries: list[Tensor]
    """Per camera, the cells of these pairs."""


def camera_lists(row_splits: Tensor, row_value: Tensor, cameras: int) -> CameraLists:
    """Returns the lists of all cameras; the arguments are those of bevkd2.ops.ms_deform_attn_ragged."""
    query = torch.repeat_interleave(row_splits.diff())  # of each row
    rows = [(row_value == camera).nonzero()[:, 0] for camera in range(cameras)]
    return CameraLists(rows, [query[index] for index in rows])


def fused(
    value: Tensor,
    spatial_shapes: Levels,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    reference_mode: ReferenceMode = "level",
    num_queues: int = 1,
    return_weights: bool = False,
    sample: Sample = grid_sample_form,
) -> tuple[Tensor, Tensor | None]:
    """bevkd2.ops.ms_deform_attn_fused by an op for locations and weights: one grid_sample per level."""
    locations = sampling_locations_reference(
        spatial_shapes, reference_points, sampling_offsets.float(), reference_mode
    )
    weights = attention_logits.float().flatten(-2).softmax(-1).view_as(attention_logits)
    out = sample(value, tuple(spatial_shapes), locations.to(value.dtype), weights.to(value.dtype))
    out = out.unflatten(0, (-1, num_queues)).mean(1)
    return out, weights if return_weights else None


def ragged(
    value: Tensor,
    spatial_shapes: Levels,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    row_splits: Tensor,
    row_value: Tensor,
    *,
    return_weights: bool = False,
    sample: Sample = grid_sample_form,
    lists: CameraLists | None = None,
) -> tuple[Tensor, Tensor | None]:
    """bevkd2.ops.ms_deform_attn_ragged by BEVFormer's rebatching: padded copies for every camera.

    ``lists`` are those of ``camera_lists``, if they were made before.
    """
    counts = row_splits.diff()
    lists = lists or camera_lists(row_splits, row_value, len(value))

    def rebatch(tensor: Tensor, index: list[Tensor]) -> Tensor:
        return pad_sequence([tensor[i] for i in index], batch_first=True)

    padded, _ = fused(
        value,
        spatial_shapes,
        rebatch(reference_points, lists.rows),
        rebatch(sampling_offsets, lists.queries),
        rebatch(attention_logits, lists.queries),
        reference_mode="pillar",
        sample=sample,
    )
    slots = padded.new_zeros(len(counts), padded.shape[2])
    for out, index in zip(padded, lists.queries, strict=True):
        slots = slots.index_add(0, index, out[: len(index)])
    slots = slots / counts.clamp(min=1)[:, None]
    weights = attention_logits.float().flatten(-2).softmax(-1).view_as(attention_logits)
    return slots, weights if return_weights else None


def attention_l2(
    student: Maps, teacher: Maps, mask: Tensor | None = None, *, reduction: str, loss_weight: float = 1.0
) -> Tensor:
    """bevkd2.ops.attention_l2 in eager torch."""
    if isinstance(student, Tensor):
        return loss_weight * masked_l2_reference(student, teacher, mask, reduction=reduction)
    layers = zip(student, teacher, strict=True)
    return loss_weight * torch.stack(
        [masked_l2_reference(s, t, mask, reduction=reduction) for s, t in layers]
    )


def bev_response_l2(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, reduction: str, loss_weight: float = 1.0
) -> Tensor:
    """bevkd2.ops.bev_response_l2 in eager torch, on (B, N, C) or (B, C, H, W)."""
    if student.dim() == 4:
        student, teacher = (features.flatten(2).transpose(1, 2) for features in (student, teacher))
        mask = mask if mask is None else mask.flatten(1)
    return loss_weight * bev_response_l2_reference(student, teacher, mask, reduction=reduction)


@contextmanager
def plain_ops() -> Iterator[None]:
    """Models that run inside use the plain forms; backward may run outside."""
    with ExitStack() as stack:
        for module, name, form in (
            (bev_attention, "ms_deform_attn_fused", fused),
            (bev_attention, "ms_deform_attn_ragged", ragged),
            (decoder, "ms_deform_attn_fused", fused),
            (attention, "attention_l2", attention_l2),
            (bev_response, "bev_response_l2", bev_response_l2),
        ):
            stack.enter_context(patch.object(module, name, form))
        yield
