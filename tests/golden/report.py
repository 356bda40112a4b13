"""How differences from recorded numbers are collected and shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from tabulate import tabulate
from torch import Tensor

# The bounds that the recordings state for float32 arrays.
FLOAT32_RELATIVE, FLOAT32_FLOOR = 1e-4, 1e-5

Numbers = Tensor | npt.NDArray[np.generic] | float


@dataclasses.dataclass(frozen=True)
class Row:
    """The largest difference of one quantity from its recordings.

    Attributes:
        quantity: what was compared.
        difference: the largest found; infinite where a shape differs or a number is NaN.
        tolerance: the largest allowed.
        arrays: how many arrays were compared; 0 where nothing was recorded, which fails.
    """

    quantity: str
    difference: float
    tolerance: float
    arrays: int

    @property
    def failed(self) -> bool:
        """Whether the difference is beyond the tolerance, or nothing was compared."""
        return not self.difference <= self.tolerance or self.arrays == 0


class Differences:
    """Collects the largest difference of every quantity.

    Args:
        tolerances: the largest allowed difference by quantity.
        required: the quantities that must be compared, for without them a case proves nothing; None: all.
    """

    def __init__(self, tolerances: Mapping[str, float], required: Collection[str] | None = None) -> None:
        self._tolerances = dict(tolerances)
        self._required = set(tolerances if required is None else required)
        self._largest: dict[str, float] = {}
        self._compared: dict[str, int] = {}

    def add(self, quantity: str, ours: Numbers, golden: Numbers, scale: float = 1.0) -> None:
        """Notes the largest absolute difference, divided by ``scale``."""
        ours, golden = _double(ours), _double(golden)
        gap = (ours - golden).abs() / scale if ours.shape == golden.shape else None
        self.note(quantity, float("inf") if gap is None else float(gap.max()) if gap.numel() else 0.0)

    def add_close(
        self, quantity: str, ours: Numbers, golden: Numbers, atol: float, at_most: float = float("inf")
    ) -> None:
        """Notes the largest |ours - golden| / (atol / tolerance + |golden|): relative, with a floor.

        It is within the quantity's tolerance where |ours - golden| <= atol + tolerance * |golden|, and
        nowhere more than ``at_most``.
        """
        ours, golden = _double(ours), _double(golden)
        if ours.shape != golden.shape:
            self.note(quantity, float("inf"))
            return
        tolerance = self._tolerances[quantity]
        # Where both are 0 there is no difference, for any floor.
        scale = (atol / tolerance + golden.abs()).clamp(min=1e-300, max=at_most / tolerance)
        gap = (ours - golden).abs() / scale
        self.note(quantity, float(gap.max()) if gap.numel() else 0.0)

    def add_unequal(self, quantity: str, ours: Tensor, golden: Tensor) -> None:
        """Notes how many numbers are not the same: for indices and classes."""
        same_shape = ours.shape == golden.shape
        self.note(quantity, float((ours != golden).sum()) if same_shape else float("inf"))

    def note(self, quantity: str, difference: float) -> None:
        """Notes a difference that was computed elsewhere; a NaN counts as infinite."""
        assert quantity in self._tolerances, quantity
        difference = float("inf") if difference != difference else difference
        self._largest[quantity] = max(self._largest.get(quantity, 0.0), difference)
        self._compared[quantity] = self._compared.get(quantity, 0) + 1

    def rows(self) -> list[Row]:
        """One row for every quantity that was compared or required, in the order of the tolerances."""
        return [
            Row(name, self._largest.get(name, float("inf")), tolerance, self._compared.get(name, 0))
            for name, tolerance in self._tolerances.items()
            if name in self._largest or name in self._required
        ]


def uncompared(golden: Collection[str], expected: Collection[str]) -> None:
    """Refuses arrays that nothing is compared with, and the lack of those that are.

    Raises:
        KeyError: there is one.
    """
    if missing := sorted(set(expected) - set(golden)):
        raise KeyError(f"not recorded: {', '.join(missing)}")
    if unknown := sorted(set(golden) - set(expected)):
        raise KeyError(f"recorded, but compared with nothing: {', '.join(unknown)}")


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    cells = [
        (
            row.quantity,
            row.arrays,
            row.difference if row.arrays else "not recorded",
            row.tolerance,
            "FAIL" if row.failed else "ok",
        )
        for row in rows
    ]
    headers = ("quantity", "arrays", "largest difference", "tolerance", "")
    return tabulate(cells, headers=headers, floatfmt=".1e")


def _double(numbers: Numbers) -> Tensor:
    return torch.as_tensor(numbers, dtype=torch.float64).detach()
