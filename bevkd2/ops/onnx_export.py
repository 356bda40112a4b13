"""Export to ONNX: each form of deformable attention becomes a composite of standard operators.

The composites are decompositions of the compiled ops, so that an exported program can be read by ONNX and by
anything else that knows standard operators only. GridSample (opset 16 and later) samples the maps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F

from .arguments import level_starts

MODULE_KEY = "pkg.torch.onnx.name_scopes"
"""Entry of a node's metadata: the names of the modules around it and its own, as a Python list."""

_FAR = -3.0  # a GridSample coordinate more than a pixel outside of any map


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
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a module, deformable attention included, as an ONNX file of standard operators.

    Args:
        module: the module, in training or evaluation mode as it should be exported.
        args: example inputs of ``forward``.
        path: file to write.
        kwargs: example keyword inputs.
        dynamic_shapes: sizes that may vary, as for ``torch.export.export``. The levels' shapes are constants.
        input_names: names of the graph's inputs; ``None`` leaves the names to torch.
        output_names: names of the graph's outputs; ``None`` leaves the names to torch.
        opset_version: at least 16, for GridSample; ``None`` leaves the choice to torch.
        metadata: entries of the file's ``metadata_props``.

    Raises:
        ImportError: onnx or onnxscript is not installed (``pip install bevkd2[export]``).
    """
    program = torch.export.export(module, args, dict(kwargs or {}), dynamic_shapes=dynamic_shapes)
    write_onnx(
        program.run_decompositions(onnx_decompositions()),
        path,
        input_names=input_names,
        output_names=output_names,
        opset_version=opset_version,
        metadata=metadata,
    )


def write_onnx(
    program: ExportedProgram,
    path: str | Path,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset_version: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a program, decomposed by :func:`onnx_decompositions`, as one ONNX file with its weights.

    Of what torch notes beside every node, the names of the modules (``MODULE_KEY``) stay.

    Args:
        program: of ``torch.export.export``.
        path, input_names, output_names, opset_version, metadata: of :func:`export_onnx`.

    Raises:
        ImportError: onnx or onnxscript is not installed (``pip install bevkd2[export]``).
    """
    written = torch.onnx.export(
        program,
        (),
        None,
        input_names=input_names,
        output_names=output_names,
        opset_version=opset_version,
        dynamo=True,
        verbose=False,
    )
    assert written is not None
    # What goes is for debugging, such as stack traces with the paths of this machine.
    for node in written.model.graph:
        for key in node.metadata_props.keys() - {MODULE_KEY}:
            del node.metadata_props[key]
    written.model.metadata_props.update(metadata or {})
    written.save(path, external_data=False)


def onnx_decompositions() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """Returns the composite of each op, for ``torch.export.ExportedProgram.run_decompositions``."""
    ops = torch.ops.bevkd2
    return {
        torch.ops.aten.linalg_inv.default: _inverse,
        ops.ms_deform_attn.default: _drop_in,
        ops.ms_deform_attn_fused.default: _fused,
        ops.ms_deform_attn_ragged.default: _ragged,
    }


def _inverse(matrix: Tensor) -> Tensor:
    """Decomposes ``aten::linalg_inv`` of (..., 3, 3) matrices, such as a camera's, by cofactors."""
    if matrix.shape[-2:] != (3, 3):
        raise ValueError(f"export: the inverse of {tuple(matrix.shape)} has no composite, only of (.., 3, 3)")
    rows = matrix.unbind(-2)
    cofactors = [_cross(rows[(i + 1) % 3], rows[(i + 2) % 3]) for i in range(3)]
    determinant = (rows[0] * cofactors[0]).sum(-1)
    return torch.stack(cofactors, dim=-1) / determinant[..., None, None]


def _cross(u: Tensor, v: Tensor) -> Tensor:
    (a, b, c), (d, e, f) = u.unbind(-1), v.unbind(-1)
    return torch.stack([b * f - c * e, c * d - a * f, a * e - b * d], dim=-1)


def _drop_in(
    value: Tensor, shapes: list[int], starts: list[int], locations: Tensor, weights: Tensor
) -> Tensor:
    """Decomposes ``bevkd2::ms_deform_attn``."""
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
    """Decomposes ``bevkd2::ms_deform_attn_fused``."""
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
    """Decomposes ``bevkd2::ms_deform_attn_ragged``.

    The maps of all cameras are stacked into one tall image with a row of zeros below each map; a row of the
    op samples at its camera's place in the image.
    """
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
    """Returns the query of each row, (R,): the number of queries that end at or before the row."""
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
    """Sums weighted samples over levels and points, in the dtype of the weights.

    Args:
        value: (B, S, H, D).
        shapes: h0, w0, h1, w1, ...
        starts: first pixel of each level.
        pixels: columns and rows of the points of each level, (B, Q, H, P) each.
        weights: (B, Q, H, L, P).

    Returns:
        (B, Q, H * D).
    """
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
    attended: Tensor = sum(parts[1:], parts[0]).unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)
    return attended


def _maps(value: Tensor, shapes: list[int], starts: list[int]) -> Iterator[tuple[Tensor, int, int]]:
    """Yields the maps (B * H, D, h, w) of each level, with h and w."""
    for start, (height, width) in zip(starts, _pairs(shapes), strict=True):
        maps = value[:, start : start + height * width].permute(0, 2, 3, 1)
        yield maps.unflatten(3, (height, width)).flatten(0, 1), height, width


def _sample(maps: Tensor, column: Tensor, row: Tensor, inside: Tensor) -> Tensor:
    """Samples maps (N, D, h, w) at pixels (N, Q, P), zero if not inside; returns (N, D, Q, P)."""
    height, width = maps.shape[2:]
    x, y = (2 * column + 1) / width - 1, (2 * row + 1) / height - 1
    grid = torch.stack([x.where(inside, _FAR), y.where(inside, _FAR)], dim=-1)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _inside(column: Tensor, row: Tensor, height: int, width: int) -> Tensor:
    """Returns whether a point lies less than a pixel outside of the map; false for NaN."""
    return (column > -1) & (column < width) & (row > -1) & (row < height)


def _moved(reference: Tensor, offset: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Returns columns and rows of normalised references moved by offsets in pixels."""
    return (
        reference[..., 0] * width + offset[..., 0] - 0.5,
        reference[..., 1] * height + offset[..., 1] - 0.5,
    )


def _repeat_heights(references: Tensor, points: int) -> Tensor:
    """Returns the reference of each point, (.., P, 2), from (.., Z, 2): point p has reference p % Z."""
    heights = references.shape[-2]
    return torch.cat([references] * -(-points // heights), dim=-2)[..., :points, :]


def _softmax(logits: Tensor) -> Tensor:
    """Returns the softmax of logits (.., L, P) over levels and points jointly."""
    weights: Tensor = logits.flatten(-2).softmax(-1).unflatten(-1, logits.shape[-2:])
    return weights


def _pairs(shapes: list[int]) -> list[tuple[int, int]]:
    """Returns (h, w) of each level from h0, w0, h1, w1, ..."""
    return list(zip(shapes[::2], shapes[1::2], strict=True))
