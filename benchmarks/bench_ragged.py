#!/usr/bin/env python3
"""Compares spatial cross-attention over visible (camera, cell) pairs with BEVFormer's rebatching.

    python -m benchmarks.bench_ragged [--quick] [--threads N] [--cases "rig, op"]

BEVFormer gives each camera its visible cells, padded with zeros to the number of the camera that sees most,
and averages afterwards, with our op in both; the index lists are made before. "op" starts at the offsets and
logits of each cell, which the padded form copies to the cameras; "layer" starts at the queries of the cells:
BEVFormer copies them, and projects the copies to offsets and logits. There are six cameras, a grid of 200 x
200, and the features of BEVFormer-base for images of 900 x 1600. The rig is that of the synthetic world, as
on the cars of nuScenes; if BEVKD2_SHARED names a folder with real/nuscenes-one, the cameras of that key frame
are measured too.
"""

import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.bench import main
from benchmarks.bench_ms_deform_attn import BASE_LEVELS, HEADS, WIDTH
from benchmarks.harness import Contest, Contestant, Options, Watch
from bevkd2.data.synthetic.nuscenes.rig import make_rig
from bevkd2.modeling.bev.geometry import (
    VisiblePairs,
    find_visible_pairs,
    pillar_points,
    project_pillars,
)
from bevkd2.ops import ms_deform_attn_fused, ms_deform_attn_ragged
from bevkd2.structures import invert_pose, lidar2img_matrix

PC_RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
IMAGE, PADDED = (900, 1600), (928, 1600)  # rows, columns
HEIGHTS, POINTS, CHANNELS = 4, 8, HEADS * WIDTH
REQUIRED = 1.4  # over the padded form, forward and backward
PADDED_FORM = "padded, own op"


@dataclasses.dataclass(frozen=True)
class Scene:
    """The geometry that both forms read."""

    pairs: VisiblePairs
    cells: list[Tensor]
    """The visible cells of each camera."""
    padded_references: Tensor
    """(cameras, most cells, Z, 2), zero where a camera has fewer."""
    counts: Tensor
    """(cells, 1): cameras that see the cell, at least 1."""


def contests(options: Options) -> list[Contest]:
    """Returns the contests "op" and "layer" for each set of cameras."""
    rigs: dict[str, Callable[[], Tensor]] = {"rig": synthetic_cameras}
    shared = os.environ.get("BEVKD2_SHARED")
    if shared and not options.quick:
        rigs["real key frame"] = lambda: real_cameras(Path(shared) / "real" / "nuscenes-one")
    return [_contest(name, rigs[name], start, options) for name in rigs for start in ("op", "layer")]


def _contest(name: str, cameras: Callable[[], Tensor], start: str, options: Options) -> Contest:
    levels, grid = (((8, 12), (4, 6)), (12, 12)) if options.quick else (BASE_LEVELS, (200, 200))

    def make() -> list[Contestant]:
        scene = make_scene(cameras(), grid, options.device)
        inputs = (op_inputs if start == "op" else layer_inputs)(levels, scene, options.device)
        forms = {"bevkd2": ragged_form, PADDED_FORM: padded_form}
        return [Contestant(form, _pass(forms[form], start, levels, scene, inputs)) for form in forms]

    parts = ("forward", "backward")
    return Contest(
        family="Spatial cross-attention, ragged",
        case=f"{name}, {start}",
        dtype="float32",
        make=make,
        required={} if options.quick else {(PADDED_FORM, part): REQUIRED for part in parts},
        less_memory_than="" if options.quick else PADDED_FORM,
    )


def synthetic_cameras() -> Tensor:
    """Returns lidar2img (1, 6, 4, 4) of the synthetic world's rig."""
    lidar, *cameras = make_rig(np.random.default_rng(0), (IMAGE[1], IMAGE[0]))
    ego2lidar = invert_pose(lidar.sensor2ego)
    matrices = [lidar2img_matrix(c.intrinsics, ego2lidar @ c.sensor2ego) for c in cameras]
    return torch.from_numpy(np.stack(matrices)).float()[None]


def real_cameras(root: Path) -> Tensor:
    """Returns lidar2img (1, 6, 4, 4) of a nuScenes key frame."""
    from bevkd2.data.nuscenes.dataset import load_nuscenes  # here: only this needs the nuScenes devkit

    with tempfile.TemporaryDirectory() as cache:
        index = load_nuscenes(root, "v1.0-one", "one", cache)
        return torch.from_numpy(index.lidar2img(0, [IMAGE] * 6)).float()[None]


def make_scene(lidar2img: Tensor, grid: tuple[int, int], device: str) -> Scene:
    """Returns the visible pairs, and BEVFormer's padded lists of the same pairs."""
    points = pillar_points(grid, PC_RANGE, HEIGHTS, torch.device("cpu"))
    sizes = torch.tensor(IMAGE, dtype=torch.float32).expand(1, lidar2img.shape[1], 2)
    references, visible = project_pillars(points, lidar2img, sizes, PADDED)
    pairs = find_visible_pairs(references, visible)
    cells = [mask.nonzero()[:, 0] for mask in pairs.bev_mask[0]]
    padded = torch.zeros(len(cells), max(map(len, cells)), HEIGHTS, 2)
    for camera, seen in enumerate(cells):
        padded[camera, : len(seen)] = references[0, camera, seen]
    counts = pairs.row_splits.diff().clamp(min=1)[:, None].float()
    tensors = {f.name: getattr(pairs, f.name).to(device) for f in dataclasses.fields(pairs)}
    return Scene(
        VisiblePairs(**tensors), [seen.to(device) for seen in cells], padded.to(device), counts.to(device)
    )


def op_inputs(levels: tuple, scene: Scene, device: str) -> tuple[Tensor, ...]:
    """Returns value, offsets of N(0, 2 px) and logits of every cell."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(scene.counts), HEADS, len(levels), POINTS)
    pixels = sum(h * w for h, w in levels)
    value = torch.randn(len(scene.cells), pixels, HEADS, WIDTH, generator=generator)
    offsets = 2 * torch.randn(*shape, 2, generator=generator)
    logits = torch.randn(*shape, generator=generator)
    return tuple(tensor.to(device).requires_grad_() for tensor in (value, offsets, logits))


def layer_inputs(levels: tuple, scene: Scene, device: str) -> tuple[Tensor, ...]:
    """Returns value, queries, and the weights of the two projections, which give offsets of N(0, 2 px)."""
    generator = torch.Generator().manual_seed(0)
    pixels = sum(h * w for h, w in levels)
    value = torch.randn(len(scene.cells), pixels, HEADS, WIDTH, generator=generator)
    query = torch.randn(len(scene.counts), CHANNELS, generator=generator)
    samples = HEADS * len(levels) * POINTS
    to_offsets = torch.randn(2 * samples, CHANNELS, generator=generator).mul_(2 / CHANNELS**0.5)
    to_logits = torch.randn(samples, CHANNELS, generator=generator).mul_(CHANNELS**-0.5)
    return tuple(t.to(device).requires_grad_() for t in (value, query, to_offsets, to_logits))


def _project(query: Tensor, to_offsets: Tensor, to_logits: Tensor, levels: tuple) -> tuple[Tensor, Tensor]:
    shape = (HEADS, len(levels), POINTS)
    return F.linear(query, to_offsets).unflatten(-1, (*shape, 2)), F.linear(query, to_logits).unflatten(
        -1, shape
    )


def ragged_form(start: str, levels: tuple, scene: Scene, value: Tensor, *inputs: Tensor) -> Tensor:
    """Computes offsets and logits once per cell; the op processes the visible pairs and averages."""
    offsets, logits = inputs if start == "op" else _project(*inputs, levels)
    pairs = scene.pairs
    out, _ = ms_deform_attn_ragged(
        value, levels, pairs.reference_points, offsets, logits, pairs.row_splits, pairs.row_value
    )
    return out


def padded_form(start: str, levels: tuple, scene: Scene, value: Tensor, *inputs: Tensor) -> Tensor:
    """Computes BEVFormer's form: copies to every camera, padded to the longest list, then averages."""
    if start == "op":
        offsets, logits = (_rebatch(tensor, scene) for tensor in inputs)
    else:
        offsets, logits = _project(_rebatch(inputs[0], scene), *inputs[1:], levels)
    out, _ = ms_deform_attn_fused(
        value, levels, scene.padded_references, offsets, logits, reference_mode="pillar"
    )
    slots = out.new_zeros(len(scene.counts), CHANNELS)
    for camera, seen in enumerate(scene.cells):
        slots = slots.index_add_(0, seen, out[camera, : len(seen)])
    return slots / scene.counts


def _rebatch(tensor: Tensor, scene: Scene) -> Tensor:
    """Copies (cells, ...) to (cameras, most cells, ...)."""
    longest = scene.padded_references.shape[1]
    padded = tensor.new_zeros(len(scene.cells), longest, *tensor.shape[1:])
    for camera, seen in enumerate(scene.cells):
        padded[camera, : len(seen)] = tensor[seen]
    return padded


def _pass(
    form: Callable[..., Tensor], start: str, levels: tuple, scene: Scene, inputs: tuple[Tensor, ...]
) -> Callable[[Watch], Tensor]:
    def run(watch: Watch) -> Tensor:
        out = watch("forward", lambda: form(start, levels, scene, *inputs))
        grad = torch.ones_like(out)
        watch("backward", lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True))
        return out.detach()

    return run


if __name__ == "__main__":
    sys.exit(main(("bench_ragged",)))
