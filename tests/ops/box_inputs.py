"""Random boxes for tests; importable on machines without shapely."""

import torch
from torch import Tensor


def random_boxes(n: int, seed: int, columns: int = 5, extent: float = 10) -> Tensor:
    """Returns (n, columns) float64 boxes that overlap often."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand((n, columns), generator=generator, dtype=torch.float64)
    dims = columns // 2
    rows[:, :dims] *= extent
    rows[:, dims : 2 * dims] = rows[:, dims : 2 * dims] * 5 + 0.1
    rows[:, -1] = (rows[:, -1] - 0.5) * 20
    return rows
