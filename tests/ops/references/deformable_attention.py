"""Deformable attention by index arithmetic in plain PyTorch: slow, and in the dtype of its inputs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bevkd2.ops.arguments import SpatialShapes, level_shapes
from bevkd2.ops.ms_deform_attn import checked_level_starts
from bevkd2.ops.ms_deform_attn_fused import ReferenceMode


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    level_start_index: Tensor | Sequence[int] | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Computes what :func:`bevkd2.ops.ms_deform_attn` does, from the same arguments."""
    shapes = level_shapes("ms_deform_attn", spatial_shapes)
    starts = checked_level_starts(value, shapes, level_start_index)
    batch, queries, heads, _, _ = attention_weights.shape
    out = value.new_zeros(batch, queries, heads, value.shape[3])
    for level, start in enumerate(starts):
        height, width = shapes[2 * level], shapes[2 * level + 1]
        maps = value[:, start : start + height * width].permute(0, 2, 1, 3)  # (B, H, h * w, D)
        sampled = _bilinear(maps, height, width, sampling_locations[:, :, :, level])
        out = out + (sampled * attention_weights[:, :, :, level, :, None]).sum(3)
    return out.flatten(2)


def ms_deform_attn_fused_reference(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    reference_mode: ReferenceMode = "level",
    num_queues: int = 1,
    return_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Computes what :func:`bevkd2.ops.ms_deform_attn_fused` does, from the same arguments."""
    locations = sampling_locations_reference(
        spatial_shapes, reference_points, sampling_offsets, reference_mode
    )
    weights = attention_logits.flatten(-2).softmax(-1).view_as(attention_logits)
    out = ms_deform_attn_reference(value, spatial_shapes, None, locations, weights)
    out = out.unflatten(0, (out.shape[0] // num_queues, num_queues)).mean(1)
    return out, weights if return_weights else None


def sampling_locations_reference(
    spatial_shapes: SpatialShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    reference_mode: ReferenceMode,
) -> Tensor:
    """Computes the normalised locations (B, Q, H, L, P, 2) that the fused form samples at."""
    shapes = level_shapes("ms_deform_attn_fused", spatial_shapes)
    points = sampling_offsets.shape[-2]
    references = reference_points[:, :, None]  # (B, Q, 1, R, 2 or 4)
    if reference_mode == "pillar":
        anchors = torch.arange(points, device=references.device) % reference_points.shape[2]
        return references[:, :, :, None, anchors] + sampling_offsets / _sizes(shapes, sampling_offsets)
    if reference_points.shape[3] == 2:
        return references[:, :, :, :, None] + sampling_offsets / _sizes(shapes, sampling_offsets)
    boxes = references[:, :, :, :, None]
    return boxes[..., :2] + sampling_offsets / points * boxes[..., 2:] * 0.5


def ms_deform_attn_ragged_reference(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    row_splits: Tensor,
    row_value: Tensor,
    *,
    return_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Computes what :func:`bevkd2.ops.ms_deform_attn_ragged` does, with every row as a batch entry."""
    counts = row_splits.diff()
    query = torch.repeat_interleave(counts)  # of each row
    rows, _ = ms_deform_attn_fused_reference(
        value[row_value],
        spatial_shapes,
        reference_points[:, None],
        sampling_offsets[query][:, None],
        attention_logits[query][:, None],
        reference_mode="pillar",
    )
    total = rows.new_zeros(counts.shape[0], value.shape[2] * value.shape[3]).index_add(0, query, rows[:, 0])
    out = total / counts.clamp(min=1)[:, None]
    weights = attention_logits.flatten(-2).softmax(-1).view_as(attention_logits)
    return out, weights if return_weights else None


def _bilinear(maps: Tensor, height: int, width: int, locations: Tensor) -> Tensor:
    """Samples maps (B, H, h * w, D) at normalised locations (B, Q, H, P, 2); returns (B, Q, H, P, D)."""
    x, y = locations[..., 0] * width - 0.5, locations[..., 1] * height - 0.5
    valid = (x > -1) & (x < width) & (y > -1) & (y < height)
    x, y = x.where(valid, 0), y.where(valid, 0)  # NaN must not reach the products below
    left, top = x.floor().detach(), y.floor().detach()
    out = locations.new_zeros(*locations.shape[:-1], maps.shape[-1])
    for column, weight_x in ((left, 1 - (x - left)), (left + 1, x - left)):
        for row, weight_y in ((top, 1 - (y - top)), (top + 1, y - top)):
            inside = valid & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = (row * width + column).where(inside, 0).long()  # (B, Q, H, P)
            flat = index.permute(0, 2, 1, 3).flatten(2)[..., None].expand(-1, -1, -1, maps.shape[-1])
            corner = (
                maps.gather(2, flat).unflatten(2, (index.shape[1], index.shape[3])).permute(0, 2, 1, 3, 4)
            )
            out = out + corner * (weight_x * weight_y * inside)[..., None]
    return out


def _sizes(shapes: list[int], like: Tensor) -> Tensor:
    """Returns (w, h) of each level as (L, 1, 2), in the dtype and on the device of ``like``."""
    return torch.tensor(list(zip(shapes[1::2], shapes[::2], strict=True))).to(like).view(-1, 1, 2)
