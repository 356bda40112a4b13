"""Limits of the machine: copy bandwidth and float32 matrix product, measured in the same run."""

import dataclasses
import statistics

import torch

from benchmarks.harness import Watch, Work

COPIED = 2**26  # floats: 256 MiB, larger than the last-level cache of one socket
SIDE = 2048  # side of the square matrices that are multiplied


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bandwidth and arithmetic of the machine."""

    copy_bytes_per_second: float
    """STREAM's copy, a = b: one read and one write are counted."""
    flops_per_second: float
    """float32 matrix product, without TF32: a multiplication and an addition are two."""

    def seconds(self, work: Work) -> tuple[float, str]:
        """Returns the shortest time that work can take on this machine, and the limit that determines it."""
        copy, compute = work.bytes / self.copy_bytes_per_second, work.flops / self.flops_per_second
        return (copy, "copy") if copy >= compute else (compute, "FLOP")


def measure_limits(device: str, *, quick: bool = False, repeats: int = 7) -> Limits:
    """Measures both with torch's current number of threads; returns medians."""
    floats, side = (2**16, 64) if quick else (COPIED, SIDE)
    source, target = torch.ones(floats, device=device), torch.zeros(floats, device=device)
    a, b = torch.ones(side, side, device=device), torch.ones(side, side, device=device)
    out = torch.empty_like(a)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    copy = _median(device, lambda: target.copy_(source), repeats)
    product = _median(device, lambda: torch.mm(a, b, out=out), repeats)
    torch.set_float32_matmul_precision(precision)
    return Limits(2 * 4 * floats / copy, 2 * side**3 / product)


def _median(device: str, function: object, repeats: int) -> float:
    watch = Watch(device)
    for _ in range(repeats + 2):  # two for warm-up
        watch("", function)
    return statistics.median(watch.rounds[""][0][2:])
