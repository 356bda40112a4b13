#!/usr/bin/env python3
"""Compares deformable attention at BEVFormer's shapes with grid_sample and torch-ms-deform-attn.

    python -m benchmarks.bench_ms_deform_attn [--quick] [--threads N] [--cases spatial] [--device cuda]

Locations are float32 in every row, since 16 bits cannot represent the pixel; in 16-bit rows only value has 16
bits. Baselines that need one dtype get value cast to float32, and their output is cast back.

Bytes count every input and every output once, and the float32 gradient of value twice (it is filled with
zeros before it is summed). A sample (query, head, level, point) costs 8 D + 22 operations forward and 16 D +
57 backward: four corners times D channels, and the coordinates.
"""

import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.bench import main
from benchmarks.harness import Contest, Contestant, Options, Part, Watch, Work
from bevkd2.ops import ms_deform_attn

HEADS, WIDTH = 8, 32
GRID_SAMPLE, AIUEO = "grid_sample", "torch-ms-deform-attn"
AIUEO_MISSING = "not installed for the device: pip install --no-build-isolation torch-ms-deform-attn"
Form = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of one call in BEVFormer."""

    batch: int
    queries: int
    levels: tuple[tuple[int, int], ...]
    points: int

    @property
    def pixels(self) -> int:
        """Returns S, the number of pixels of all levels."""
        return sum(h * w for h, w in self.levels)

    @property
    def samples(self) -> int:
        """Returns the number of bilinear samples of the call."""
        return self.batch * self.queries * HEADS * len(self.levels) * self.points


BASE_LEVELS = ((116, 200), (58, 100), (29, 50), (15, 25))
SHAPES = {
    "temporal": Shape(2, 40000, ((200, 200),), 4),
    "spatial": Shape(6, 9600, BASE_LEVELS, 8),
    "decoder": Shape(1, 900, ((200, 200),), 4),
    "tiny": Shape(6, 800, ((15, 25),), 8),
}
QUICK = {
    "temporal": Shape(1, 64, ((8, 8),), 4),
    "spatial": Shape(2, 32, ((8, 12), (4, 6)), 8),
    "decoder": Shape(1, 9, ((8, 8),), 4),
    "tiny": Shape(2, 16, ((5, 6),), 8),
}
# (forward, backward) on a 2-core AVX2 machine, float32, local offsets.
OVER_GRID_SAMPLE = {"spatial": (30, 8), "temporal": (12, 6), "tiny": (8, 5), "decoder": (3, 3)}
OVER_AIUEO = {"spatial": (2, 2), "temporal": (2, 2), "tiny": (1, 1), "decoder": (1, 1)}
# On a GPU, spatial with local offsets, against torch-ms-deform-attn.
OVER_AIUEO_CUDA = {torch.bfloat16: (5, 3), torch.float32: (3, 2)}
TWO_THREADS = (1.6, 1.6)


def contests(options: Options) -> list[Contest]:
    """Returns all cases, dtypes and offsets for a device."""
    cuda = options.device.startswith("cuda")
    narrow = (torch.bfloat16, torch.float16) if cuda else (torch.bfloat16,)
    found = [_contest(name, "local", torch.float32, options) for name in SHAPES]
    found += [_contest(name, "uniform", torch.float32, options) for name in ("temporal", "spatial")]
    found += [_contest(name, "local", dtype, options) for name in ("temporal", "spatial") for dtype in narrow]
    if cuda:
        types = (torch.float32, *narrow)
        found += [_determinism(name, dtype, options) for name in ("temporal", "spatial") for dtype in types]
    elif options.threads >= 2:
        found += [_threads(name, options) for name in ("temporal", "spatial")]
    return found


def _contest(name: str, offsets: str, dtype: torch.dtype, options: Options) -> Contest:
    shape = (QUICK if options.quick else SHAPES)[name]
    aiueo = aiueo_form(options.device)

    def make() -> list[Contestant]:
        inputs = make_inputs(shape, offsets == "local", dtype, options.device)
        forms: dict[str, Form] = {
            "bevkd2": lambda v, loc, w: ms_deform_attn(v, shape.levels, None, loc, w),
            GRID_SAMPLE: _wide(lambda v, loc, w: grid_sample_form(v, shape.levels, loc, w)),
        }
        if aiueo is not None:
            forms[AIUEO] = _wide(aiueo(shape.levels, options.device))
        return [Contestant(form, training_pass(forms[form], inputs)) for form in forms]

    return Contest(
        family="Deformable attention",
        case=f"{name}, {offsets}",
        dtype=str(dtype).removeprefix("torch."),
        make=make,
        required=_required(name, offsets, dtype, options),
        tolerance=1e-4 if dtype == torch.float32 else 2e-2,
        missing={} if aiueo is not None else {AIUEO: AIUEO_MISSING},
        work=work(shape, dtype),
        memory=offsets == "local",
    )


def _required(name: str, offsets: str, dtype: torch.dtype, options: Options) -> dict[tuple[str, Part], float]:
    if options.quick:
        return {}
    found: dict[tuple[str, Part], float] = {}
    over_aiueo, over_grid_sample = (1.0, 1.0), None  # never slower in any row
    if options.device.startswith("cuda"):
        if (name, offsets) == ("spatial", "local"):
            over_aiueo = OVER_AIUEO_CUDA.get(dtype, over_aiueo)
    elif offsets == "local" and dtype == torch.float32:
        over_aiueo, over_grid_sample = OVER_AIUEO[name], OVER_GRID_SAMPLE[name]
    for baseline, ratios in ((AIUEO, over_aiueo), (GRID_SAMPLE, over_grid_sample)):
        if ratios is not None:
            found |= {(baseline, "forward"): ratios[0], (baseline, "backward"): ratios[1]}
    return found


def _threads(name: str, options: Options) -> Contest:
    """Returns the contest of the same op with all threads and with one."""
    shape = (QUICK if options.quick else SHAPES)[name]

    def make() -> list[Contestant]:
        inputs = make_inputs(shape, True, torch.float32, options.device)
        run = training_pass(lambda v, loc, w: ms_deform_attn(v, shape.levels, None, loc, w), inputs)
        return [Contestant(f"{options.threads} threads", run), Contestant("one thread", run, threads=1)]

    required = zip(("forward", "backward"), TWO_THREADS, strict=True)
    return Contest(
        family="Threads",
        case=f"{name}, local, {options.threads} threads",
        dtype="float32",
        make=make,
        required={} if options.quick else {("one thread", part): ratio for part, ratio in required},
        tolerance=0.0,  # bitwise equal for every number of threads
        memory=False,
    )


def _determinism(name: str, dtype: torch.dtype, options: Options) -> Contest:
    """Returns the contest of the default mode and the deterministic mode."""
    shape = (QUICK if options.quick else SHAPES)[name]

    def make() -> list[Contestant]:
        inputs = make_inputs(shape, True, dtype, options.device)
        run = training_pass(lambda v, loc, w: ms_deform_attn(v, shape.levels, None, loc, w), inputs)

        def reproducible(watch: Watch) -> Tensor:
            with deterministic():
                return run(watch)

        return [Contestant("default", run), Contestant("deterministic mode", reproducible)]

    return Contest(
        family="Deterministic mode",
        case=f"{name}, local, deterministic",
        dtype=str(dtype).removeprefix("torch."),
        make=make,
    )


@contextmanager
def deterministic() -> Iterator[None]:
    """Turns torch.use_deterministic_algorithms on inside, and restores the setting afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def make_inputs(shape: Shape, local: bool, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns value, locations and weights: leaves that require gradients.

    Local locations are references in raster order with offsets N(0, 2 px) on each level; the others are
    uniform over the maps.
    """
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(shape.batch, shape.pixels, HEADS, WIDTH, generator=generator)
    dims = (shape.batch, shape.queries, HEADS, len(shape.levels), shape.points)
    if local:
        columns = max(1, round(shape.queries**0.5))
        index = torch.arange(shape.queries)
        rows = -(-shape.queries // columns)
        reference = torch.stack([(index % columns + 0.5) / columns, (index // columns + 0.5) / rows], -1)
        sizes = torch.tensor([[w, h] for h, w in shape.levels], dtype=torch.float32)[:, None]
        locations = torch.randn(*dims, 2, generator=generator).mul_(2).div_(sizes)
        locations += reference[None, :, None, None, None]
    else:
        locations = torch.rand(*dims, 2, generator=generator)
    weights = torch.randn(dims, generator=generator).flatten(-2).softmax(-1).view(dims)
    tensors = (value.to(device, dtype), locations.to(device), weights.to(device))
    return tuple(tensor.requires_grad_() for tensor in tensors)


def training_pass(form: Form, inputs: tuple[Tensor, Tensor, Tensor]) -> Callable[[Watch], Tensor]:
    """Returns a pass: forward records the graph, and backward computes all three gradients."""

    def run(watch: Watch) -> Tensor:
        out = watch("forward", lambda: form(*inputs))
        grad = torch.ones_like(out)
        watch("backward", lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True))
        return out.detach()

    return run


def grid_sample_form(value: Tensor, levels: tuple, locations: Tensor, weights: Tensor) -> Tensor:
    """Computes deformable attention by one grid_sample per level, as code in plain PyTorch does."""
    batch, queries, heads, _, points, _ = locations.shape
    grids = 2 * locations - 1
    sampled, start = [], 0
    for level, (height, width) in enumerate(levels):
        level_value = value[:, start : start + height * width].permute(0, 2, 3, 1)
        maps = level_value.reshape(batch * heads, value.shape[3], height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
        start += height * width
    stacked = torch.stack(sampled, -2).flatten(-2)  # (B * H, D, Q, L * P)
    attention = weights.transpose(1, 2).reshape(batch * heads, 1, queries, len(levels) * points)
    out = (stacked * attention).sum(-1).view(batch, heads * value.shape[3], queries)
    return out.transpose(1, 2).contiguous()


def aiueo_form(device: str) -> Callable[[tuple, str], Form] | None:
    """Returns torch-ms-deform-attn for a device and levels; None if it is not installed for the device."""
    if importlib.util.find_spec("torch_ms_deform_attn") is None:
        return None
    import torch_ms_deform_attn

    if device.startswith("cuda") and not torch_ms_deform_attn._C.with_cuda:
        return None

    def for_levels(levels: tuple, device: str) -> Form:
        shapes = torch.tensor(levels, device=device)
        sizes = shapes.prod(1)
        starts = sizes.cumsum(0) - sizes
        return lambda v, loc, w: torch_ms_deform_attn.ms_deform_attn(v, shapes, starts, loc, w)

    return for_levels


def _wide(form: Form) -> Form:
    """Calls a form with value in float32, and casts the output to the dtype of value."""
    return lambda value, locations, weights: form(value.float(), locations, weights).to(value.dtype)


def work(shape: Shape, dtype: torch.dtype) -> dict[Part, Work]:
    """Returns bytes and operations of forward and backward; see the docstring of the module."""
    value = shape.batch * shape.pixels * HEADS * WIDTH
    out = shape.batch * shape.queries * HEADS * WIDTH
    points = 3 * 4 * shape.samples  # locations and weights
    size, n = dtype.itemsize, shape.samples
    return {
        "forward": Work(size * (value + out) + points, n * (8 * WIDTH + 22)),
        "backward": Work(size * (value + out) + 2 * points + 2 * 4 * value, n * (16 * WIDTH + 57)),
    }


if __name__ == "__main__":
    sys.exit(main(("bench_ms_deform_attn",)))
