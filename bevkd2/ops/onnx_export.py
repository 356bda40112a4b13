"""Export to ONNX: deformable attention as a composite of standard operators, with equal output.

The composites are decompositions of the compiled ops, so that one exported program serves ONNX and whatever
else reads standard operators. GridSample (opset 16 and later) does the sampling.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .arguments import level_starts

_FAR = -3.0  # GridSample's coordinate of a point that is more than a pixel outside of any map


def export_onnx(
    module: nn.Module,
    args: tuple[Any, ...],
    path: str | Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset_version: int | None = None,
) -> None:
    """Write a module as an ONNX file of standard operators, its deformable attention included.

    Args:
        module: in the mode that it is to be exported in.
        args: example inputs of its forward.
        path: the file to write.
        kwargs: example keyword inputs.
        dynamic_shapes: which sizes may vary, as for ``torch.export.export``. The levels' shapes do not.
        input_names: of the graph's inputs; None: as torch names them.
        output_names: of the graph's outputs; None: as torch names them.
        opset_version: at least 16, for GridSample; None: torch's choice.

    Raises:
        ImportError: onnx or onnxscript are not installed (``pip install bevkd2[export]``).
    """
    program = torch.export.export(module, args, dict(kwargs or {}), dynamic_shapes=dynamic_shapes)
    torch.onnx.export(
        program.run_decompositions(onnx_decompositions()),
        (),
        path,
        input_names=input_names,
        output_names=output_names,
        opset_version=opset_version,
        dynamo=True,
        verbose=False,
    )


def onnx_decompositions() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """Returns the composite of each op, for ``torch.export.ExportedProgram.run_decompositions``."""
    ops = torch.ops.bevkd2
    return {
        ops.ms_deform_attn.default: _drop_in,
        ops.ms_deform_attn_fused.default: _fused,
        ops.ms_deform_attn_ragged.default: _ragged,
    }


def _drop_in(
    value: Tensor, shapes: list[int], starts: list[int], locations: Tensor, weights: Tensor
) -> Tensor:
    pixels = [
        (points[..., 0] * width - 0.5, points[..., 1] * height - 0.5)
        for points, (height, width) in zip(locations.unbind(3), _pairs(shapes), strict=True)
    ]
    return _attend(value, shapes, starts, pixels, weights).to(value.dtype)


def _fused(
    value: Tensor,
    shapes: list[int],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    pillar: bool,
    queues: int,
    return_weights: bool,
) -> tuple[Tensor, Tensor]:
    points = logits.shape[4]
    pixels = []
    for level, (height, width) in enumerate(_pairs(shapes)):
        if pillar:
            reference = _repeat_heights(references, points)[:, :, None]  # (B, Q, 1, P, 2)
        else:
            reference = references[:, :, min(level, references.shape[2] - 1)][:, :, None, None]
        offset = offsets[:, :, :, level]
        if references.shape[3] == 4:
            location = reference[..., :2] + offset / points * reference[..., 2:] * 0.5
            pixels.append((location[..., 0] * width - 0.5, location[..., 1] * height - 0.5))
        else:
            pixels.append(_moved(reference, offset, height, width))
    weights = _softmax(logits)
    out = _attend(value, shapes, level_starts(shapes), pixels, weights)
    mean = out.unflatten(0, (-1, queues)).mean(1) if queues > 1 else out
    return mean.to(value.dtype), weights if return_weights else weights.new_zeros(0)


def _ragged(
    value: Tensor,
    shapes: list[int],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    row_splits: Tensor,
    row_value: Tensor,
    return_weights: bool,
) -> tuple[Tensor, Tensor]:
    """Maps of all cameras stand in one tall image, a row of zeros below each, and rows look into theirs."""
    views, _, heads, channels = value.shape
    points = logits.shape[3]
    query = _query_of_rows(row_splits, row_value.shape[0])
    weights = _softmax(logits)
    reference = _repeat_heights(references, points)[:, None]  # (R, 1, P, 2)
    camera = row_value[:, None, None].to(logits.dtype)
    parts = []
    for level, (start, (height, width)) in enumerate(zip(level_starts(shapes), _pairs(shapes), strict=True)):
        column, row = _moved(reference, offsets[:, :, level][query], height, width)
        inside = _inside(column, row, height, width)
        maps = value[:, start : start + height * width].to(logits.dtype)
        maps = maps.unflatten(1, (height, width)).permute(3, 4, 0, 1, 2)  # (H, D, V, h, w)
        tall = F.pad(maps, (0, 0, 0, 1)).reshape(heads, channels, views * (height + 1), width)
        column, row, inside = (t.transpose(0, 1) for t in (column, row + camera * (height + 1), inside))
        sampled = _sample(tall, column, row, inside)  # (H, D, R, P)
        parts.append((sampled * weights[:, :, level][query].transpose(0, 1)[:, None]).sum(-1))
    rows = sum(parts[1:], parts[0]).permute(2, 0, 1).flatten(1)  # (R, H * D)
    sums = rows.new_zeros(logits.shape[0], heads * channels)
    sums = sums.scatter_add(0, query[:, None].expand_as(rows), rows)
    counts = (row_splits[1:] - row_splits[:-1]).clamp(min=1)[:, None]
    return (sums / counts).to(value.dtype), weights if return_weights else weights.new_zeros(0)


def _query_of_rows(row_splits: Tensor, rows: int) -> Tensor:
    """(R,) the query that each row belongs to: how many queries end at or before it."""
    ends = row_splits[1:]
    marks = row_splits.new_zeros(rows + 1).scatter_add(0, ends, torch.ones_like(ends))
    return marks.cumsum(0)[:-1]


def _attend(
    value: Tensor,
    shapes: list[int],
    starts: list[int],
    pixels: list[tuple[Tensor, Tensor]],
    weights: Tensor,
) -> Tensor:
    """The weighted sum over levels of points at columns and rows (B, Q, H, P), in weights' dtype."""
    batch, _, heads, _ = value.shape
    parts = []
    for (column, row), level_weights, (maps, height, width) in zip(
        pixels, weights.unbind(3), _maps(value.to(weights.dtype), shapes, starts), strict=True
    ):
        inside = _inside(column, row, height, width)
        column, row, inside, level_weights = (
            t.transpose(1, 2).flatten(0, 1) for t in (column, row, inside, level_weights)
        )
        parts.append((_sample(maps, column, row, inside) * level_weights[:, None]).sum(-1))  # (B * H, D, Q)
    return sum(parts[1:], parts[0]).unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)


def _maps(value: Tensor, shapes: list[int], starts: list[int]) -> Iterator[tuple[Tensor, int, int]]:
    """(B * H, D, h, w) of each level, with h and w."""
    for start, (height, width) in zip(starts, _pairs(shapes), strict=True):
        maps = value[:, start : start + height * width].permute(0, 2, 3, 1)
        yield maps.unflatten(3, (height, width)).flatten(0, 1), height, width


def _sample(maps: Tensor, column: Tensor, row: Tensor, inside: Tensor) -> Tensor:
    """maps (N, D, h, w) at pixels (N, Q, P), zero where not inside -> (N, D, Q, P)."""
    height, width = maps.shape[2:]
    x, y = (2 * column + 1) / width - 1, (2 * row + 1) / height - 1
    grid = torch.stack([x.where(inside, _FAR), y.where(inside, _FAR)], dim=-1)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _inside(column: Tensor, row: Tensor, height: int, width: int) -> Tensor:
    """Within a pixel of the map; NaN is not."""
    return (column > -1) & (column < width) & (row > -1) & (row < height)


def _moved(reference: Tensor, offset: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Columns and rows of normalised references moved by offsets in pixels."""
    return (
        reference[..., 0] * width + offset[..., 0] - 0.5,
        reference[..., 1] * height + offset[..., 1] - 0.5,
    )


def _repeat_heights(references: Tensor, points: int) -> Tensor:
    """(.., Z, 2) -> (.., P, 2): point p has reference p % Z."""
    heights = references.shape[-2]
    return torch.cat([references] * -(-points // heights), dim=-2)[..., :points, :]


def _softmax(logits: Tensor) -> Tensor:
    """Over levels and points together."""
    return logits.flatten(-2).softmax(-1).unflatten(-1, logits.shape[-2:])


def _pairs(shapes: list[int]) -> list[tuple[int, int]]:
    return list(zip(shapes[::2], shapes[1::2], strict=True))
