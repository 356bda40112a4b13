#!/usr/bin/env python3
"""Compares BEVFormer's attention layers with our op and with the ops that users would otherwise pick.

    python -m benchmarks.bench_layer [--quick] [--threads N] [--cases spatial] [--device cuda]

A layer is this project's module, with its projections and the residual, at the sizes of BEVFormer-base
(spatial cross-attention also of BEVFormer-small) and without dropout. Only the op inside is replaced; weights
and inputs are the same. The others' ops take locations, and weights after softmax, which are computed before
them; spatial attention gives them a padded copy of each camera's visible cells, as BEVFormer does, from lists
that are made before. torch.compile is given the whole layer, with one grid_sample per level inside.

mmcv's op has no kernel for the CPU. There its PyTorch form is run, as mmcv's own module does.

"forward" records the graph; "forward + backward" also computes the gradients of inputs and parameters. Before
they are timed, outputs and all gradients are compared with those of our op. Gradients are compared in the
2-norm: a sampling point within float32's rounding of the middle of a pixel may be on either side of it, where
the derivative by its location is another one.
"""

import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import plain_forms
from benchmarks.bench import FOLDER, main
from benchmarks.bench_ms_deform_attn import (
    AIUEO,
    AIUEO_MISSING,
    BASE_LEVELS,
    HEADS,
    WIDTH,
    aiueo_form,
    grid_sample_form,
)
from benchmarks.bench_ragged import make_scene, synthetic_cameras
from benchmarks.harness import Contest, Contestant, Options, Watch
from benchmarks.plain_forms import CameraLists, Sample, camera_lists
from bevkd2.modeling.bev import attention as bev_attention
from bevkd2.modeling.bev import decoder
from bevkd2.modeling.bev.attention import DeformableAttention, SpatialCrossAttention, TemporalSelfAttention
from bevkd2.modeling.bev.decoder import DeformableCrossAttention
from bevkd2.modeling.bev.geometry import NUM_QUEUES, History, bev_reference_points
from bevkd2.modeling.bev.layers import LayerOptions

OURS, MMCV, EAGER, COMPILED = "bevkd2", "mmcv", "grid_sample", "grid_sample, torch.compile"
BUILD_MMCV = "MMCV_WITH_OPS=1 pip install --no-build-isolation --no-binary mmcv mmcv"
CHANNELS = HEADS * WIDTH
LAYER = LayerOptions(embed_dim=CHANNELS, num_heads=HEADS, ffn_dim=2 * CHANNELS, dropout=0.0)
GRADIENT_TOLERANCE = 1e-2
"""The largest norm of a difference of gradients, as a share of the norm of ours."""
Levels = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of the layers."""

    grid: tuple[int, int]
    levels: Levels
    """Of the cameras' features."""
    queries: int = 900
    """Object queries of the decoder."""


BASE = Sizes((200, 200), BASE_LEVELS)
SMALL = Sizes((150, 150), ((23, 40),))
QUICK = Sizes((12, 12), ((8, 12), (4, 6)), 9)
SPATIAL_POINTS = 8


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer with its inputs."""

    module: DeformableAttention
    inputs: tuple[Tensor, ...]
    """Leaves, whose gradients are computed as well as those of the parameters."""
    call: Callable[[Callable[..., Any]], Tensor]
    """Calls a module, which may be compiled, with the inputs."""
    lists: CameraLists | None = None
    """What every camera sees; only of spatial attention."""


def contests(options: Options) -> list[Contest]:
    """Returns one contest per layer."""
    layers: dict[str, tuple[Callable[[Sizes, str], Layer], Sizes]] = {
        "temporal self-attention": (temporal, BASE),
        "spatial cross-attention, small": (spatial, SMALL),
        "spatial cross-attention, base": (spatial, BASE),
        "decoder's cross-attention": (decoder_layer, BASE),
    }
    return [
        _contest(name, make, QUICK if options.quick else sizes, options.device)
        for name, (make, sizes) in layers.items()
    ]


def _contest(name: str, make: Callable[[Sizes, str], Layer], sizes: Sizes, device: str) -> Contest:
    samples, missing = available(device)
    forms: dict[str, Sample | None] = {OURS: None, **samples, COMPILED: samples[EAGER]}
    if make is spatial and device == "cpu":
        lacking = lacking_memory(sizes)
        large = [form for form in (MMCV, EAGER, COMPILED) if form in forms and lacking]
        forms = {form: sample for form, sample in forms.items() if form not in large}
        missing |= dict.fromkeys(large, lacking)
    return Contest(
        family="Attention layers",
        case=name,
        dtype="float32",
        make=functools.partial(_contestants, name, make, sizes, forms, device),
        missing=missing,
        memory=False,
    )


def lacking_memory(sizes: Sizes) -> str:
    """Returns why spatial attention by grid_sample cannot run on this machine; "" if it can.

    It keeps the sampled features of padded lists, about a quarter of the cells per camera, and its backward
    pass needs several times as much: more than 13 GB at the sizes of BEVFormer-base.
    """
    cells = sizes.grid[0] * sizes.grid[1] // 4
    sampled = 4 * 6 * CHANNELS * cells * len(sizes.levels) * SPATIAL_POINTS  # bytes
    needed, free = 8 * sampled, available_memory()
    if needed <= free:
        return ""
    return f"not enough memory: about {needed / 1e9:.0f} GB are needed, {free / 1e9:.0f} GB are free"


def available_memory() -> int:
    """Returns the bytes that can be allocated without swapping (Linux)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return 1024 * int(kibibytes)


def available(device: str) -> tuple[dict[str, Sample], dict[str, str]]:
    """Returns the others' ops by name, and the names of those that are not installed with the reason."""
    found: dict[str, Sample] = {}
    missing: dict[str, str] = {}
    aiueo = aiueo_form(device)
    if aiueo is None:
        missing[AIUEO] = AIUEO_MISSING
    else:
        for_levels = functools.cache(aiueo)
        found[AIUEO] = lambda value, levels, *points: for_levels(levels, device)(value, *points)
    if importlib.util.find_spec("mmcv") is None:
        missing[MMCV] = f"not installed: {BUILD_MMCV}"
    elif importlib.util.find_spec("mmcv._ext") is None:
        missing[MMCV] = f"installed without ops: {BUILD_MMCV}"
    else:
        found[MMCV] = mmcv_form(device)
    return {**found, EAGER: grid_sample_form}, missing


def mmcv_form(device: str) -> Sample:
    """Returns mmcv's op on a GPU, and its PyTorch form on the CPU, for which it has no kernel."""
    from mmcv.ops import multi_scale_deform_attn as mmcv

    def on_gpu(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
        shapes, starts = _level_tensors(levels, device)
        function = mmcv.MultiScaleDeformableAttnFunction
        out: Tensor = function.apply(value, shapes, starts, locations, weights, 64)  # im2col_step
        return out

    def on_cpu(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
        shapes, _ = _level_tensors(levels, device)
        out: Tensor = mmcv.multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
        return out

    return on_gpu if device.startswith("cuda") else on_cpu


@functools.cache
def _level_tensors(levels: Levels, device: str) -> tuple[Tensor, Tensor]:
    shapes = torch.tensor(levels, device=device)
    sizes = shapes.prod(1)
    return shapes, sizes.cumsum(0) - sizes


def temporal(sizes: Sizes, device: str) -> Layer:
    """Returns temporal self-attention on a grid and its history."""
    module = TemporalSelfAttention(LAYER, num_points=4, bev_shape=sizes.grid)
    _random_weights(module)
    cells = sizes.grid[0] * sizes.grid[1]
    query, position, queue = _leaves(
        device, (1, cells, CHANNELS), (cells, CHANNELS), (1, NUM_QUEUES, cells, CHANNELS)
    )
    references = bev_reference_points(sizes.grid, torch.device(device)).expand(1, NUM_QUEUES, -1, -1)

    def call(layer: Callable[..., Any]) -> Tensor:
        out: Tensor = layer(query, position, History(queue, [True], references))[0]
        return out

    return Layer(module.to(device), (query, position, queue), call)


def spatial(sizes: Sizes, device: str) -> Layer:
    """Returns spatial cross-attention on six cameras of the synthetic world's rig."""
    module = SpatialCrossAttention(LAYER, num_levels=len(sizes.levels), num_points=SPATIAL_POINTS)
    _random_weights(module)
    pairs = make_scene(synthetic_cameras(), sizes.grid, device).pairs
    cameras, pixels = pairs.bev_mask.shape[1], sum(h * w for h, w in sizes.levels)
    query, features = _leaves(
        device, (1, sizes.grid[0] * sizes.grid[1], CHANNELS), (cameras, pixels, CHANNELS)
    )

    def call(layer: Callable[..., Any]) -> Tensor:
        out: Tensor = layer(query, features, list(sizes.levels), pairs)[0]
        return out

    lists = camera_lists(pairs.row_splits, pairs.row_value, cameras)
    return Layer(module.to(device), (query, features), call, lists)


def decoder_layer(sizes: Sizes, device: str) -> Layer:
    """Returns the decoder's cross-attention on a grid."""
    module = DeformableCrossAttention(LAYER, num_points=4)
    _random_weights(module)
    queries, cells = sizes.queries, sizes.grid[0] * sizes.grid[1]
    query, position, bev = _leaves(
        device, (1, queries, CHANNELS), (1, queries, CHANNELS), (1, cells, CHANNELS)
    )
    references = torch.rand(1, queries, 2, generator=torch.Generator().manual_seed(1)).to(device)

    def call(layer: Callable[..., Any]) -> Tensor:
        out: Tensor = layer(query, position, bev, references, sizes.grid)
        return out

    return Layer(module.to(device), (query, position, bev), call)


def _random_weights(module: DeformableAttention) -> None:
    """Sets weights with which offsets are about N(0, 2 px) and logits about N(0, 1)."""
    generator = torch.Generator().manual_seed(0)
    for linear, scale in (
        (module.sampling_offsets, 2.0),
        (module.attention_weights, 1.0),
        (module.value_proj, 1.0),
        (module.output_proj, 1.0),
    ):
        with torch.no_grad():
            linear.weight.normal_(0, scale * linear.in_features**-0.5, generator=generator)
            linear.bias.zero_()


def _leaves(device: str, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]


@contextmanager
def swapped(sample: Sample | None, lists: CameraLists | None) -> Iterator[None]:
    """The layers use another op inside; with None, ours."""
    if sample is None:
        yield
        return
    fused = functools.partial(plain_forms.fused, sample=sample)
    ragged = functools.partial(plain_forms.ragged, sample=sample, lists=lists)
    with (
        patch.object(bev_attention, "ms_deform_attn_fused", fused),
        patch.object(bev_attention, "ms_deform_attn_ragged", ragged),
        patch.object(decoder, "ms_deform_attn_fused", fused),
    ):
        yield


def _contestants(
    name: str,
    make: Callable[[Sizes, str], Layer],
    sizes: Sizes,
    forms: dict[str, Sample | None],
    device: str,
) -> list[Contestant]:
    layer = make(sizes, device)
    expected = gradients(layer, layer.module)
    return [
        Contestant(form, _pass(f"{name}, {form}", layer, sample, form == COMPILED, expected))
        for form, sample in forms.items()
    ]


def gradients(layer: Layer, module: Callable[..., Any]) -> dict[str, Tensor]:
    """Returns the output and the gradients of inputs and parameters by name, of one pass."""
    names, leaves = _named_leaves(layer)
    out = layer.call(module)
    found = torch.autograd.grad(out, leaves, _output_gradient(out))
    return {"output": out.detach(), **dict(zip(names, found, strict=True))}


def _named_leaves(layer: Layer) -> tuple[list[str], list[Tensor]]:
    named = {f"input {i}": leaf for i, leaf in enumerate(layer.inputs)} | dict(
        layer.module.named_parameters()
    )
    return list(named), list(named.values())


def _output_gradient(out: Tensor) -> Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.device)


def check_gradients(what: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compares the results of ``gradients``.

    Raises:
        RuntimeError: one differs from ours by more than ``GRADIENT_TOLERANCE``.
    """
    for name, ours in expected.items():
        share = ((found[name] - ours).norm() / ours.norm()).item()
        if not share <= GRADIENT_TOLERANCE:
            raise RuntimeError(
                f"{what}: {name} differs from ours by {share:.1e} of its norm, and {GRADIENT_TOLERANCE:g} is "
                "allowed; they do not do the same work"
            )


def _pass(
    what: str, layer: Layer, sample: Sample | None, compiled: bool, expected: dict[str, Tensor]
) -> Callable[[Watch], Tensor]:
    module = torch.compile(layer.module, dynamic=False) if compiled else layer.module
    _, leaves = _named_leaves(layer)
    gradient = _output_gradient(expected["output"])
    checked: list[bool] = []

    def run(watch: Watch) -> Tensor:
        with swapped(sample, layer.lists):
            if not checked:
                check_gradients(what, gradients(layer, module), expected)
                checked.append(True)
            out = watch("forward", lambda: layer.call(module))
            watch(
                "forward + backward",
                lambda: torch.autograd.grad(layer.call(module), leaves, gradient),
            )
        return out.detach()

    return run


if __name__ == "__main__":
    sys.exit(main(("bench_layer",), FOLDER / "results" / "layers"))
