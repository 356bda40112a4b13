"""A trained detector as a module from tensors to tensors, to be exported, and what its numbers mean."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or output of a graph."""

    name: str
    shape: tuple[int, ...]
    """Without the batch, which comes first and is free."""
    dtype: torch.dtype
    meaning: str
    """Units and frame, for the file's metadata."""


class DeployableDetector(nn.Module, ABC):
    """Base of the deployable forms, which a detector returns from its ``deployable``.

    ``forward`` takes one tensor per input and returns one per output, in order. It must not branch on
    numbers, and must not fix the batch.
    """

    kind: ClassVar[str]
    """Which class of :mod:`bevkd2.runtime` runs the exported file."""
    inputs: Sequence[Port]
    outputs: Sequence[Port]

    @abstractmethod
    def examples(self, batch: int) -> tuple[Tensor, ...]:
        """Returns inputs with which the graph is traced, all of a batch; they should be plausible.

        Args:
            batch: B.
        """

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Returns what the runtime has to know beside the ports, as what JSON can hold."""


def example_images(batch: int, *shape: int) -> Tensor:
    """Returns uint8 noise on the CPU, the same every time.

    Args:
        batch: B.
        shape: of one example, such as 3, H, W.

    Returns:
        (B, ...), 0 to 255.
    """
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=generator)
