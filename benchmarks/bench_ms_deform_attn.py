"""bevkd2's CPU deformable attention against the grid_sample form, at BEVFormer's shapes.

Both forms get the same inputs and run alternately in one process; a speed-up is the ratio of the medians.
Prints JSON.

    python benchmarks/bench_ms_deform_attn.py [--quick] [--threads N] [--cases temporal decoder] [--repeats N]
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from machine import machine
from torch import Tensor
from torch.nn import functional as F

from bevkd2.ops import ms_deform_attn

HEADS, WIDTH = 8, 32


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of BEVFormer. required: the least speed-up of forward and of backward."""

    batch: int
    queries: int
    levels: tuple[tuple[int, int], ...]
    points: int
    required: tuple[float, float]
    repeats: int


CASES = {
    "temporal": Case(2, 40000, ((200, 200),), 4, (5, 3), 5),
    "spatial": Case(6, 9600, ((116, 200), (58, 100), (29, 50), (15, 25)), 8, (5, 3), 3),
    "decoder": Case(1, 900, ((200, 200),), 4, (2, 2), 21),
    "tiny": Case(6, 800, ((15, 25),), 8, (2, 2), 21),
}
QUICK = {
    "temporal": Case(1, 64, ((8, 8),), 4, (0, 0), 2),
    "spatial": Case(2, 32, ((8, 12), (4, 6)), 8, (0, 0), 2),
}


def make_inputs(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations and weights. References lie in raster order, offsets are N(0, 2 px) of each level."""
    generator = torch.Generator().manual_seed(0)
    pixels = sum(h * w for h, w in case.levels)
    value = torch.randn(case.batch, pixels, HEADS, WIDTH, generator=generator)
    columns = max(1, round(case.queries**0.5))
    index = torch.arange(case.queries)
    rows = -(-case.queries // columns)
    reference = torch.stack([(index % columns + 0.5) / columns, (index // columns + 0.5) / rows], -1)
    shape = (case.batch, case.queries, HEADS, len(case.levels), case.points)
    sizes = torch.tensor([[w, h] for h, w in case.levels], dtype=torch.float32)[:, None]
    offsets = 2 * torch.randn(*shape, 2, generator=generator) / sizes
    locations = reference[None, :, None, None, None] + offsets
    weights = torch.randn(shape, generator=generator).flatten(-2).softmax(-1).view(shape)
    return value, locations, weights


def grid_sample_form(value: Tensor, levels: tuple, locations: Tensor, weights: Tensor) -> Tensor:
    """Deformable attention as one grid_sample a level: what pure PyTorch code does on the CPU."""
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


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def run_case(case: Case, repeats: int) -> dict[str, object]:
    """Medians in milliseconds and speed-ups, forward and backward."""
    inputs = make_inputs(case)
    forms = {
        "bevkd2": lambda v, loc, w: ms_deform_attn(v, case.levels, None, loc, w),
        "grid_sample": lambda v, loc, w: grid_sample_form(v, case.levels, loc, w),
    }
    difference = (forms["bevkd2"](*inputs) - forms["grid_sample"](*inputs)).abs().max().item()
    times: dict[str, list[float]] = {f"{name} {way}": [] for name in forms for way in ("forward", "backward")}
    for _ in range(repeats):
        for name, form in forms.items():
            leaves = [tensor.detach().requires_grad_() for tensor in inputs]
            with torch.no_grad():
                times[f"{name} forward"].append(timed(lambda form=form: form(*inputs)))
            out = form(*leaves)
            grad = torch.ones_like(out)
            times[f"{name} backward"].append(timed(lambda out=out, grad=grad: out.backward(grad)))
            del out
    medians = {key: statistics.median(values) for key, values in times.items()}
    result: dict[str, object] = {key + " ms": round(1000 * value, 3) for key, value in medians.items()}
    for way, required in zip(("forward", "backward"), case.required, strict=True):
        result[f"speed-up {way}"] = round(medians[f"grid_sample {way}"] / medians[f"bevkd2 {way}"], 2)
        result[f"required {way}"] = required
    return {**result, "repeats": repeats, "largest difference": difference}


def main() -> int:
    """Exit code 1 where a speed-up is less than its case requires."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes, nothing required: tests the script"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cases", nargs="+", choices=sorted(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, help="runs of each form (default: by case)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cases = QUICK if args.quick else {name: CASES[name] for name in args.cases}
    report = {name: run_case(case, args.repeats or case.repeats) for name, case in cases.items()}
    print(json.dumps({"machine": machine(), "cases": report}, indent=2))
    fast = all(
        r[f"speed-up {way}"] >= r[f"required {way}"]
        for r in report.values()
        for way in ("forward", "backward")
    )
    return 0 if fast else 1


if __name__ == "__main__":
    sys.exit(main())
